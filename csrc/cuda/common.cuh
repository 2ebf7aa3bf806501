// What every CUDA kernel here shares: 16-byte accesses, conversions, reductions, the launch.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "launchers.h"

// Shared memory by one name, so that a host build of these files can bring its own (tests/cuda).
#ifndef MEDSEG_SHARED
#define MEDSEG_SHARED(type, name) __shared__ type name
#define MEDSEG_DYNAMIC_SHARED(type, name)                     \
  extern __shared__ __align__(16) unsigned char name##_raw[]; \
  type* const name = reinterpret_cast<type*>(name##_raw)
#endif

namespace medseg::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;
constexpr int kLanes = 8;  // threads side by side on one 128-byte line

// Returns the error of this launch and leaves none behind for the next caller to trip over.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, int threads, size_t shared, cudaStream_t stream,
                   const A&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, P(args)...);
  const cudaError_t last = cudaGetLastError();
  return error != cudaSuccess ? error : last;
}

// What gradients of parameters are when there is nothing to sum.
inline cudaError_t set_zero(float* p, int64_t count, cudaStream_t stream) {
  return cudaMemsetAsync(p, 0, static_cast<size_t>(count) * sizeof(float), stream);
}

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// ---- dtypes -------------------------------------------------------------------------------------

template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// Element i of an array whose dtype is known at run time: for parameters and other small things.
__device__ __forceinline__ float load_as_float(const void* data, int dtype, int64_t i) {
  if (dtype == kFloat32) return static_cast<const float*>(data)[i];
  if (dtype == kBFloat16) return to_float(static_cast<const __nv_bfloat16*>(data)[i]);
  return to_float(static_cast<const __half*>(data)[i]);
}
__device__ __forceinline__ float load_param(const Param& p, int64_t i) {
  return load_as_float(p.data, p.dtype, i);
}

// Calls f(T{}) with the element type of dtype.
template <class F>
cudaError_t with_dtype(int dtype, F f) {
  switch (dtype) {
    case kFloat32:
      return f(float{});
    case kBFloat16:
      return f(__nv_bfloat16{});
    case kFloat16:
      return f(__half{});
    default:
      return cudaErrorInvalidValue;
  }
}

inline int64_t dtype_size(int dtype) { return dtype == kFloat32 ? 4 : 2; }

// ---- 16 bytes at a time -------------------------------------------------------------------------

struct alignas(16) Pack {
  uint32_t word[4];
};

// Read-only path: x is never written by the kernel that reads it, so loads may pass stores.
__device__ __forceinline__ Pack load_pack(const void* p) {
  const uint4 q = __ldg(static_cast<const uint4*>(p));
  return Pack{{q.x, q.y, q.z, q.w}};
}
// For what the next kernel reads.
__device__ __forceinline__ void keep_pack(void* p, const Pack& v) {
  *static_cast<uint4*>(p) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
}
// Streaming: what is written here is not read again by these kernels, x in L2 is.
__device__ __forceinline__ void store_pack(void* p, const Pack& v) {
  __stcs(static_cast<uint4*>(p), make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]));
}

// The values of a pack in float32. The upper half of a float is a bfloat16: no conversion needed.
template <class T>
__device__ __forceinline__ void unpack(const Pack& p, float (&f)[kVector<T>]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      f[i] = __uint_as_float(p.word[i]);
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      f[2 * i] = __uint_as_float(p.word[i] << 16);
      f[2 * i + 1] = __uint_as_float(p.word[i] & 0xffff0000u);
    } else {
      f[2 * i] = __half2float(__ushort_as_half(static_cast<unsigned short>(p.word[i])));
      f[2 * i + 1] = __half2float(__ushort_as_half(static_cast<unsigned short>(p.word[i] >> 16)));
    }
  }
}

__device__ __forceinline__ uint32_t bits(float v) { return __float_as_uint(v); }
__device__ __forceinline__ uint32_t bits(__half v) { return __half_as_ushort(v); }
__device__ __forceinline__ uint32_t bits(__nv_bfloat16 v) { return __bfloat16_as_ushort(v); }

