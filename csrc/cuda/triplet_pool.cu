// The pools of triplet attention: all three planes of x (or of grad_out * x) from one read.
//
// A block walks its tile along a0. Per step each thread holds ROWS rows of one 16-byte piece:
//   axis 0  stays in the thread's registers until the tile ends,
//   axis 2  is folded over the 8 lanes of a row,
//   axis 1  is folded over the thread's rows, the 4 row groups of the warp and, through shared
//           memory, the 4 warps.
// Folding N values over a pair of lanes sends N / 2 each way, so that every lane ends with its own
// share: 2 to 3 times fewer shuffles than reducing each value alone.
// Moves: x once (grad_out once more for the dot), and partials of 7 bytes (maximum, sum, argmax; 4
// for the dot) per tile and position, 1/size[0] + 1/size[1] + 1/size[2] of them per element.
#include "triplet.cuh"

namespace medseg::cuda {
namespace {

enum Mode { kMaximum, kArgument, kDot };

constexpr int kSlots = 4;  // steps of a0 between two exchanges over the warps
constexpr int kWarps = kTileThreads / kWarp;

template <class T>
constexpr int kPoolRows = 16 / kVector<T>;

struct Best {
  float max, sum;
  int arg;
};

// NaN counts as the largest value, and among equals the one met first stays, as in PyTorch.
__device__ __forceinline__ bool beats(float a, float b) { return a > b || (a != a && b == b); }

__device__ __forceinline__ float larger(float a, float b) {
#ifdef __CUDA_ARCH__
  float r;  // one instruction that keeps NaN
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
#else
  return beats(b, a) ? b : a;
#endif
}

// Adds one element that comes after all that `into` has seen.
template <Mode MODE>
__device__ __forceinline__ void append(Best& into, float value, float max, int arg) {
  into.sum += value;
  if constexpr (MODE == kMaximum) into.max = larger(into.max, max);
  if constexpr (MODE == kArgument) {
    const bool better = beats(max, into.max);
    into.max = better ? max : into.max;
    into.arg = better ? arg : into.arg;
  }
}

// Joins two sets of elements; of equal maxima the lower index wins.
template <Mode MODE>
__device__ __forceinline__ void merge(Best& into, const Best& other) {
  into.sum += other.sum;
  if constexpr (MODE == kMaximum) into.max = larger(into.max, other.max);
  if constexpr (MODE == kArgument) {
    const bool better =
        beats(other.max, into.max) || (other.arg < into.arg && !beats(into.max, other.max));
    into.max = better ? other.max : into.max;
    into.arg = better ? other.arg : into.arg;
  }
}

template <Mode MODE>
__device__ __forceinline__ Best exchange(const Best& b, int mask) {
  Best r{0.0f, __shfl_xor_sync(kFullWarp, b.sum, mask), 0};
  if constexpr (MODE != kDot) r.max = __shfl_xor_sync(kFullWarp, b.max, mask);
  if constexpr (MODE == kArgument) r.arg = __shfl_xor_sync(kFullWarp, b.arg, mask);
  return r;
}

// Merges COUNT values over the lanes that differ in the bits HIGH .. LOW. Afterwards a lane holds
// the finished values first, first + 1, ... in its front; returns first.
template <Mode MODE, int HIGH, int LOW, int COUNT>
__device__ __forceinline__ int fold(Best (&value)[COUNT]) {
  int first = 0, count = COUNT;
#pragma unroll
  for (int bit = HIGH; bit >= LOW; bit >>= 1) {
    const bool upper = threadIdx.x & bit;
    if (count > 1) count /= 2, first += upper ? count : 0;
    const bool split = count * (HIGH / bit) * 2 <= COUNT;
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
      if (k >= count) continue;
      Best keep = value[k], send = value[k];
      if (split) {
        const Best high = value[(k + count) % COUNT];
        if (upper) keep = high;
        if (!upper) send = high;
      }
      const Best got = exchange<MODE>(send, bit);
      merge<MODE>(keep, got);
      value[k] = keep;
    }
  }
  return first;
}

// One plane's partials of this block, and where they go.
template <class T, Mode MODE>
__device__ __forceinline__ void store_best(const Plane& plane, int64_t at, const Best& b) {
  plane.part_sum[at] = b.sum;
  if constexpr (MODE != kDot) static_cast<T*>(plane.part_max)[at] = from_float<T>(b.max);
  if constexpr (MODE == kArgument) plane.part_arg[at] = static_cast<uint8_t>(b.arg);
}

template <class T>
struct Stage {
  Best best[kSlots][kWarps][kLanes * kVector<T>];
};

// Plane 1 of the a0 steps from `first`: the four warps of each column merged and stored.
template <class T, Mode MODE>
__device__ __forceinline__ void flush(const Stage<T>& stage, const Triplet& t, const Place& p,
                                      int64_t first, int64_t last) {
  constexpr int COLUMNS = kLanes * kVector<T>;
  const Plane& plane = t.plane[1];
  for (int i = threadIdx.x; i < kSlots * COLUMNS; i += kTileThreads) {
    const int slot = i / COLUMNS, col = i % COLUMNS;
    if (first + slot >= last || col >= p.limit) continue;
    Best best = stage.best[slot][0][col];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) merge<MODE>(best, stage.best[slot][w][col]);
    const int64_t position = (first + slot) * t.x.a[2] + p.col + col;
    store_best<T, MODE>(plane, (p.n * plane.parts + p.tile[1]) * plane.size + position, best);
  }
}

