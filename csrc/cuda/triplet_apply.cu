// The passes that write an x-sized tensor: out, and in backward grad_x.
//
// Blocks own tiles as in the pool. A thread keeps what plane 0 says of its (a1, a2) in registers
// and walks along a0, where plane 1 is the same for all rows and plane 2 for all columns, so both
// come from cache. Last tile first: what the pool read last is still in L2.
// Moves: forward x once and out once (with the pool 2R 1W), backward grad_out once and grad_x once
// (with the dot 3R 1W; x itself is not needed here), and the planes' 4 to 14 bytes a position.
#include "triplet.cuh"

namespace medseg::cuda {
namespace {

// out = x * (sum over gates) / gates, each product apart, so that infinity behaves as in PyTorch.
template <class T, bool ALIGNED>
__global__ void __launch_bounds__(kTileThreads, 4)
    apply_kernel(const __grid_constant__ Triplet t, const T* x, T* out) {
  constexpr int V = kVector<T>, ROWS = 16 / V;
  const Place p = place_of<ROWS>(t.x, t.map, gridDim.x - 1 - blockIdx.x);
  const int64_t* a = t.x.a;
  float g0[ROWS][V];
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    const int64_t at = p.n * t.plane[0].size + (p.row + i) * a[2] + p.col;
    const int limit = t.plane[0].gate >= 0 && i < p.rows ? p.limit : 0;
    load_floats<T, ALIGNED>(t.plane[0].gated + at, p.lane, limit, g0[i]);
  }
  Pack next[ROWS];
  load_rows<T, ALIGNED>(next, x, t.x, p, p.first);
  for (int64_t a0 = p.first; a0 < p.last; ++a0) {
    float f[ROWS][V], g1[V];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) unpack<T>(next[i], f[i]);
    load_rows<T, ALIGNED>(next, x, t.x, p, a0 + 1);
    const int64_t at1 = p.n * t.plane[1].size + a0 * a[2] + p.col;
    load_floats<T, ALIGNED>(t.plane[1].gated + at1, p.lane, t.plane[1].gate >= 0 ? p.limit : 0, g1);
    const int64_t at2 = p.n * t.plane[2].size + a0 * a[1] + p.row;
    T* row = out + p.n * t.dense.stride_n + a0 * t.dense.stride_0 + p.row * a[2] + p.col;
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      if (i >= p.rows) continue;
      const float g2 = t.plane[2].gate >= 0 ? __ldg(t.plane[2].gated + at2 + i) : 0.0f;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float first = t.plane[0].gate >= 0 ? f[i][v] * g0[i][v] : 0.0f;
        const float second = t.plane[1].gate >= 0 ? f[i][v] * g1[v] : 0.0f;
        const float third = t.plane[2].gate >= 0 ? f[i][v] * g2 : 0.0f;
        f[i][v] = (first + second + third) * t.scale;
      }
      store_columns<T, ALIGNED>(row + i * a[2], p.lane, p.limit, f[i]);
    }
  }
}

// What backward knows of the position of a plane: gate, dA / length, dM and where it goes.
struct Fate {
  float gate, mean, max;
  int arg;  // along the pooled axis

  // What this plane gives the element at `where` along its axis, whose scaled gradient is d.
  __device__ __forceinline__ float share(float d, int where) const {
    return fmaf(d, gate, mean) + (where == arg ? max : 0.0f);
  }
};

__device__ __forceinline__ int load_arg(const Plane& plane, int index_bytes, int64_t at) {
  return index_bytes == 2 ? __ldg(static_cast<const int16_t*>(plane.index) + at)
                          : __ldg(static_cast<const int32_t*>(plane.index) + at);
}

// What of grad_mean an element gets: all where the gates' kernels have divided it already.
template <bool GATES>
__device__ __forceinline__ float mean_share(const Plane& plane) {
  return GATES ? 1.0f : 1.0f / static_cast<float>(plane.length);
}

