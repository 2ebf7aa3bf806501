// Kernels with the mistakes the emulator must catch, and one without.
#include <stdexcept>

#include "cuda_runtime.h"

namespace {

struct Values {
  float v[64];
};

enum Mistake { kNone, kNoBarrier, kPartialBarrier, kPartialShuffle, kUnwritten, kMisaligned };

// out[i] = the value of the thread opposite, by way of shared memory and a shuffle.
void kernel(int mistake, float* out) {
  MEDSEG_SHARED(Values, shared);
  const unsigned i = threadIdx.x;
  if (mistake != kUnwritten || i != 3) shared.v[i] = static_cast<float>(i);
  if (mistake == kMisaligned) __ldg(reinterpret_cast<const uint4*>(out + 1));
  if (mistake == kPartialBarrier && i == 7) return;
  if (mistake != kNoBarrier) __syncthreads();
  float value = shared.v[63 - i];
  if (mistake != kPartialShuffle || i != 40) value = __shfl_xor_sync(0xffffffffu, value, 1);
  out[i] = value;
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// 0, or 1 where the emulator threw; out has 64 floats.
EXPORTED int run_mistake(int mistake, float* out) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(64);
  try {
    return cudaLaunchKernelEx(&config, kernel, mistake, out) != cudaSuccess;
  } catch (const std::runtime_error&) {
    return 1;
  }
}