// Plane 2 at one a0: each row folded over its columns.
template <class T, Mode MODE, bool ALIGNED, int ROWS>
__device__ __forceinline__ void pool_columns(const float (&value)[ROWS][kVector<T>],
                                             const float (&max)[ROWS][kVector<T>], const Triplet& t,
                                             const Place& p, int64_t a0) {
  Best best[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    best[i] = Best{max[i][0], value[i][0], column<T, ALIGNED>(p.lane, 0)};
#pragma unroll
    for (int v = 1; v < kVector<T>; ++v)
      append<MODE>(best[i], value[i][v], max[i][v], column<T, ALIGNED>(p.lane, v));
  }
  const int i = fold<MODE, 4, 1>(best);
  const Plane& plane = t.plane[2];
  // After the fold kLanes / ROWS lanes hold the same row; the first of them writes it.
  if (plane.gate < 0 || p.lane % (kLanes / ROWS) != 0 || i >= p.rows) return;
  const int64_t position = a0 * t.x.a[1] + p.row + i;
  store_best<T, MODE>(plane, (p.n * plane.parts + p.tile[2]) * plane.size + position, best[0]);
}

// Plane 1 at one a0: each column folded over the rows of this warp, left in the stage.
template <class T, Mode MODE, bool ALIGNED, int ROWS>
__device__ __forceinline__ void pool_rows(const float (&value)[ROWS][kVector<T>],
                                          const float (&max)[ROWS][kVector<T>], Stage<T>& stage,
                                          int lane, int slot) {
  constexpr int V = kVector<T>;
  const int row = threadIdx.x / kLanes * ROWS;
  Best best[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    best[v] = Best{max[0][v], value[0][v], row};
#pragma unroll
    for (int i = 1; i < ROWS; ++i) append<MODE>(best[v], value[i][v], max[i][v], row + i);
  }
  const int first = fold<MODE, 16, 8>(best);
#pragma unroll
  for (int k = 0; k < V / 4; ++k)
    stage.best[slot][threadIdx.x / kWarp][column<T, ALIGNED>(lane, first + k)] = best[k];
}

// The values of the thread's rows; `max` holds -inf where there is no element, `value` zero.
template <class T, Mode MODE, bool ALIGNED, bool WHOLE, int ROWS>
__device__ __forceinline__ void spread(const Pack (&x)[ROWS], const Pack (&y)[ROWS], const Place& p,
                                       float (&value)[ROWS][kVector<T>],
                                       float (&max)[ROWS][kVector<T>]) {
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    unpack<T>(x[i], value[i]);
    float other[kVector<T>];
    if constexpr (MODE == kDot) unpack<T>(y[i], other);
#pragma unroll
    for (int v = 0; v < kVector<T>; ++v) {
      if constexpr (MODE == kDot) value[i][v] *= other[v];
      const bool there = i < p.rows && column<T, ALIGNED>(p.lane, v) < p.limit;
      max[i][v] = WHOLE || MODE == kDot || there ? value[i][v] : -INFINITY;
    }
  }
}

