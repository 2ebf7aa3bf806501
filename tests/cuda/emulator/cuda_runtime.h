// The part of CUDA that csrc/cuda uses, on a CPU: found before the real header, it lets a host
// compiler build the very same .cu files. See emulator.cpp for what it checks.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

#define CUDART_VERSION 0  // build_info() tells an emulated module by it

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

inline dim3 gridDim, blockDim, blockIdx, threadIdx;  // set whenever a fiber is resumed

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = void*;

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid argument" : "invalid configuration argument";
}

namespace emulator {

struct Launch {
  dim3 grid, block;
  size_t shared;
};

// Runs every thread of every block; throws where a real device would hang or trap.
cudaError_t run(const Launch& launch, const std::function<void()>& thread);

enum Wait { kReady, kBlock, kShuffle, kWarp, kDone };

void wait(Wait what, int detail);  // of the running thread, at a barrier
[[noreturn]] void fail(const std::string& why);
uint64_t* lane_slot(int lane);  // of the running thread's warp, for the shuffle under way
int running_lane();
void* shared_memory(const void* tag, size_t bytes);  // one per block and tag, poisoned
void* dynamic_shared_memory();

template <class T>
T shuffle(T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a lane's value is eight bytes at most");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  *lane_slot(running_lane()) = word;
  uint64_t* const other = lane_slot(source);
  wait(kShuffle, source ^ running_lane());
  std::memcpy(&value, other, sizeof(T));
  return value;
}

inline void check_aligned(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) fail("misaligned vector access");
}

}  // namespace emulator

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...),
                               A&&... args) {
  const std::tuple<std::decay_t<P>...> kept(std::forward<A>(args)...);
  const std::function<void()> thread = [&] { std::apply(kernel, kept); };
  return emulator::run({config->gridDim, config->blockDim, config->dynamicSmemBytes}, thread);
}

#define MEDSEG_SHARED(type, name) \
  static char name##_tag;         \
  type& name = *static_cast<type*>(emulator::shared_memory(&name##_tag, sizeof(type)))
#define MEDSEG_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(emulator::dynamic_shared_memory())

inline void __syncthreads() { emulator::wait(emulator::kBlock, 0); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulator::wait(emulator::kWarp, 0); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  if (mask != 0xffffffffu) emulator::fail("only whole warps shuffle here");
  return emulator::shuffle(value, emulator::running_lane() ^ lane_mask);
}

template <class T>
T __ldg(const T* p) {
  emulator::check_aligned(p, sizeof(T));
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  emulator::check_aligned(p, sizeof(T));
  *p = value;
}

inline uint32_t __float_as_uint(float v) {
  uint32_t r;
  std::memcpy(&r, &v, 4);
  return r;
}
inline float __uint_as_float(uint32_t v) {
  float r;
  std::memcpy(&r, &v, 4);
  return r;
}
