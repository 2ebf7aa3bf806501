// The kernels of ECA: reduce_* sum over hw, map_* write x * factor + shift.
#pragma once
#include <algorithm>

#include "common.cuh"

namespace medseg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = kThreads / kLanes;  // pixels a block reads side by side in channels_last
constexpr int kUnroll = 4;                // independent 16-byte loads in flight per thread

// A plane (channels_last: an image) is pooled in `parts` of `part` positions and mapped in
// `map_parts` of `map_part`; `slab` channels make one 128-byte line.
struct EcaPlan {
  int64_t n, c, hw, stride_n, pitch;
  int64_t part, map_part;
  int parts, map_parts;
  int slab, slabs;
  int taps, tap_slices;
};

struct EcaGates {
  Param weight, bias;
  const float* partial;  // (n, c, parts): sums of x, or in backward of grad_out * x
  float* pooled;         // (n, c)
  float* gate;           // (n, c)
  float* slices;         // (taps + 1, tap_slices)
  float* grad_weight;
  float* grad_bias;
  int tap_blocks;  // leading blocks of the map launch that sum the gradients of the taps
};

// ---- planes (NCHW) ------------------------------------------------------------------------------

// How many elements lie before the first 16-byte boundary, all of them if p and q never share one.
template <class T>
__device__ __forceinline__ int64_t scalar_head(const T* p, const T* q, int64_t length) {
  const uintptr_t a = reinterpret_cast<uintptr_t>(p), b = reinterpret_cast<uintptr_t>(q);
  if ((a - b) % 16 != 0) return length;
  const int64_t head = static_cast<int64_t>((16 - a % 16) % 16 / sizeof(T));
  return head < length ? head : length;
}

// This thread's share of sum x[i] (DOT: x[i] * y[i]); `lanes` threads work on one run.
template <class T, bool DOT>
__device__ __forceinline__ float run_sum(const T* x, const T* y, int64_t length, int lane,
                                         int lanes) {
  constexpr int V = kVector<T>;
  const int64_t head = scalar_head(x, DOT ? y : x, length);
  const int64_t vectors = (length - head) / V;
  float acc[V] = {};
  for (int64_t i = lane; i < vectors; i += lanes * kUnroll) {
    Pack a[kUnroll] = {}, b[kUnroll] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = head + (i + u * lanes) * V;
      if (i + u * lanes < vectors) a[u] = load_pack(x + at);
      if (DOT && i + u * lanes < vectors) b[u] = load_pack(y + at);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float f[V], g[V];
      unpack<T>(a[u], f);
      if (DOT) unpack<T>(b[u], g);
#pragma unroll
      for (int v = 0; v < V; ++v) acc[v] = DOT ? fmaf(f[v], g[v], acc[v]) : acc[v] + f[v];
    }
  }
  float sum = 0.0f;
  const auto add = [&](int64_t i) { sum += to_float(x[i]) * (DOT ? to_float(y[i]) : 1.0f); };
#pragma unroll 4
  for (int64_t i = lane; i < head; i += lanes) add(i);
  for (int64_t i = head + vectors * V + lane; i < length; i += lanes) add(i);
#pragma unroll
  for (int v = 0; v < V; ++v) sum += acc[v];
  return sum;
}

// out[i] = x[i] * factor + shift.
template <class T>
__device__ __forceinline__ void run_map(const T* x, T* out, int64_t length, int lane, int lanes,
                                        float factor, float shift) {
  constexpr int V = kVector<T>;
  const int64_t head = scalar_head<T>(x, out, length);
  const int64_t vectors = (length - head) / V;
  for (int64_t i = lane; i < vectors; i += lanes * kUnroll) {
    Pack a[kUnroll] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      if (i + u * lanes < vectors) a[u] = load_pack(x + head + (i + u * lanes) * V);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float f[V];
      unpack<T>(a[u], f);
#pragma unroll
      for (int v = 0; v < V; ++v) f[v] = fmaf(f[v], factor, shift);
      if (i + u * lanes < vectors) store_pack(out + head + (i + u * lanes) * V, pack<T>(f));
    }
  }
  const auto one = [&](int64_t i) { out[i] = from_float<T>(fmaf(to_float(x[i]), factor, shift)); };
#pragma unroll 4
  for (int64_t i = lane; i < head; i += lanes) one(i);
  for (int64_t i = head + vectors * V + lane; i < length; i += lanes) one(i);
}

// partial[plane, part] = sum over the part of x (DOT: x * y). GROUP threads own one part; reads
// every byte of x (and y) once, 16 at a time between the plane's unaligned ends.
template <class T, bool DOT, int GROUP>
__global__ void __launch_bounds__(kThreads)
    reduce_planes(const EcaPlan p, const T* x, const T* y, float* partial) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / GROUP) + threadIdx.x / GROUP;
  const int lane = threadIdx.x % GROUP;
  const bool inside = item < p.n * p.c * p.parts;
  float sum = 0.0f;
  if (inside) {
    const int64_t plane = item / p.parts, start = item % p.parts * p.part;
    const int64_t length = p.hw - start < p.part ? p.hw - start : p.part;
    const T* row = x + plane / p.c * p.stride_n + plane % p.c * p.pitch + start;
    sum = run_sum<T, DOT>(row, DOT ? y + plane * p.hw + start : nullptr, length, lane, GROUP);
  }
  sum = GROUP == kWarp ? lane_sum<kWarp>(sum) : block_sum<kThreads>(sum);
  if (inside && lane == 0) partial[item] = sum;
}

