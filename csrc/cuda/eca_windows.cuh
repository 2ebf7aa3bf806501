// ECA with the 2x2 max-pool behind its gate. Three passes over windows, each in either layout: kSum
// sums grad_out * (what the pool took of x), kPool writes what it takes, kSpread the gradient of x.
// The gate is never negative, so the largest value of a window is the largest gated one too.
#pragma once
#include "eca_pixels.cuh"
#include "eca_planes.cuh"

namespace medseg::cuda {
namespace {

enum Pass { kSum, kPool, kSpread };

// The maps of a pass; all but x and summed are dense.
template <class T>
struct EcaMaps {
  const T* x;
  const T* grad;    // (n, c, h / 2, w / 2)
  const T* summed;  // null, or what is added to the gradient of x
  int64_t summed_n, summed_pitch;
  T* out;
};

// i / d in 32 bits, which no plane that fits a card goes beyond: a call and spills are saved.
__device__ __forceinline__ int64_t quotient(int64_t i, int64_t d) {
  return static_cast<uint32_t>(i) / static_cast<uint32_t>(d);
}

// Takes value number k where max_pool2d would: the largest, the first of equals, the last NaN.
__device__ __forceinline__ void take(float value, int k, float gate, float* best, int* at) {
  const float gated = value * gate;
  if (gated != gated) value = gated;
  if (k == 0 || value > *best || value != value) *best = value, *at = k;
}

// ---- NCHW: a thread takes kVector columns of two rows -------------------------------------------

// The first `count` of COUNT values in float32, zero beyond; ALIGNED: all of them or none.
template <class T, int COUNT, bool ALIGNED>
__device__ __forceinline__ void load_run(const T* p, int count, float (&f)[COUNT]) {
  if constexpr (ALIGNED && COUNT == kVector<T>) {
    unpack<T>(count ? load_pack(p) : Pack{}, f);
  } else if constexpr (ALIGNED) {
    const uint2 q = count ? __ldg(reinterpret_cast<const uint2*>(p)) : uint2{};
    float wide[kVector<T>];
    unpack<T>(Pack{{q.x, q.y, 0, 0}}, wide);
#pragma unroll
    for (int v = 0; v < COUNT; ++v) f[v] = wide[v];
  } else {
#pragma unroll
    for (int v = 0; v < COUNT; ++v) f[v] = v < count ? to_float(p[v]) : 0.0f;
  }
}

template <class T, int COUNT, bool ALIGNED>
__device__ __forceinline__ void store_run(T* p, int count, const float (&f)[COUNT]) {
  if constexpr (ALIGNED && COUNT == kVector<T>) {
    if (count) store_pack(p, pack<T>(f));
  } else if constexpr (ALIGNED) {
    Pack q{};
#pragma unroll
    for (int v = 0; v < COUNT; ++v) put(q, v, from_float<T>(f[v]));
    if (count) __stcs(reinterpret_cast<uint2*>(p), uint2{q.word[0], q.word[1]});
  } else {
#pragma unroll
    for (int v = 0; v < COUNT; ++v)
      if (v < count) p[v] = from_float<T>(f[v]);
  }
}

// dx of the two rows of a run: dy * gate where at says so, and everywhere shift + summed.
template <class T, bool ALIGNED>
__device__ __forceinline__ void spread_run(const EcaPlan& p, int count, bool low, const int* at,
                                           const float* dy, float gate, float shift,
                                           const T* summed, T* out) {
  constexpr int V = kVector<T>;
  const int whole = low ? count / 2 : 0;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const int there = row == 0 || low ? count : 0;
    float f[V] = {};
    if (summed) load_run<T, V, ALIGNED>(summed + row * p.w, there, f);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const bool taken = v / 2 < whole && at[v / 2] == 2 * row + v % 2;
      f[v] += taken ? fmaf(dy[v / 2], gate, shift) : shift;
    }
    store_run<T, V, ALIGNED>(out + row * p.w, there, f);
  }
}

