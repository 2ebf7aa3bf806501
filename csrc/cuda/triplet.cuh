// Shared by the translation units of triplet attention: the plan of a call and its kernels' doors.
//
// An image is the 3-D array (a0, a1, a2) in memory order, so NCHW and channels_last are the same to
// every kernel; plane m pools over memory axis m. Blocks own tiles of (size[0], size[1], size[2])
// elements; what a tile pools along an axis is a partial result of that axis' plane, and the gate
// kernels add the partials up where they read the planes.
#pragma once
#include "common.cuh"

namespace medseg::cuda {

constexpr int kTileThreads = 128;
constexpr int kTileRows = kTileThreads / kLanes;  // 16 rows of a1 side by side
constexpr int kGateThreads = 256;
constexpr int kGateTile = 32;     // positions of a plane per block, squared
constexpr int kGateBlocks = 256;  // per plane at most: whoever combines their sums reads this many

struct Volume {
  int64_t n, a[3];
  int64_t stride_n, stride_0, stride_1;
};

struct Tiling {
  int size[3];       // elements of a tile
  int64_t count[3];  // tiles along each axis
};

// One pooled plane. Its rows and columns are the other two memory axes, in memory order.
struct Plane {
  int gate;     // -1: no gate, nothing here is used
  bool turned;  // the gate sees it transposed: the taps are transposed instead
  int rows, cols;
  int64_t size;                 // rows * cols
  int64_t length;               // of the pooled axis
  int tile, blocks;             // length of a partial along the axis; blocks of the gate kernels
  int64_t parts;                // partials along the axis
  int64_t tiles, tiles_across;  // gate tiles per image, and of one row of them
  // Partials (n, parts, size): maximum in the dtype of x, sum, argmax within the tile.
  void* part_max;
  float* part_sum;
  uint8_t* part_arg;
  // What is kept for backward, (n, size) each.
  float* max;
  float* mean;
  void* index;
  // (n, size) each: gate (u before it is normalised), and in backward dv, uhat, dM, dA / length.
  float* gated;
  float* dv;
  float* uhat;
  float* grad_max;
  float* grad_mean;
  // Per gate block: moments (3, kGateBlocks): count, mean, squares; or (2, kGateBlocks): sum of dv
  // and of dv * uhat; and (2 * taps * taps, kGateBlocks): gradients of the taps.
  float* moments;
  float* tap_parts;
};

struct Triplet {
  Volume x, dense;  // strides of x, and of out, grad_out and grad_x
  Tiling pool, map;
  Plane plane[3];
  Param conv_weight, bn_weight, bn_bias, running_mean, running_var;
  float* stats;
  float* grad_conv_weight;
  float* grad_bn_weight;
  float* grad_bn_bias;
  float eps, scale;  // scale: 1 / gates
  int dtype, index_bytes, gates, taps;
  bool training, keep;
};

inline unsigned tile_blocks(const Volume& x, const Tiling& t) {
  return static_cast<unsigned>(x.n * t.count[0] * t.count[1] * t.count[2]);
}

// The launchers of one kernel each; `aligned` says that 16-byte accesses may be used.
cudaError_t launch_pool(const Triplet& t, bool aligned, const void* x, cudaStream_t stream);
cudaError_t launch_dot(const Triplet& t, bool aligned, const void* x, const void* grad_out,
                       cudaStream_t stream);
cudaError_t launch_gates(const Triplet& t, cudaStream_t stream);
cudaError_t launch_planes(const Triplet& t, cudaStream_t stream);
cudaError_t launch_gate_sums(const Triplet& t, cudaStream_t stream);
cudaError_t launch_normalise(const Triplet& t, cudaStream_t stream);
cudaError_t launch_gate_gradients(const Triplet& t, cudaStream_t stream);
cudaError_t launch_plane_gradients(const Triplet& t, cudaStream_t stream);
cudaError_t launch_apply(const Triplet& t, bool aligned, const void* x, void* out,
                         cudaStream_t stream);
// Without grad_out: what the pooled planes send back alone.
cudaError_t launch_grad_x(const Triplet& t, bool aligned, const void* grad_out, void* grad_x,
                          cudaStream_t stream);

// ---- device side of the tiles -------------------------------------------------------------------

// This thread's place: 8 threads on the columns (a2), 16 on the rows (a1), ROWS rows each.
struct Place {
  int64_t n, tile[3];
  int64_t first, last;  // a0
  int64_t row;          // the thread's first a1
  int rows;             // of its ROWS rows, how many exist
  int64_t col;          // the tile's first a2
  int limit;            // columns from there on
  int lane;             // 0 .. 7
};

__device__ __forceinline__ int clamp_int(int64_t v, int most) {
  return v < 0 ? 0 : v < most ? static_cast<int>(v) : most;
}

// Tiles of neighbouring columns, then rows, run together: they share lines and DRAM pages.
template <int ROWS>
__device__ __forceinline__ Place place_of(const Volume& x, const Tiling& t, int64_t block) {
  Place p;
  p.tile[2] = block % t.count[2];
  block /= t.count[2];
  p.tile[1] = block % t.count[1];
  block /= t.count[1];
  p.tile[0] = block % t.count[0];
  p.n = block / t.count[0];
  p.lane = threadIdx.x % kLanes;
  p.first = p.tile[0] * t.size[0];
  p.last = p.first + t.size[0] < x.a[0] ? p.first + t.size[0] : x.a[0];
  p.row = p.tile[1] * t.size[1] + threadIdx.x / kLanes * ROWS;
  p.rows = clamp_int(x.a[1] - p.row, ROWS);
  p.col = p.tile[2] * t.size[2];
  p.limit = clamp_int(x.a[2] - p.col, t.size[2]);
  return p;
}

// The thread's rows of x at one a0, zero where there is no element.
template <class T, bool ALIGNED, int ROWS>
__device__ __forceinline__ void load_rows(Pack (&rows)[ROWS], const T* x, const Volume& v,
                                          const Place& p, int64_t a0) {
  const T* at = x + p.n * v.stride_n + a0 * v.stride_0 + p.row * v.stride_1 + p.col;
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
    rows[i] = load_columns<T, ALIGNED>(at + i * v.stride_1, p.lane,
                                       i < p.rows && a0 < p.last ? p.limit : 0);
}

// A lane's columns of a row of floats, zero beyond `limit`.
template <class T, bool ALIGNED>
__device__ __forceinline__ void load_floats(const float* row, int lane, int limit,
                                            float (&f)[kVector<T>]) {
#pragma unroll
  for (int v = 0; v < kVector<T>; v += 4) {
    if constexpr (ALIGNED) {
      const int at = lane * kVector<T> + v;
      Pack p{};
      if (at < limit) p = load_pack(row + at);
#pragma unroll
      for (int k = 0; k < 4; ++k) f[v + k] = __uint_as_float(p.word[k]);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int at = column<T, false>(lane, v + k);
        f[v + k] = at < limit ? __ldg(row + at) : 0.0f;
      }
    }
  }
}

}  // namespace medseg::cuda