// sum over taps j of w[j] * v[neighbour j of c], where v is the mean of a plane, or in backward
// dz = dg * g * (1 - g). A whole warp must call it; every lane gets the sum.
template <bool BACKWARD>
__device__ __forceinline__ float neighbour_sum(const EcaPlan& p, const EcaGates& g, int64_t n,
                                               int64_t c) {
  float sum = 0.0f;
  for (int i = threadIdx.x % kWarp; i < p.taps * p.parts; i += kWarp) {
    const int j = i / p.parts, offset = j - p.taps / 2;
    const int64_t other = BACKWARD ? c - offset : c + offset;
    if (other < 0 || other >= p.c) continue;
    const int64_t plane = n * p.c + other;
    float term = load_param(g.weight, j) * g.partial[plane * p.parts + (i - j * p.parts)];
    if (BACKWARD) term *= g.gate[plane] * (1.0f - g.gate[plane]);
    sum += term;
  }
  return lane_sum<kWarp>(sum);
}

// The mean over hw of plane (n, c); a whole warp must call it.
__device__ __forceinline__ float plane_mean(const EcaPlan& p, const EcaGates& g, int64_t plane) {
  float sum = 0.0f;
  for (int i = threadIdx.x % kWarp; i < p.parts; i += kWarp) sum += g.partial[plane * p.parts + i];
  return lane_sum<kWarp>(sum) / static_cast<float>(p.hw);
}

__device__ void tap_gradient(const EcaPlan& p, const EcaGates& g);

// out = x * gate, or BACKWARD: grad_x = grad_out * gate + ds / hw. GROUP threads own one part of
// one plane; each warp works its factor out for itself from the k neighbours' sums, which costs a
// few loads from L2 and saves a launch. Last plane first, see the top of eca.cu.
template <class T, bool BACKWARD, int GROUP>
__global__ void __launch_bounds__(kThreads)
    map_planes(const EcaPlan p, const T* x, T* out, const EcaGates g) {
  if (BACKWARD && blockIdx.x < static_cast<unsigned>(g.tap_blocks)) return tap_gradient(p, g);
  const int64_t block = gridDim.x - 1 - blockIdx.x;
  const int64_t item = block * (kThreads / GROUP) + threadIdx.x / GROUP;
  if (item >= p.n * p.c * p.parts) return;  // whole warps leave, and no barrier follows
  const int64_t plane = item / p.parts, start = item % p.parts * p.part;
  const int64_t n = plane / p.c, c = plane % p.c;
  const int lane = threadIdx.x % GROUP;
  const float sum = neighbour_sum<BACKWARD>(p, g, n, c) / static_cast<float>(p.hw);
  float factor, shift = -0.0f;  // adding -0 changes no bit, not even the sign of a zero
  if constexpr (BACKWARD) {
    factor = g.gate[plane];
    shift = sum;
  } else {
    factor = sigmoid(sum + (g.bias.data ? load_param(g.bias, 0) : 0.0f));
    if (start == 0) {
      const float mean = plane_mean(p, g, plane);
      if (lane == 0) g.pooled[plane] = mean, g.gate[plane] = factor;
    }
  }
  const int64_t length = p.hw - start < p.part ? p.hw - start : p.part;
  const T* row = x + n * p.stride_n + c * p.pitch + start;
  run_map(row, out + plane * p.hw + start, length, lane, GROUP, factor, shift);
}

// ---- pixels (channels_last) ---------------------------------------------------------------------

struct PixelBlock {
  int64_t n, first, last;  // pixels
  int64_t channel;         // the first of the slab
  int limit;               // channels from there
  int part;
};

// Slabs vary fastest, so that blocks that run together read whole pixels between them.
__device__ __forceinline__ PixelBlock pixel_block(const EcaPlan& p, int64_t block, int parts,
                                                  int64_t part) {
  PixelBlock b;
  b.channel = block % p.slabs * p.slab;
  b.part = static_cast<int>(block / p.slabs % parts);
  b.n = block / p.slabs / parts;
  b.first = b.part * part;
  b.last = b.first + part < p.hw ? b.first + part : p.hw;
  b.limit = static_cast<int>(p.c - b.channel);
  return b;
}

