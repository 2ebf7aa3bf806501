// The MDE filter on the GPU: a bank of smoothing masks weighed by gains, one stencil a channel.
//
// Forward: one launch, x is read once and out written once (1R 1W, the floor). Backward: the
// transpose is the same stencil (1R 1W); learned gains take one more read of x in the same launch,
// and a second launch that adds the blocks' sums in their order.
#include "mde_launch.cuh"

namespace medseg::cuda {

namespace {

constexpr int kGainThreads = 256;
constexpr int64_t kMdeBlocks = 512;  // enough to fill a large card
constexpr int kMdeUnits = 32;        // of a block in channels_last: one line of 16-bit channels

int power_of_two(int64_t at_least, int most) {
  int power = 1;
  while (power < at_least && power < most) power *= 2;
  return power;
}

__host__ __device__ int radius_of(const MdeBank& bank) {
  return bank.gain[2] > 0 ? 3 : bank.gain[1] > 0 ? 2 : bank.gain[0] > 0 ? 1 : 0;
}

MdePlan plan_of(const MdeShape& s, bool products) {
  MdePlan p{};
  p.s = s;
  p.channels = s.last ? s.vec : 1;
  p.columns = !s.last ? s.vec : s.vec == 4 && !products ? 2 : 1;
  p.units = s.n * (s.c / p.channels);
  const int64_t places = ceil_div(s.w, p.columns);
  if (s.last) {
    p.block_u = power_of_two(s.c / p.channels, kMdeUnits);
    p.block_w = kMdeThreads / p.block_u;
  } else {
    p.block_w = power_of_two(places, kMdeThreads);
    p.block_u = kMdeThreads / p.block_w;
  }
  p.across = ceil_div(places, p.block_w);
  for (p.span = 64;; p.span /= 2) {
    p.chunks = ceil_div(s.h, p.span);
    if (p.span == 16 || ceil_div(p.units, p.block_u) * p.parts() >= kMdeBlocks) return p;
  }
}

// grad_gains[g, j] from part[r, i, g], i < rows. A gain a_j moves tap j up and tap j + 1 down, so
// its gradient is the difference of theirs. A block owns one g.
__global__ void __launch_bounds__(kGainThreads)
    mde_gains(const MdeBank bank, const float* part, int64_t rows, int64_t columns, float* grad) {
  const int64_t g = blockIdx.x;
  const int radius = radius_of(bank);
  float* to = grad + g * (bank.scales + 1);
  float before = 0.0f;  // of the tap before, in rising order of the scales
#pragma unroll
  for (int r = 0; r <= kMaxMdeRadius; ++r) {
    if (r > radius) break;  // the same for every thread, so that all reach the barriers
    const int j = r > 0 ? bank.gain[r - 1] : 0;
    if (r > 0 && j == 0) continue;
    const float* from = part + r * rows * columns + g;
    const int64_t mine = threadIdx.x < rows ? ceil_div(rows - threadIdx.x, kGainThreads) : 0;
    const float sum = block_sum<kGainThreads>(part_sum(
        mine, [&](int64_t i) { return from[(threadIdx.x + i * kGainThreads) * columns]; }));
    const float tap = r > 0 ? sum * bank.norm[r - 1] : sum;
    if (r > 0 && threadIdx.x == 0) to[j - 1] = before - tap;
    before = tap;
  }
  if (threadIdx.x == 0) to[bank.scales] = before;
}

}  // namespace

size_t mde_scratch(const MdeShape& shape) {
  if (shape.n * shape.c * shape.h * shape.w == 0) return 256;
  const int64_t sums = radius_of(shape.bank) + 1;
  return sums * plan_of(shape, true).parts() * shape.n * shape.c * sizeof(float);
}

cudaError_t mde_forward(int dtype, const MdeForward& a, cudaStream_t stream) {
  const MdeShape& s = a.shape;
  if (radius_of(s.bank) == 0) return cudaErrorInvalidValue;
  if (s.n * s.c * s.h * s.w == 0) return cudaSuccess;
  const MdeWork k{plan_of(s, false), a.x, a.out, {}, a.gains, a.stride_gain, nullptr, false};
  return launch_rows<false>(dtype, radius_of(s.bank), k, stream);
}

cudaError_t mde_backward(int dtype, const MdeBackward& a, cudaStream_t stream) {
  const MdeShape& s = a.shape;
  if (radius_of(s.bank) == 0) return cudaErrorInvalidValue;
  const int64_t columns = a.stride_gain == 0 ? 1 : s.c;
  if (s.n * s.c * s.h * s.w == 0)
    return a.grad_gains ? set_zero(a.grad_gains, columns * (s.bank.scales + 1), stream)
                        : cudaSuccess;
  float* part = static_cast<float*>(a.scratch);
  const MdePlan plan = plan_of(s, a.grad_gains != nullptr);
  const MdeWork k{plan, a.grad_out, a.grad_x, a.x, a.gains, a.stride_gain, part, s.reflect};
  const int radius = radius_of(s.bank);
  if (!a.grad_gains) return launch_rows<false>(dtype, radius, k, stream);
  const cudaError_t error = mde_launch_products(dtype, radius, k, stream);
  if (error != cudaSuccess) return error;
  const int64_t rows = k.plan.parts() * s.n * s.c / columns;
  return launch(mde_gains, dim3(static_cast<unsigned>(columns)), kGainThreads, 0, stream, s.bank,
                static_cast<const float*>(part), rows, columns, a.grad_gains);
}

}  // namespace medseg::cuda
