// Split attention on channels_last: what moves whole maps. A block owns one slab of channels, in
// every split, of some pixels: 8 threads on its 128 bytes and 32 pixels side by side.
#include "split.cuh"

namespace medseg::cuda {
namespace {

struct PixelBlock {
  int64_t n, first, last;  // pixels
  int64_t channel;         // the first of the slab
  int limit;               // channels from there
  int part, lane, row;
};

// Slabs vary fastest, so that blocks that run together read whole pixels between them.
__device__ __forceinline__ PixelBlock pixel_block(const Split& t, int64_t block, int parts,
                                                  int64_t part) {
  PixelBlock b;
  b.channel = block % t.slabs * t.slab;
  b.part = static_cast<int>(block / t.slabs % parts);
  b.n = block / t.slabs / parts;
  b.first = b.part * part;
  b.last = b.first + part < t.hw ? b.first + part : t.hw;
  b.limit = static_cast<int>(t.c - b.channel < t.slab ? t.c - b.channel : t.slab);
  b.lane = threadIdx.x % kLanes, b.row = threadIdx.x / kLanes;
  return b;
}

template <class T>
__device__ __forceinline__ const T* x_pixels(const Split& t, const PixelBlock& b) {
  return static_cast<const T*>(t.x) + b.n * t.stride_n + b.channel;
}
template <class T>
__device__ __forceinline__ const T* grad_pixels(const Split& t, const PixelBlock& b) {
  return static_cast<const T*>(t.grad) + b.n * t.hw * t.c + b.channel;
}

// sums[row_of_slab + column, part] = the block's sum of acc over its 32 rows of threads.
template <class T, bool ALIGNED>
__device__ __forceinline__ void store_sums(const Split& t, const PixelBlock& b, int64_t slab_row,
                                           const float (&acc)[kVector<T>]) {
  constexpr int V = kVector<T>, COLUMNS = kLanes * V;
  struct Rows {
    float sum[kRows][COLUMNS + 1];
  };
  MEDSEG_SHARED(Rows, rows);
  __syncthreads();  // the sums of an earlier call may still be read
#pragma unroll
  for (int v = 0; v < V; ++v) rows.sum[b.row][column<T, ALIGNED>(b.lane, v)] = acc[v];
  __syncthreads();
  const int at = threadIdx.x;
  if (at >= b.limit) return;
  float sum = 0.0f;
  for (int r = 0; r < kRows; ++r) sum += rows.sum[r][at];
  t.sums[(slab_row + at) * t.parts + b.part] = sum;
}

// sums[n, c, part] = sum over the part's pixels and over the splits of u.
template <class T, bool ALIGNED>
__global__ void __launch_bounds__(kThreads) pool_pixels(const __grid_constant__ Split t) {
  constexpr int V = kVector<T>, U = 4;
  const PixelBlock b = pixel_block(t, blockIdx.x, t.parts, t.part);
  float acc[V] = {};
  for (int r = 0; r < t.radix; ++r) {
    const T* const x = x_pixels<T>(t, b) + r * t.c;
    Affine affine[V] = {};
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int at = column<T, ALIGNED>(b.lane, v);
      if (at < b.limit) affine[v] = affine_of(t, r * t.c + b.channel + at, 1.0f);
    }
    for (int64_t i = b.first + b.row; i < b.last; i += kRows * U) {
      Pack a[U];
#pragma unroll
      for (int u = 0; u < U; ++u)
        a[u] = load_columns<T, ALIGNED>(x + (i + u * kRows) * t.pitch, b.lane,
                                        i + u * kRows < b.last ? b.limit : 0);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        float f[V];
        unpack<T>(a[u], f);
        if (i + u * kRows < b.last)
#pragma unroll
          for (int v = 0; v < V; ++v) acc[v] += affine[v](f[v]);
      }
    }
  }
  store_sums<T, ALIGNED>(t, b, b.n * t.c + b.channel, acc);
}

// out = sum over the splits of a * u. Last block first: towards what the pool left in L2.
template <class T, bool ALIGNED, int R>
__global__ void __launch_bounds__(kThreads) combine_pixels(const __grid_constant__ Split t) {
  constexpr int V = kVector<T>, U = kUnroll<R>;
  const PixelBlock b = pixel_block(t, gridDim.x - 1 - blockIdx.x, t.map_parts, t.map_part);
  float scale[R][V] = {}, shift[R][V] = {};
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int64_t at = b.channel + column<T, ALIGNED>(b.lane, v);
      if (r >= t.radix || column<T, ALIGNED>(b.lane, v) >= b.limit) continue;
      const Affine affine = affine_of(t, r * t.c + at, attention_of(t, b.n, r, at));
      scale[r][v] = affine.scale, shift[r][v] = affine.shift;
    }
  const float lowest = t.scale.data ? 0.0f : -INFINITY;
  const T* const x = x_pixels<T>(t, b);
  T* const out = static_cast<T*>(t.mapped) + b.n * t.hw * t.c + b.channel;
  for (int64_t i = b.first + b.row; i < b.last; i += kRows * U) {
    Pack a[U][R] = {};
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int r = 0; r < R; ++r)
        a[u][r] = load_columns<T, ALIGNED>(x + (i + u * kRows) * t.pitch + r * t.c, b.lane,
                                           r < t.radix && i + u * kRows < b.last ? b.limit : 0);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float sum[V] = {}, f[V];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        unpack<T>(a[u][r], f);
        if (r < t.radix)