template <bool GATES>
__device__ __forceinline__ Fate fate_at(const Plane& plane, int index_bytes, int64_t at) {
  return {GATES ? __ldg(plane.gated + at) : 0.0f,
          __ldg(plane.grad_mean + at) * mean_share<GATES>(plane), __ldg(plane.grad_max + at),
          load_arg(plane, index_bytes, at)};
}

// The argmaxes of a lane's columns, two to a word where they are int16; `at` is even if ALIGNED.
template <class T, bool ALIGNED>
__device__ __forceinline__ void load_args(const Plane& plane, int index_bytes, int64_t at, int lane,
                                          int limit, int (&arg)[kVector<T>]) {
#pragma unroll
  for (int v = 0; v < kVector<T>; v += 2) {
    const int first = column<T, ALIGNED>(lane, v), second = column<T, ALIGNED>(lane, v + 1);
    arg[v] = arg[v + 1] = -1;
    if (ALIGNED && index_bytes == 2) {
      if (first >= limit) continue;
      const uint32_t pair = __ldg(static_cast<const uint32_t*>(plane.index) + (at + first) / 2);
      arg[v] = static_cast<int>(pair & 0xffff);
      arg[v + 1] = static_cast<int>(pair >> 16);
    } else {
      if (first < limit) arg[v] = load_arg(plane, index_bytes, at + first);
      if (second < limit) arg[v + 1] = load_arg(plane, index_bytes, at + second);
    }
  }
}

// A lane's columns of a row of a plane; what is missing gives nothing.
template <class T, bool ALIGNED, bool GATES>
__device__ __forceinline__ void load_fates(const Plane& plane, int index_bytes, int64_t at,
                                           int lane, int limit, Fate (&fate)[kVector<T>]) {
  constexpr int V = kVector<T>;
  float gate[V], mean[V], max[V];
  int arg[V];
  if (plane.gate < 0) limit = 0;
  load_floats<T, ALIGNED>(plane.gated + at, lane, GATES ? limit : 0, gate);
  load_floats<T, ALIGNED>(plane.grad_mean + at, lane, limit, mean);
  load_floats<T, ALIGNED>(plane.grad_max + at, lane, limit, max);
  load_args<T, ALIGNED>(plane, index_bytes, at, lane, limit, arg);
#pragma unroll
  for (int v = 0; v < V; ++v)
    fate[v] = Fate{gate[v], mean[v] * mean_share<GATES>(plane), max[v], arg[v]};
}

// grad_conv_weight from the blocks' sums: a warp for each tap of each gate.
__device__ __forceinline__ void add_taps(const Triplet& t) {
  const int taps = 2 * t.taps * t.taps, k = t.taps;
  const int item = blockIdx.x * (kTileThreads / kWarp) + threadIdx.x / kWarp;
  const Plane& plane = t.plane[item / taps % 3];
  const int tap = item % taps;
  if (item >= 3 * taps || plane.gate < 0) return;
  float sum = 0.0f;
  for (int i = threadIdx.x % kWarp; i < plane.blocks; i += kWarp)
    sum += plane.tap_parts[static_cast<int64_t>(tap) * kGateBlocks + i];
  sum = lane_sum<kWarp>(sum);
  const int image = tap / (k * k), r = tap % (k * k) / k, c = tap % k;
  const int64_t to = image * k * k + (plane.turned ? c * k + r : r * k + c);
  if (threadIdx.x % kWarp == 0) t.grad_conv_weight[plane.gate * taps + to] = sum;
}

inline __host__ __device__ unsigned tap_blocks(const Triplet& t) {
  return static_cast<unsigned>(ceil_div(6 * t.taps * t.taps, kTileThreads / kWarp));
}

