// ECA on NCHW: reduce_planes sums over hw, map_planes writes x * factor + shift.
#pragma once
#include "eca.cuh"

namespace medseg::cuda {
namespace {

// How many elements lie before the first 16-byte boundary, all of them if p and q never share one.
template <class T>
__device__ __forceinline__ int64_t scalar_head(const T* p, const T* q, int64_t length) {
  const uintptr_t a = reinterpret_cast<uintptr_t>(p), b = reinterpret_cast<uintptr_t>(q);
  if ((a - b) % 16 != 0) return length;
  const int64_t head = static_cast<int64_t>((16 - a % 16) % 16 / sizeof(T));
  return head < length ? head : length;
}

// This thread's share of the sum of the terms; `lanes` threads work on one run.
template <class T, Term TERM>
__device__ __forceinline__ float run_sum(const T* x, const T* y, T* summed, int64_t length,
                                         int lane, int lanes) {
  constexpr int V = kVector<T>;
  int64_t head = scalar_head(x, TERM == kOne ? x : y, length);
  if (TERM == kAdd && scalar_head<T>(x, summed, length) != head) head = length;
  const int64_t vectors = (length - head) / V;
  float acc[V] = {};
  for (int64_t i = lane; i < vectors; i += lanes * kUnroll) {
    Pack a[kUnroll] = {}, b[kUnroll] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = head + (i + u * lanes) * V;
      if (i + u * lanes < vectors) a[u] = load_pack(x + at);
      if (TERM != kOne && i + u * lanes < vectors) b[u] = load_pack(y + at);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if constexpr (TERM == kAdd) {
        a[u] = add_packs<T>(a[u], b[u]);
        if (i + u * lanes < vectors) keep_pack(summed + head + (i + u * lanes) * V, a[u]);
      }
      float f[V], g[V];
      unpack<T>(a[u], f);
      if (TERM == kDot) unpack<T>(b[u], g);
#pragma unroll
      for (int v = 0; v < V; ++v) acc[v] = TERM == kDot ? fmaf(f[v], g[v], acc[v]) : acc[v] + f[v];
    }
  }
  float sum = 0.0f;
  const auto add = [&](int64_t i) {
    if constexpr (TERM == kAdd) {
      summed[i] = from_float<T>(to_float(x[i]) + to_float(y[i]));
      sum += to_float(summed[i]);
    } else {
      sum += to_float(x[i]) * (TERM == kDot ? to_float(y[i]) : 1.0f);
    }
  };
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

// partial[plane, part] = sum over the part of x, x * y or x + y. GROUP threads own one part; reads
// every byte of x (and y) once, 16 at a time between the plane's unaligned ends.
template <class T, Term TERM, int GROUP>
__global__ void __launch_bounds__(kThreads)
    reduce_planes(const EcaPlan p, const T* x, const T* y, T* summed, float* partial) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / GROUP) + threadIdx.x / GROUP;
  const int lane = threadIdx.x % GROUP;
  const bool inside = item < p.n * p.c * p.parts;
  float sum = 0.0f;
  if (inside) {
    const int64_t plane = item / p.parts, start = item % p.parts * p.part;
    const int64_t length = p.hw - start < p.part ? p.hw - start : p.part;
    const T* row = x + plane / p.c * p.stride_n + plane % p.c * p.pitch + start;
    const int64_t dense = plane * p.hw + start;
    sum = run_sum<T, TERM>(row, TERM == kOne ? nullptr : y + dense,
                           TERM == kAdd ? summed + dense : nullptr, length, lane, GROUP);
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

// Factor and shift of a plane; each warp works them out for itself from the k neighbours' sums,
// which costs a few loads from L2 and saves a launch. The `first` threads save mean and gate.
template <bool BACKWARD>
__device__ __forceinline__ void plane_gate(const EcaPlan& p, const EcaGates& g, int64_t n,
                                           int64_t c, bool first, int lane, float* factor,
                                           float* shift) {
  const int64_t plane = n * p.c + c;
  const float sum = neighbour_sum<BACKWARD>(p, g, n, c) / static_cast<float>(p.hw);
  *factor = BACKWARD ? g.gate[plane] : sigmoid(sum + (g.bias.data ? load_param(g.bias, 0) : 0.0f));
  *shift = BACKWARD ? sum : -0.0f;  // adding -0 changes no bit, not even the sign of a zero
  if (BACKWARD || !first) return;
  const float mean = plane_mean(p, g, plane);
  if (lane == 0) g.pooled[plane] = mean, g.gate[plane] = *factor;
}

// out = x * gate, or BACKWARD: grad_x = grad_out * gate + ds / hw. GROUP threads own one part of
// one plane. Last plane first, see the top of eca.cu.
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
  float factor, shift;
  plane_gate<BACKWARD>(p, g, n, c, start == 0, lane, &factor, &shift);
  const int64_t length = p.hw - start < p.part ? p.hw - start : p.part;
  const T* row = x + n * p.stride_n + c * p.pitch + start;
  run_map(row, out + plane * p.hw + start, length, lane, GROUP, factor, shift);
}

}  // namespace
}  // namespace medseg::cuda