template <class T, Mode MODE, bool ALIGNED, int ROWS>
__device__ __forceinline__ void store_axis0(const Best (&best)[ROWS][kVector<T>], const Triplet& t,
                                            const Place& p) {
  const Plane& plane = t.plane[0];
  if (plane.gate < 0) return;
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    if (i >= p.rows) continue;
    const int64_t row =
        (p.n * plane.parts + p.tile[0]) * plane.size + (p.row + i) * t.x.a[2] + p.col;
#pragma unroll
    for (int v = 0; v < kVector<T>; ++v) {
      const int at = column<T, ALIGNED>(p.lane, v);
      if (at < p.limit) store_best<T, MODE>(plane, row + at, best[i][v]);
    }
  }
}

// part_max[m], part_sum[m], part_arg[m] of the block's tile for the three axes m; see the top.
// WHOLE says that no tile lacks rows or columns, which spares checks and registers.
template <class T, Mode MODE, bool ALIGNED, bool WHOLE>
__global__ void __launch_bounds__(kTileThreads, WHOLE || MODE == kDot ? 4 : 3)
    pool_kernel(const __grid_constant__ Triplet t, const T* x, const T* y) {
  constexpr int V = kVector<T>, ROWS = kPoolRows<T>;
  MEDSEG_SHARED(Stage<T>, stage);
  const Place p = place_of<ROWS>(t.x, t.pool, blockIdx.x);
  Best axis0[ROWS][V];
#pragma unroll
  for (int i = 0; i < ROWS * V; ++i) axis0[i / V][i % V] = Best{-INFINITY, 0.0f, 0};
  Pack next[ROWS], next_y[ROWS];
  load_rows<T, ALIGNED>(next, x, t.x, p, p.first);
  if constexpr (MODE == kDot) load_rows<T, ALIGNED>(next_y, y, t.dense, p, p.first);
  for (int64_t a0 = p.first; a0 < p.last; ++a0) {
    float value[ROWS][V], max[ROWS][V];
    spread<T, MODE, ALIGNED, WHOLE>(next, next_y, p, value, max);
    load_rows<T, ALIGNED>(next, x, t.x, p, a0 + 1);  // in flight while this step is folded
    if constexpr (MODE == kDot) load_rows<T, ALIGNED>(next_y, y, t.dense, p, a0 + 1);
#pragma unroll
    for (int i = 0; i < ROWS * V; ++i)
      append<MODE>(axis0[i / V][i % V], value[i / V][i % V], max[i / V][i % V],
                   static_cast<int>(a0 - p.first));
    pool_columns<T, MODE, ALIGNED>(value, max, t, p, a0);
    const int slot = static_cast<int>(a0 - p.first) % kSlots;
    if (t.plane[1].gate < 0) continue;
    pool_rows<T, MODE, ALIGNED>(value, max, stage, p.lane, slot);
    if (slot < kSlots - 1 && a0 + 1 < p.last) continue;
    __syncthreads();
    flush<T, MODE>(stage, t, p, a0 - slot, a0 + 1);
    __syncthreads();  // before the next steps overwrite the stage
  }
  store_axis0<T, MODE, ALIGNED>(axis0, t, p);
}

template <Mode MODE>
cudaError_t run(const Triplet& t, bool aligned, const void* x, const void* y, cudaStream_t stream) {
  return with_dtype(t.dtype, [&](auto element) {
    using T = decltype(element);
    const bool whole =
        t.x.a[1] % t.pool.size[1] == 0 && t.x.a[2] % t.pool.size[2] == 0 && MODE != kDot;
    auto* kernel = !aligned ? pool_kernel<T, MODE, false, false>
                   : whole  ? pool_kernel<T, MODE, true, MODE != kDot>
                            : pool_kernel<T, MODE, true, false>;
    return launch(kernel, dim3(tile_blocks(t.x, t.pool)), kTileThreads, 0, stream, t,
                  static_cast<const T*>(x), static_cast<const T*>(y));
  });
}

}  // namespace

cudaError_t launch_pool(const Triplet& t, bool aligned, const void* x, cudaStream_t stream) {
  return t.keep ? run<kArgument>(t, aligned, x, nullptr, stream)
                : run<kMaximum>(t, aligned, x, nullptr, stream);
}

cudaError_t launch_dot(const Triplet& t, bool aligned, const void* x, const void* grad_out,
                       cudaStream_t stream) {
  return run<kDot>(t, aligned, x, grad_out, stream);
}

}  // namespace medseg::cuda