#pragma unroll
          for (int v = 0; v < V; ++v) sum[v] += Affine{scale[r][v], shift[r][v], lowest}(f[v]);
      }
      if (i + u * kRows < b.last)
        store_columns<T, ALIGNED>(out + (i + u * kRows) * t.c, b.lane, b.limit, sum);
    }
  }
}

// sums[n, r * c + c, part] = sum over the part's pixels of grad * x.
template <class T, bool ALIGNED, int R>
__global__ void __launch_bounds__(kThreads) dot_pixels(const __grid_constant__ Split t) {
  constexpr int V = kVector<T>, U = kUnroll<R>;
  const PixelBlock b = pixel_block(t, blockIdx.x, t.parts, t.part);
  const T* const x = x_pixels<T>(t, b);
  const T* const grad = grad_pixels<T>(t, b);
  float acc[R][V] = {};
  for (int64_t i = b.first + b.row; i < b.last; i += kRows * U) {
    Pack a[U][R], g[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t at = i + u * kRows;
      g[u] = load_columns<T, ALIGNED>(grad + at * t.c, b.lane, at < b.last ? b.limit : 0);
#pragma unroll
      for (int r = 0; r < R; ++r)
        a[u][r] = load_columns<T, ALIGNED>(x + at * t.pitch + r * t.c, b.lane,
                                           r < t.radix && at < b.last ? b.limit : 0);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float f[V], d[V];
      unpack<T>(g[u], d);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        unpack<T>(a[u][r], f);
#pragma unroll
        for (int v = 0; v < V; ++v) acc[r][v] = fmaf(f[v], d[v], acc[r][v]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r)
    if (r < t.radix) store_sums<T, ALIGNED>(t, b, (b.n * t.radix + r) * t.c + b.channel, acc[r]);
}

// grad_x = grad * a + ds. Last block first: towards the grad that the dot left in L2.
template <class T, bool ALIGNED, int R>
__global__ void __launch_bounds__(kThreads) spread_pixels(const __grid_constant__ Split t) {
  constexpr int V = kVector<T>, U = kUnroll<R>;
  const PixelBlock b = pixel_block(t, gridDim.x - 1 - blockIdx.x, t.map_parts, t.map_part);
  float gate[R][V] = {}, mean[V] = {};
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int64_t at = b.channel + column<T, ALIGNED>(b.lane, v);
    if (column<T, ALIGNED>(b.lane, v) >= b.limit) continue;
    mean[v] = t.ds[b.n * t.c + at];
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (r < t.radix) gate[r][v] = attention_of(t, b.n, r, at);
  }
  const T* const grad = grad_pixels<T>(t, b);
  const int64_t width = t.radix * t.c;
  T* const out = static_cast<T*>(t.mapped) + b.n * t.hw * width + b.channel;
  for (int64_t i = b.first + b.row; i < b.last; i += kRows * U) {
    Pack a[U];
#pragma unroll
    for (int u = 0; u < U; ++u)
      a[u] = load_columns<T, ALIGNED>(grad + (i + u * kRows) * t.c, b.lane,
                                      i + u * kRows < b.last ? b.limit : 0);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float g[V], f[V];
      unpack<T>(a[u], g);
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int v = 0; v < V; ++v) f[v] = fmaf(g[v], gate[r][v], mean[v]);
        if (r < t.radix && i + u * kRows < b.last)
          store_columns<T, ALIGNED>(out + (i + u * kRows) * width + r * t.c, b.lane, b.limit, f);
      }
    }
  }
}

// Calls f(element, aligned) with what the kernels are compiled for.
template <class F>
cudaError_t with_rows(int dtype, const Split& t, F f) {
  return with_dtype(dtype, [&](auto element) {
    return t.aligned ? f(element, std::true_type{}) : f(element, std::false_type{});
  });
}

cudaError_t launch_pixels(void (*kernel)(Split), const Split& t, int parts, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(t.n * t.slabs * parts));
  return launch(kernel, grid, kThreads, 0, stream, t);
}

}  // namespace

cudaError_t split_sum_pixels(int dtype, const Split& t, bool backward, cudaStream_t stream) {
  return with_rows(dtype, t, [&](auto element, auto aligned) {
    using T = decltype(element);
    constexpr bool A = aligned;
    if (!backward) return launch_pixels(pool_pixels<T, A>, t, t.parts, stream);
    return with_radix(
        t.radix, [&](auto r) { return launch_pixels(dot_pixels<T, A, r>, t, t.parts, stream); });
  });
}

cudaError_t split_map_pixels(int dtype, const Split& t, bool backward, cudaStream_t stream) {
  return with_rows(dtype, t, [&](auto element, auto aligned) {
    using T = decltype(element);
    constexpr bool A = aligned;
    return with_radix(t.radix, [&](auto r) {
      constexpr int R = r;
      auto* kernel = backward ? spread_pixels<T, A, R> : combine_pixels<T, A, R>;
      return launch_pixels(kernel, t, t.map_parts, stream);
    });
  });
}

}  // namespace medseg::cuda