// partial[n, c, part] = sum over the part's pixels of x (DOT: x * y). A block owns one slab of
// channels, 8 threads on its 128 bytes and 32 pixels side by side; reads x (and y) once.
template <class T, bool DOT, bool ALIGNED>
__global__ void __launch_bounds__(kThreads)
    reduce_pixels(const EcaPlan p, const T* x, const T* y, float* partial) {
  constexpr int V = kVector<T>, COLUMNS = kLanes * V;
  struct Rows {
    float sum[kRows][COLUMNS + 1];
  };
  MEDSEG_SHARED(Rows, rows);
  const PixelBlock b = pixel_block(p, blockIdx.x, p.parts, p.part);
  const int lane = threadIdx.x % kLanes, row = threadIdx.x / kLanes;
  const T* xs = x + b.n * p.stride_n + b.channel;
  const T* ys = DOT ? y + b.n * p.hw * p.c + b.channel : nullptr;
  float acc[V] = {};
  for (int64_t i = b.first + row; i < b.last; i += kRows * kUnroll) {
    Pack f[kUnroll], g[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = i + u * kRows;
      const int limit = at < b.last ? b.limit : 0;
      f[u] = load_columns<T, ALIGNED>(xs + at * p.pitch, lane, limit);
      if (DOT) g[u] = load_columns<T, ALIGNED>(ys + at * p.c, lane, limit);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float a[V], c[V];
      unpack<T>(f[u], a);
      if (DOT) unpack<T>(g[u], c);
#pragma unroll
      for (int v = 0; v < V; ++v) acc[v] = DOT ? fmaf(a[v], c[v], acc[v]) : acc[v] + a[v];
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v) rows.sum[row][column<T, ALIGNED>(lane, v)] = acc[v];
  __syncthreads();
  const int t = threadIdx.x;
  if (t >= COLUMNS || t >= b.limit) return;
  float sum = 0.0f;
  for (int r = 0; r < kRows; ++r) sum += rows.sum[r][t];
  partial[(b.n * p.c + b.channel + t) * p.parts + b.part] = sum;
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

// The same map as map_planes; a block owns one slab of channels of some pixels.
template <class T, bool BACKWARD, bool ALIGNED>
__global__ void __launch_bounds__(kThreads)
    map_pixels(const EcaPlan p, const T* x, T* out, const EcaGates g) {
  constexpr int V = kVector<T>;
  MEDSEG_DYNAMIC_SHARED(float, shared);
  if (BACKWARD && blockIdx.x < static_cast<unsigned>(g.tap_blocks)) return tap_gradient(p, g);
  const PixelBlock b = pixel_block(p, gridDim.x - 1 - blockIdx.x, p.map_parts, p.map_part);
  float* const factors = shared;
  float* const shifts = shared + p.slab;
  load_neighbours<BACKWARD>(p, g, b, shared + 2 * p.slab);
  __syncthreads();
  slab_gates<BACKWARD>(p, g, b, shared + 2 * p.slab, factors, shifts);
  __syncthreads();
  const int lane = threadIdx.x % kLanes, row = threadIdx.x / kLanes;
  float factor[V] = {}, shift[V] = {};
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int at = column<T, ALIGNED>(lane, v);
    if (at < b.limit) factor[v] = factors[at], shift[v] = shifts[at];
  }
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

// ---- gradients of the taps ----------------------------------------------------------------------

__device__ __forceinline__ void store_tap(const EcaPlan& p, const EcaGates& g, int j, float sum) {
  if (threadIdx.x != 0) return;
  if (j < p.taps) g.grad_weight[j] = sum;
  if (j == p.taps) g.grad_bias[0] = sum;
}

// grad_weight[j] = sum over (n, c) of dz[n, c] * mean[n, c + j - k/2]; j = taps: grad_bias = sum
// dz. A block owns one tap and one slice of the planes.
__device__ void tap_gradient(const EcaPlan& p, const EcaGates& g) {
  const int j = blockIdx.x % (p.taps + 1), slice = blockIdx.x / (p.taps + 1);
  const int64_t planes = p.n * p.c, size = ceil_div(planes, p.tap_slices);
  const int64_t last = (slice + 1) * size < planes ? (slice + 1) * size : planes;
  const int64_t offset = j < p.taps ? j - p.taps / 2 : 0;
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t plane = slice * size + threadIdx.x; plane < last; plane += kThreads) {
    const int64_t other = plane % p.c + offset;
    if (other < 0 || other >= p.c) continue;
    float dg = 0.0f;
    for (int s = 0; s < p.parts; ++s) dg += g.partial[plane * p.parts + s];
    const float dz = dg * g.gate[plane] * (1.0f - g.gate[plane]);
    sum = fmaf(dz, j < p.taps ? g.pooled[plane + offset] : 1.0f, sum);
  }
  sum = block_sum<kThreads>(sum);
  if (p.tap_slices == 1) return store_tap(p, g, j, sum);
  if (threadIdx.x == 0) g.slices[static_cast<int64_t>(j) * p.tap_slices + slice] = sum;
}

// The slices of tap_gradient added up, a block for each tap.
__global__ void __launch_bounds__(kThreads) add_slices(const EcaPlan p, const EcaGates g) {
  float sum = 0.0f;
  for (int i = threadIdx.x; i < p.tap_slices; i += kThreads)
    sum += g.slices[static_cast<int64_t>(blockIdx.x) * p.tap_slices + i];
  store_tap(p, g, blockIdx.x, block_sum<kThreads>(sum));
}

}  // namespace
}  // namespace medseg::cuda
