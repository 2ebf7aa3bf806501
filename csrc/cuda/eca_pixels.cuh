// ECA on channels_last: reduce_pixels sums over hw, map_pixels writes x * factor + shift.
#pragma once
#include "eca.cuh"

namespace medseg::cuda {
namespace {

struct PixelBlock {
  int64_t n, first, last;  // pixels
  int64_t channel;         // the first of the slab
  int limit;               // channels from there
  int part;
};

// Slabs vary fastest, so that blocks that run together read whole pixels between them.
__device__ __forceinline__ PixelBlock pixel_block(const EcaPlan& p, int64_t block, int parts,
                                                  int64_t part, int64_t length) {
  PixelBlock b;
  b.channel = block % p.slabs * p.slab;
  b.part = static_cast<int>(block / p.slabs % parts);
  b.n = block / p.slabs / parts;
  b.first = b.part * part;
  b.last = b.first + part < length ? b.first + part : length;
  b.limit = static_cast<int>(p.c - b.channel);
  return b;
}

// partial[n, c, part] = the sum of acc over the pixels side by side in the block.
template <class T, bool ALIGNED>
__device__ __forceinline__ void store_slab_sum(const EcaPlan& p, const PixelBlock& b,
                                               const float (&acc)[kVector<T>], float* partial) {
  constexpr int V = kVector<T>, COLUMNS = kLanes * V;
  struct Rows {
    float sum[kRows][COLUMNS + 1];
  };
  MEDSEG_SHARED(Rows, rows);
  const int lane = threadIdx.x % kLanes, row = threadIdx.x / kLanes;
#pragma unroll
  for (int v = 0; v < V; ++v) rows.sum[row][column<T, ALIGNED>(lane, v)] = acc[v];
  __syncthreads();
  const int t = threadIdx.x;
  if (t >= COLUMNS || t >= b.limit) return;
  float sum = 0.0f;
  for (int r = 0; r < kRows; ++r) sum += rows.sum[r][t];
  partial[(b.n * p.c + b.channel + t) * p.parts + b.part] = sum;
}

// partial[n, c, part] = sum over the part's pixels of x, x * y or x + y. A block owns one slab of
// channels, 8 threads on its 128 bytes and 32 pixels side by side; reads x (and y) once.
template <class T, Term TERM, bool ALIGNED>
__global__ void __launch_bounds__(kThreads)
    reduce_pixels(const EcaPlan p, const T* x, const T* y, T* summed, float* partial) {
  constexpr int V = kVector<T>;
  const PixelBlock b = pixel_block(p, blockIdx.x, p.parts, p.part, p.hw);
  const int lane = threadIdx.x % kLanes, row = threadIdx.x / kLanes;
  const T* xs = x + b.n * p.stride_n + b.channel;
  const int64_t dense = b.n * p.hw * p.c + b.channel;
  float acc[V] = {};
  for (int64_t i = b.first + row; i < b.last; i += kRows * kUnroll) {
    Pack f[kUnroll], g[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = i + u * kRows;
      const int limit = at < b.last ? b.limit : 0;
      f[u] = load_columns<T, ALIGNED>(xs + at * p.pitch, lane, limit);
      if (TERM != kOne) g[u] = load_columns<T, ALIGNED>(y + dense + at * p.c, lane, limit);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = i + u * kRows;
      float a[V], c[V];
      if constexpr (TERM == kAdd) {
        f[u] = add_packs<T>(f[u], g[u]);
        unpack<T>(f[u], a);
        store_columns<T, ALIGNED, true>(summed + dense + at * p.c, lane, at < b.last ? b.limit : 0,
                                        a);
      }
      unpack<T>(f[u], a);
      if (TERM == kDot) unpack<T>(g[u], c);
#pragma unroll
      for (int v = 0; v < V; ++v) acc[v] = TERM == kDot ? fmaf(a[v], c[v], acc[v]) : acc[v] + a[v];
    }
  }
  store_slab_sum<T, ALIGNED>(p, b, acc, partial);
}

// What the taps are applied to, for channels first - half .. first + slab + half of image n:
// the mean over hw, or in backward dz = dg * g * (1 - g); zero outside the map. 8 threads a
// channel.
template <bool BACKWARD>
__device__ __forceinline__ void load_neighbours(const EcaPlan& p, const EcaGates& g,
                                                const PixelBlock& b, float* values) {
  const int count = p.slab + p.taps - 1;
  for (int base = 0; base < count; base += kRows) {
    const int i = base + threadIdx.x / kLanes;
    const int64_t channel = b.channel - p.taps / 2 + i;
    const bool inside = i < count && channel >= 0 && channel < p.c;
    const int64_t plane = b.n * p.c + channel;
    float sum = 0.0f;
    for (int s = threadIdx.x % kLanes; inside && s < p.parts; s += kLanes)
      sum += g.partial[plane * p.parts + s];
    sum = lane_sum<kLanes>(sum);
    if (BACKWARD && inside) sum *= g.gate[plane] * (1.0f - g.gate[plane]);
    if (i < count && threadIdx.x % kLanes == 0)
      values[i] = BACKWARD ? sum : sum / static_cast<float>(p.hw);
  }
}

// factor and shift of each channel of the slab; the block of the first part saves mean and gate.
template <bool BACKWARD>
__device__ __forceinline__ void slab_gates(const EcaPlan& p, const EcaGates& g, const PixelBlock& b,
                                           const float* values, float* factor, float* shift) {
  const int t = threadIdx.x;
  if (t >= p.slab || t >= b.limit) return;
  float z = BACKWARD || !g.bias.data ? 0.0f : load_param(g.bias, 0);
  for (int j = 0; j < p.taps; ++j)
    z = fmaf(load_param(g.weight, j), values[BACKWARD ? t + p.taps - 1 - j : t + j], z);
  const int64_t plane = b.n * p.c + b.channel + t;
  factor[t] = BACKWARD ? g.gate[plane] : sigmoid(z);
  shift[t] = BACKWARD ? z / static_cast<float>(p.hw) : -0.0f;
  if (!BACKWARD && b.part == 0) g.pooled[plane] = values[t + p.taps / 2], g.gate[plane] = factor[t];
}

// The factor and the shift of this thread's channels.
template <class T, bool BACKWARD, bool ALIGNED>
__device__ __forceinline__ void slab_gate(const EcaPlan& p, const EcaGates& g, const PixelBlock& b,
                                          float* shared, float (&factor)[kVector<T>],
                                          float (&shift)[kVector<T>]) {
  float* const factors = shared;
  float* const shifts = shared + p.slab;
  load_neighbours<BACKWARD>(p, g, b, shared + 2 * p.slab);
  __syncthreads();
  slab_gates<BACKWARD>(p, g, b, shared + 2 * p.slab, factors, shifts);
  __syncthreads();
#pragma unroll
  for (int v = 0; v < kVector<T>; ++v) {
    const int at = column<T, ALIGNED>(threadIdx.x % kLanes, v);
    if (at < b.limit) factor[v] = factors[at], shift[v] = shifts[at];
  }
}

// The same map as map_planes; a block owns one slab of channels of some pixels.
template <class T, bool BACKWARD, bool ALIGNED>
__global__ void __launch_bounds__(kThreads)
    map_pixels(const EcaPlan p, const T* x, T* out, const EcaGates g) {
  constexpr int V = kVector<T>;
  MEDSEG_DYNAMIC_SHARED(float, shared);
  if (BACKWARD && blockIdx.x < static_cast<unsigned>(g.tap_blocks)) return tap_gradient(p, g);
  const PixelBlock b = pixel_block(p, gridDim.x - 1 - blockIdx.x, p.map_parts, p.map_part, p.hw);
  float factor[V] = {}, shift[V] = {};
  slab_gate<T, BACKWARD, ALIGNED>(p, g, b, shared, factor, shift);
  const int lane = threadIdx.x % kLanes, row = threadIdx.x / kLanes;
  const T* xs = x + b.n * p.stride_n + b.channel;
  T* outs = out + b.n * p.hw * p.c + b.channel;
  for (int64_t i = b.first + row; i < b.last; i += kRows * kUnroll) {
    Pack a[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      a[u] = load_columns<T, ALIGNED>(xs + (i + u * kRows) * p.pitch, lane,
                                      i + u * kRows < b.last ? b.limit : 0);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float f[V];
      unpack<T>(a[u], f);
#pragma unroll
      for (int v = 0; v < V; ++v) f[v] = fmaf(f[v], factor[v], shift[v]);
      if (i + u * kRows < b.last)
        store_columns<T, ALIGNED>(outs + (i + u * kRows) * p.c, lane, b.limit, f);
    }
  }
}

}  // namespace
}  // namespace medseg::cuda
