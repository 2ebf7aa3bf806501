// Split attention on NCHW: what moves whole maps. A group of threads, a warp for small planes and
// else the whole block, owns the same part of a plane in every split, so that what the splits share
// is read or written once.
#include "split.cuh"

namespace medseg::cuda {
namespace {

struct PlanePart {
  int64_t n, c, start, length;
};

__device__ __forceinline__ PlanePart plane_part(const Split& t, int64_t item, int parts,
                                                int64_t part) {
  const int64_t plane = item / parts, start = item % parts * part;
  return {plane / t.c, plane % t.c, start, t.hw - start < part ? t.hw - start : part};
}

template <class T>
__device__ __forceinline__ const T* x_row(const Split& t, const PlanePart& p, int r) {
  return static_cast<const T*>(t.x) + p.n * t.stride_n + (r * t.c + p.c) * t.pitch + p.start;
}
template <class T>
__device__ __forceinline__ const T* grad_row(const Split& t, const PlanePart& p) {
  return static_cast<const T*>(t.grad) + (p.n * t.c + p.c) * t.hw + p.start;
}

// Elements before the first 16-byte boundary that q has in common with p and the rows `step`,
// 2 * step, ... behind p; all of them if they have none.
template <class T>
__device__ __forceinline__ int64_t scalar_head(const T* p, int64_t step, const T* q,
                                               int64_t length) {
  const uintptr_t a = reinterpret_cast<uintptr_t>(p), b = reinterpret_cast<uintptr_t>(q);
  if ((a - b) % 16 != 0 || step * static_cast<int64_t>(sizeof(T)) % 16 != 0) return length;
  const int64_t head = static_cast<int64_t>((16 - a % 16) % 16 / sizeof(T));
  return head < length ? head : length;
}

// Calls one(i) for this lane's elements before `head` and behind the last whole run of kVector
// from there on.
template <class T, class O>
__device__ __forceinline__ void for_scalars(int64_t head, int64_t length, int lane, int lanes,
                                            O one) {
  const int64_t tail = head + (length - head) / kVector<T> * kVector<T>;
  for (int64_t i = lane; i < head; i += lanes) one(i);
  for (int64_t i = tail + lane; i < length; i += lanes) one(i);
}

// This lane's share of the sum of affine(x[i]).
template <class T>
__device__ __forceinline__ float run_sum(const T* x, int64_t length, int lane, int lanes,
                                         const Affine& affine) {
  constexpr int V = kVector<T>, U = 4;
  const int64_t head = scalar_head(x, 0, x, length), vectors = (length - head) / V;
  float acc[V] = {};
  for (int64_t i = lane; i < vectors; i += lanes * U) {
    Pack a[U] = {};
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (i + u * lanes < vectors) a[u] = load_pack(x + head + (i + u * lanes) * V);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float f[V];
      unpack<T>(a[u], f);
      if (i + u * lanes < vectors)
#pragma unroll
        for (int v = 0; v < V; ++v) acc[v] += affine(f[v]);
    }
  }
  float sum = 0.0f;
  for_scalars<T>(head, length, lane, lanes, [&](int64_t i) { sum += affine(to_float(x[i])); });
#pragma unroll
  for (int v = 0; v < V; ++v) sum += acc[v];
  return sum;
}

// sums[n, c, part] = sum over the part and over the splits of u.
template <class T, int GROUP>
__global__ void __launch_bounds__(kThreads) pool_planes(const __grid_constant__ Split t) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / GROUP) + threadIdx.x / GROUP;
  const int lane = threadIdx.x % GROUP;
  const bool inside = item < t.n * t.c * t.parts;
  float sum = 0.0f;
  if (inside) {
    const PlanePart p = plane_part(t, item, t.parts, t.part);
    for (int r = 0; r < t.radix; ++r)
      sum += run_sum(x_row<T>(t, p, r), p.length, lane, GROUP, affine_of(t, r * t.c + p.c, 1.0f));
  }
  sum = GROUP == kWarp ? lane_sum<kWarp>(sum) : block_sum<kThreads>(sum);
  if (inside && lane == 0) t.sums[item] = sum;
}