// Work on run `i` of a plane: kVector columns of rows 2y and 2y + 1, cut off at the edges.
template <class T, Pass PASS, bool ALIGNED>
__device__ __forceinline__ void window_run(const EcaPlan& p, int64_t i, const T* x, const T* grad,
                                           const T* summed, T* out, float gate, float shift,
                                           float* sum) {
  constexpr int V = kVector<T>, H = V / 2;
  const int64_t across = ceil_div(p.w, V), y = quotient(i, across), column = (i - y * across) * V;
  const int64_t pixel = 2 * y * p.w + column, window = y * (p.w / 2) + column / 2;
  const int count = static_cast<int>(p.w - column < V ? p.w - column : V);
  const bool low = 2 * y + 1 < p.h;
  const int whole = low ? count / 2 : 0;
  float a[V], b[V], best[H], dy[H];
  int at[H];
  load_run<T, V, ALIGNED>(x + pixel, count, a);
  load_run<T, V, ALIGNED>(x + pixel + p.w, low ? count : 0, b);
  if (PASS != kPool) load_run<T, H, ALIGNED>(grad + window, whole, dy);
#pragma unroll
  for (int k = 0; k < H; ++k) {
    take(a[2 * k], 0, gate, &best[k], &at[k]);
    take(a[2 * k + 1], 1, gate, &best[k], &at[k]);
    take(b[2 * k], 2, gate, &best[k], &at[k]);
    take(b[2 * k + 1], 3, gate, &best[k], &at[k]);
    if (PASS == kPool) best[k] *= gate;
    if (PASS == kSum && k < whole) *sum = fmaf(best[k], dy[k], *sum);
  }
  if (PASS == kPool) store_run<T, H, ALIGNED>(out + window, whole, best);
  if constexpr (PASS == kSpread) {
    if (summed) summed += pixel;
    spread_run<T, ALIGNED>(p, count, low, at, dy, gate, shift, summed, out + pixel);
  }
}

// GROUP threads own one part of the runs of one plane. kSum: partial[plane, part].
template <class T, Pass PASS, bool ALIGNED, int GROUP>
__global__ void __launch_bounds__(kThreads)
    windows_planes(const EcaPlan p, const EcaMaps<T> m, const EcaGates g, float* partial) {
  if (PASS == kSpread && blockIdx.x < static_cast<unsigned>(g.tap_blocks))
    return tap_gradient(p, g);
  const int parts = PASS == kSum ? p.parts : p.map_parts;
  const int64_t size = PASS == kSum ? p.part : p.map_part;
  const int64_t block = PASS == kSum ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
  const int64_t item = block * (kThreads / GROUP) + threadIdx.x / GROUP;
  const bool inside = item < p.n * p.c * parts;
  if (PASS != kSum && !inside) return;  // whole warps leave, and no barrier follows
  const int64_t plane = item / parts, first = item % parts * size;
  const int64_t n = plane / p.c, c = plane % p.c;
  const int64_t last = first + size < p.runs ? first + size : p.runs;
  const int lane = threadIdx.x % GROUP;
  float gate = 0.0f, shift = 0.0f, sum = 0.0f;
  if (PASS == kSum && inside) gate = g.gate[plane];
  if (PASS != kSum) plane_gate<PASS == kSpread>(p, g, n, c, first == 0, lane, &gate, &shift);
  if (inside) {
    const int64_t quarter = plane * (p.h / 2) * (p.w / 2);
    const T* x = m.x + n * p.stride_n + c * p.pitch;
    const T* grad = PASS == kPool ? nullptr : m.grad + quarter;
    const T* summed =
        PASS == kSpread && m.summed ? m.summed + n * m.summed_n + c * m.summed_pitch : nullptr;
    T* out = PASS == kSum ? nullptr : m.out + (PASS == kPool ? quarter : plane * p.hw);
    for (int64_t i = first + lane; i < last; i += GROUP)
      window_run<T, PASS, ALIGNED>(p, i, x, grad, summed, out, gate, shift, &sum);
  }
  if (PASS != kSum) return;
  sum = GROUP == kWarp ? lane_sum<kWarp>(sum) : block_sum<kThreads>(sum);
  if (inside && lane == 0) partial[item] = sum;
}

// ---- channels_last: 8 threads take a slab of channels of one window -----------------------------