// grad_x = sum over planes of D * gate + dA / length + (dM where x was the maximum), D = grad_out /
// gates. Half the rows of apply_kernel, since a position of a plane takes four registers here. The
// leading blocks add up the gradients of the taps instead, which saves a launch. Without GATES only
// what the pooled planes send back, and grad_out is not read.
template <class T, bool ALIGNED, bool GATES>
__global__ void __launch_bounds__(kTileThreads, 4)
    grad_x_kernel(const __grid_constant__ Triplet t, const T* grad_out, T* grad_x) {
  constexpr int V = kVector<T>, ROWS = 8 / V;
  if (GATES && blockIdx.x < tap_blocks(t)) return add_taps(t);
  const Place p = place_of<ROWS>(t.dense, t.map, gridDim.x - 1 - blockIdx.x);
  const int64_t* a = t.dense.a;
  Fate fate0[ROWS][V];
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    const int64_t at = p.n * t.plane[0].size + (p.row + i) * a[2] + p.col;
    load_fates<T, ALIGNED, GATES>(t.plane[0], t.index_bytes, at, p.lane, i < p.rows ? p.limit : 0,
                                  fate0[i]);
  }
  Pack next[ROWS] = {};
  if (GATES) load_rows<T, ALIGNED>(next, grad_out, t.dense, p, p.first);
  for (int64_t a0 = p.first; a0 < p.last; ++a0) {
    float f[ROWS][V];
    Fate fate1[V];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) unpack<T>(next[i], f[i]);
    if (GATES) load_rows<T, ALIGNED>(next, grad_out, t.dense, p, a0 + 1);
    load_fates<T, ALIGNED, GATES>(t.plane[1], t.index_bytes,
                                  p.n * t.plane[1].size + a0 * a[2] + p.col, p.lane, p.limit,
                                  fate1);
    const int64_t at2 = p.n * t.plane[2].size + a0 * a[1] + p.row;
    T* row = grad_x + p.n * t.dense.stride_n + a0 * t.dense.stride_0 + p.row * a[2] + p.col;
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      if (i >= p.rows) continue;
      Fate fate2{0.0f, 0.0f, 0.0f, -1};
      if (t.plane[2].gate >= 0) fate2 = fate_at<GATES>(t.plane[2], t.index_bytes, at2 + i);
      const int a1 = static_cast<int>(p.row) + i;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float d = f[i][v] * t.scale;
        const int a2 = static_cast<int>(p.col) + column<T, ALIGNED>(p.lane, v);
        f[i][v] =
            fate0[i][v].share(d, static_cast<int>(a0)) + fate1[v].share(d, a1) + fate2.share(d, a2);
      }
      store_columns<T, ALIGNED>(row + i * a[2], p.lane, p.limit, f[i]);
    }
  }
}

}  // namespace

cudaError_t launch_apply(const Triplet& t, bool aligned, const void* x, void* out,
                         cudaStream_t stream) {
  return with_dtype(t.dtype, [&](auto element) {
    using T = decltype(element);
    auto* kernel = aligned ? apply_kernel<T, true> : apply_kernel<T, false>;
    return launch(kernel, dim3(tile_blocks(t.x, t.map)), kTileThreads, 0, stream, t,
                  static_cast<const T*>(x), static_cast<T*>(out));
  });
}

cudaError_t launch_grad_x(const Triplet& t, bool aligned, const void* grad_out, void* grad_x,
                          cudaStream_t stream) {
  return with_dtype(t.dtype, [&](auto element) {
    using T = decltype(element);
    auto* with_gates = aligned ? grad_x_kernel<T, true, true> : grad_x_kernel<T, false, true>;
    auto* without = aligned ? grad_x_kernel<T, true, false> : grad_x_kernel<T, false, false>;
    const unsigned taps = grad_out ? tap_blocks(t) : 0;
    const unsigned blocks = taps + tile_blocks(t.dense, t.map);
    auto* kernel = grad_out ? with_gates : without;
    return launch(kernel, dim3(blocks), kTileThreads, 0, stream, t, static_cast<const T*>(grad_out),
                  static_cast<T*>(grad_x));
  });
}

}  // namespace medseg::cuda