// Puts element v of a pack; v is a constant wherever the call is unrolled.
template <class T>
__device__ __forceinline__ void put(Pack& p, int v, T value) {
  if constexpr (sizeof(T) == 4) {
    p.word[v] = bits(value);
  } else {
    p.word[v / 2] |= bits(value) << (16 * (v % 2));
  }
}

template <class T>
__device__ __forceinline__ Pack pack(const float (&f)[kVector<T>]) {
  Pack p{};
#pragma unroll
  for (int v = 0; v < kVector<T>; ++v) put(p, v, from_float<T>(f[v]));
  return p;
}

// a + b, rounded.
template <class T>
__device__ __forceinline__ Pack add_packs(const Pack& a, const Pack& b) {
  float f[kVector<T>], g[kVector<T>];
  unpack<T>(a, f);
  unpack<T>(b, g);
#pragma unroll
  for (int v = 0; v < kVector<T>; ++v) f[v] += g[v];
  return pack<T>(f);
}

// ---- 8 threads on a row of 8 * kVector columns --------------------------------------------------

// Where value v of a lane lies among the columns. Unaligned rows are dealt out element by element,
// so that neighbouring threads still read neighbouring addresses.
template <class T, bool ALIGNED>
__device__ __forceinline__ int column(int lane, int v) {
  return ALIGNED ? lane * kVector<T> + v : lane + kLanes * v;
}

// This lane's part of row[0 .. limit), zero beyond. ALIGNED: limit is a multiple of kVector.
template <class T, bool ALIGNED>
__device__ __forceinline__ Pack load_columns(const T* row, int lane, int limit) {
  Pack p{};
  if constexpr (ALIGNED) {
    if (lane * kVector<T> < limit) p = load_pack(row + lane * kVector<T>);
  } else {
#pragma unroll
    for (int v = 0; v < kVector<T>; ++v) {
      const int at = column<T, false>(lane, v);
      if (at < limit) put(p, v, row[at]);
    }
  }
  return p;
}

// KEEP: the next kernel reads it.
template <class T, bool ALIGNED, bool KEEP = false>
__device__ __forceinline__ void store_columns(T* row, int lane, int limit,
                                              const float (&f)[kVector<T>]) {
  if constexpr (ALIGNED) {
    if (lane * kVector<T> >= limit) return;
    const Pack v = pack<T>(f);
    KEEP ? keep_pack(row + lane * kVector<T>, v) : store_pack(row + lane * kVector<T>, v);
  } else {
#pragma unroll
    for (int v = 0; v < kVector<T>; ++v) {
      const int at = column<T, false>(lane, v);
      if (at < limit) row[at] = from_float<T>(f[v]);
    }
  }
}

// ---- arithmetic ---------------------------------------------------------------------------------

__device__ __forceinline__ float sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }

// Sum over 2^k neighbouring lanes, the same tree and so the same bits in each of them.
template <int WIDTH>
__device__ __forceinline__ float lane_sum(float v) {
#pragma unroll
  for (int mask = WIDTH / 2; mask > 0; mask /= 2) v += __shfl_xor_sync(kFullWarp, v, mask);
  return v;
}

// f(0) + ... + f(count - 1), in order, sixteen at a time: as fast, and its error grows far slower
// than that of one long chain of additions.
template <class F>
__device__ __forceinline__ float part_sum(int64_t count, F f) {
  constexpr int kGroup = 16;
  float sum = 0.0f;
  for (int64_t first = 0; first < count; first += kGroup) {
    float group = 0.0f;
    for (int64_t i = first; i < count && i < first + kGroup; ++i) group += f(i);
    sum += group;
  }
  return sum;
}

// Sum over the block, given to every thread; each warp adds its part in a fixed order.
template <int THREADS>
__device__ __forceinline__ float block_sum(float v) {
  struct Parts {
    float warp[THREADS / kWarp];
  };
  MEDSEG_SHARED(Parts, parts);
  v = lane_sum<kWarp>(v);
  __syncthreads();  // the parts of an earlier call may still be read
  if (threadIdx.x % kWarp == 0) parts.warp[threadIdx.x / kWarp] = v;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < THREADS / kWarp; ++w) sum += parts.warp[w];
  return sum;
}

}  // namespace medseg::cuda