template <class T, Pass PASS, bool ALIGNED>
__device__ __forceinline__ void window_pixels(const EcaPlan& p, int64_t i, const EcaMaps<T>& m,
                                              const PixelBlock& b, int lane, const float* gate,
                                              const float* shift, float* acc) {
  constexpr int V = kVector<T>;
  const int64_t across = ceil_div(p.w, 2), y = quotient(i, across), x = i - y * across;
  const int64_t pixel = 2 * (y * p.w + x), window = y * (p.w / 2) + x;
  const bool right = 2 * x + 1 < p.w, low = 2 * y + 1 < p.h;
  const auto limit = [&](int k) { return (k % 2 && !right) || (k / 2 && !low) ? 0 : b.limit; };
  const auto place = [&](int k) { return pixel + k / 2 * p.w + k % 2; };
  const int whole = right && low ? b.limit : 0;
  const int64_t quarter = (b.n * (p.h / 2) * (p.w / 2) + window) * p.c + b.channel;
  Pack packs[4], gradient{};
#pragma unroll
  for (int k = 0; k < 4; ++k)
    packs[k] = load_columns<T, ALIGNED>(m.x + b.n * p.stride_n + place(k) * p.pitch + b.channel,
                                        lane, limit(k));
  if (PASS != kPool) gradient = load_columns<T, ALIGNED>(m.grad + quarter, lane, whole);
  float best[V], dy[V];
  int at[V];
  unpack<T>(gradient, dy);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    float f[V];
    unpack<T>(packs[k], f);
#pragma unroll
    for (int v = 0; v < V; ++v) take(f[v], k, gate[v], &best[v], &at[v]);
  }
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (PASS == kSum && whole) acc[v] = fmaf(best[v], dy[v], acc[v]);
    if (PASS == kPool) best[v] *= gate[v];
  }
  if (PASS == kPool) store_columns<T, ALIGNED>(m.out + quarter, lane, whole, best);
  if constexpr (PASS == kSpread) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float f[V] = {};
      const T* summed = m.summed + b.n * m.summed_n + place(k) * m.summed_pitch + b.channel;
      if (m.summed) unpack<T>(load_columns<T, ALIGNED>(summed, lane, limit(k)), f);
#pragma unroll
      for (int v = 0; v < V; ++v)
        f[v] += whole && at[v] == k ? fmaf(dy[v], gate[v], shift[v]) : shift[v];
      T* out = m.out + (b.n * p.hw + place(k)) * p.c + b.channel;
      store_columns<T, ALIGNED>(out, lane, limit(k), f);
    }
  }
}

// A block owns one slab of channels of some windows of an image.
template <class T, Pass PASS, bool ALIGNED>
__global__ void __launch_bounds__(kThreads)
    windows_pixels(const EcaPlan p, const EcaMaps<T> m, const EcaGates g, float* partial) {
  constexpr int V = kVector<T>;
  MEDSEG_DYNAMIC_SHARED(float, shared);
  if (PASS == kSpread && blockIdx.x < static_cast<unsigned>(g.tap_blocks))
    return tap_gradient(p, g);
  const PixelBlock b =
      PASS == kSum ? pixel_block(p, blockIdx.x, p.parts, p.part, p.runs)
                   : pixel_block(p, gridDim.x - 1 - blockIdx.x, p.map_parts, p.map_part, p.runs);
  const int lane = threadIdx.x % kLanes, row = threadIdx.x / kLanes;
  float gate[V] = {}, shift[V] = {}, acc[V] = {};
  if constexpr (PASS == kSum) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int at = column<T, ALIGNED>(lane, v);
      if (at < b.limit) gate[v] = g.gate[b.n * p.c + b.channel + at];
    }
  } else {
    slab_gate<T, PASS == kSpread, ALIGNED>(p, g, b, shared, gate, shift);
  }
  for (int64_t i = b.first + row; i < b.last; i += kRows)
    window_pixels<T, PASS, ALIGNED>(p, i, m, b, lane, gate, shift, acc);
  if constexpr (PASS == kSum) store_slab_sum<T, ALIGNED>(p, b, acc, partial);
}

}  // namespace
}  // namespace medseg::cuda