// out = sum over the splits of a * u. Last plane first: towards what the pool left in L2.
template <class T, int R, int GROUP>
__global__ void __launch_bounds__(kThreads) combine_planes(const __grid_constant__ Split t) {
  constexpr int V = kVector<T>, U = kUnroll<R>;
  const int64_t block = gridDim.x - 1 - blockIdx.x;
  const int64_t item = block * (kThreads / GROUP) + threadIdx.x / GROUP;
  if (item >= t.n * t.c * t.parts) return;  // whole warps leave, and no barrier follows
  const PlanePart p = plane_part(t, item, t.parts, t.part);
  const int lane = threadIdx.x % GROUP;
  Affine affine[R] = {};
#pragma unroll
  for (int r = 0; r < R; ++r)
    if (r < t.radix) affine[r] = affine_of(t, r * t.c + p.c, attention_of(t, p.n, r, p.c));
  const T* x = x_row<T>(t, p, 0);
  const int64_t step = R == 1 ? 0 : t.c * t.pitch;
  T* const out = static_cast<T*>(t.mapped) + (p.n * t.c + p.c) * t.hw + p.start;
  const int64_t head = scalar_head<T>(x, step, out, p.length), vectors = (p.length - head) / V;
  for (int64_t i = lane; i < vectors; i += GROUP * U) {
    Pack a[U][R] = {};
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int r = 0; r < R; ++r)
        if (r < t.radix && i + u * GROUP < vectors)
          a[u][r] = load_pack(x + r * step + head + (i + u * GROUP) * V);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float sum[V] = {}, f[V];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        unpack<T>(a[u][r], f);
        if (r < t.radix)
#pragma unroll
          for (int v = 0; v < V; ++v) sum[v] += affine[r](f[v]);
      }
      if (i + u * GROUP < vectors) store_pack(out + head + (i + u * GROUP) * V, pack<T>(sum));
    }
  }
  for_scalars<T>(head, p.length, lane, GROUP, [&](int64_t i) {
    float sum = 0.0f;
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (r < t.radix) sum += affine[r](to_float(x[r * step + i]));
    out[i] = from_float<T>(sum);
  });
}

// sums[n, r * c + c, part] = sum over the part of grad * x.
template <class T, int R, int GROUP>
__global__ void __launch_bounds__(kThreads) dot_planes(const __grid_constant__ Split t) {
  constexpr int V = kVector<T>, U = kUnroll<R>;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / GROUP) + threadIdx.x / GROUP;
  const int lane = threadIdx.x % GROUP;
  const bool inside = item < t.n * t.c * t.parts;
  float sum[R] = {};
  PlanePart p{};
  if (inside) {
    p = plane_part(t, item, t.parts, t.part);
    const T* const x = x_row<T>(t, p, 0);
    const T* const grad = grad_row<T>(t, p);
    const int64_t step = R == 1 ? 0 : t.c * t.pitch;
    const int64_t head = scalar_head(x, step, grad, p.length), vectors = (p.length - head) / V;
    float acc[R][V] = {};
    for (int64_t i = lane; i < vectors; i += GROUP * U) {
      Pack a[U][R] = {}, b[U] = {};
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (i + u * GROUP >= vectors) continue;
        const int64_t at = head + (i + u * GROUP) * V;
        b[u] = load_pack(grad + at);
#pragma unroll
        for (int r = 0; r < R; ++r)
          if (r < t.radix) a[u][r] = load_pack(x + r * step + at);
      }
#pragma unroll
      for (int u = 0; u < U; ++u) {
        float f[V], g[V];
        unpack<T>(b[u], g);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          unpack<T>(a[u][r], f);
#pragma unroll
          for (int v = 0; v < V; ++v) acc[r][v] = fmaf(f[v], g[v], acc[r][v]);
        }
      }
    }
    for_scalars<T>(head, p.length, lane, GROUP, [&](int64_t i) {
      const float g = to_float(grad[i]);
#pragma unroll
      for (int r = 0; r < R; ++r)
        if (r < t.radix) sum[r] = fmaf(g, to_float(x[r * step + i]), sum[r]);
    });
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int v = 0; v < V; ++v) sum[r] += acc[r][v];
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (r >= t.radix) break;
    const float all = GROUP == kWarp ? lane_sum<kWarp>(sum[r]) : block_sum<kThreads>(sum[r]);
    const int64_t row = (p.n * t.radix + r) * t.c + p.c;
    if (inside && lane == 0) t.sums[row * t.parts + item % t.parts] = all;
  }
}

// grad_x = grad * a + ds. Last plane first: towards the grad that the dot left in L2.
template <class T, int R, int GROUP>
__global__ void __launch_bounds__(kThreads) spread_planes(const __grid_constant__ Split t) {
  constexpr int V = kVector<T>, U = kUnroll<R>;
  const int64_t block = gridDim.x - 1 - blockIdx.x;
  const int64_t item = block * (kThreads / GROUP) + threadIdx.x / GROUP;
  if (item >= t.n * t.c * t.parts) return;  // whole warps leave, and no barrier follows
  const PlanePart p = plane_part(t, item, t.parts, t.part);
  const int lane = threadIdx.x % GROUP;
  float gate[R] = {};
#pragma unroll
  for (int r = 0; r < R; ++r)
    if (r < t.radix) gate[r] = attention_of(t, p.n, r, p.c);
  const float mean = t.ds[p.n * t.c + p.c];
  const T* const grad = grad_row<T>(t, p);
  const int64_t step = R == 1 ? 0 : t.c * t.hw;
  T* const out = static_cast<T*>(t.mapped) + (p.n * t.radix * t.c + p.c) * t.hw + p.start;
  const int64_t head = scalar_head<T>(out, step, grad, p.length), vectors = (p.length - head) / V;
  for (int64_t i = lane; i < vectors; i += GROUP * U) {
    Pack b[U] = {};
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (i + u * GROUP < vectors) b[u] = load_pack(grad + head + (i + u * GROUP) * V);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float g[V], f[V];
      unpack<T>(b[u], g);
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int v = 0; v < V; ++v) f[v] = fmaf(g[v], gate[r], mean);
        if (r < t.radix && i + u * GROUP < vectors)
          store_pack(out + r * step + head + (i + u * GROUP) * V, pack<T>(f));
      }
    }
  }
  for_scalars<T>(head, p.length, lane, GROUP, [&](int64_t i) {
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (r < t.radix) out[r * step + i] = from_float<T>(fmaf(to_float(grad[i]), gate[r], mean));
  });
}

// Calls f(group) with the threads on one plane: a warp for a small one, else the whole block.
template <class F>
cudaError_t with_group(const Split& t, F f) {
  if (t.parts == 1 && t.hw <= 2048) return f(std::integral_constant<int, kWarp>{});
  return f(std::integral_constant<int, kThreads>{});
}

template <int GROUP>
cudaError_t launch_planes(void (*kernel)(Split), const Split& t, cudaStream_t stream) {
  const int64_t blocks = ceil_div(t.n * t.c * t.parts, kThreads / GROUP);
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, t);
}

}  // namespace

cudaError_t split_sum_planes(int dtype, const Split& t, bool backward, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    return with_group(t, [&](auto group) {
      constexpr int G = group;
      if (!backward) return launch_planes<G>(pool_planes<T, G>, t, stream);
      return with_radix(t.radix,
                        [&](auto r) { return launch_planes<G>(dot_planes<T, r, G>, t, stream); });
    });
  });
}

cudaError_t split_map_planes(int dtype, const Split& t, bool backward, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    return with_group(t, [&](auto group) {
      constexpr int G = group;
      return with_radix(t.radix, [&](auto r) {
        constexpr int R = r;
        return launch_planes<G>(backward ? spread_planes<T, R, G> : combine_planes<T, R, G>, t,
                                stream);
      });
    });
  });
}

}  // namespace medseg::cuda
