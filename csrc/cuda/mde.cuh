// The MDE filter row by row: what a thread reads of a row, and what that gives to the rows around.
//
// Every mask is norm * row x row and the same left and right, up and down. So a row of x is paired
// across (3 additions), smoothed along itself at every scale (6), weighed by the gains (3), and
// what it gives to the 7 output rows around it is added to those still open (12): 24 operations for
// an output of a 7 x 7 window, 4 coefficients a channel.
//
// A thread owns COLS columns of CH channels: (16 bytes, 1) in NCHW, (2, 4) in channels_last, (1, 1)
// where rows cannot be read in vectors.
#pragma once
#include "common.cuh"

namespace medseg::cuda {

constexpr int kMdeThreads = 128;
constexpr int kMdeAhead = 2;  // rows on their way from memory while one is worked on

// How a map is cut: a block owns block_u units (planes; channels_last: CH channels of an image)
// times block_w threads along the row, down `span` rows. `parts` blocks share a unit.
struct MdePlan {
  MdeShape s;
  int columns, channels;  // of a thread
  int block_u, block_w, span;
  int64_t units, across, chunks;
  __host__ __device__ int64_t parts() const { return across * chunks; }
};

struct MdeWork {
  MdePlan plan;
  MdeMap x, out, other;  // null data: nothing to write, no products
  const float* gains;
  int64_t stride_gain;
  float* part;   // (radius + 1, parts, n, c)
  bool divided;  // the transpose of a reflecting filter: x is divided and out multiplied by c,
                 // which is 1/2 in the first and last row and column and 1 elsewhere
};

// In a file of its own: mde_gains.cu.
cudaError_t mde_launch_products(int dtype, int radius, const MdeWork& k, cudaStream_t stream);

namespace {

__device__ __forceinline__ int mirrored(int i, int size) {
  i = i < 0 ? -i : i;
  return i < size ? i : 2 * (size - 1) - i;
}
__device__ __forceinline__ bool at_edge(int i, int size) { return i == 0 || i == size - 1; }

// ---- 1, 4 or 8 values side by side --------------------------------------------------------------

// V values as they lie in memory: what is on its way must not be touched before it is needed.
template <class T, int V>
struct Raw {
  uint32_t word[(V * sizeof(T) + 3) / 4];
};

template <int V, class T>
__device__ __forceinline__ Raw<T, V> load_raw(const T* p) {
  if constexpr (V == 1) {
    return {{bits(*p)}};
  } else if constexpr (V * sizeof(T) == 16) {
    const Pack q = load_pack(p);
    return {{q.word[0], q.word[1], q.word[2], q.word[3]}};
  } else {
    const uint2 q = __ldg(reinterpret_cast<const uint2*>(p));
    return {{q.x, q.y}};
  }
}

template <class T, int V>
__device__ __forceinline__ void unpack_raw(const Raw<T, V>& raw, float (&f)[V]) {
  Pack q{};
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(raw) / 4); ++i) q.word[i] = raw.word[i];
  float wide[kVector<T>];
  unpack<T>(q, wide);
#pragma unroll
  for (int v = 0; v < V; ++v) f[v] = wide[v];
}

template <int V, class T>
__device__ __forceinline__ void load_values(const T* p, float (&f)[V]) {
  unpack_raw(load_raw<V>(p), f);
}

template <class T>
__device__ __forceinline__ void store_values(T* p, const float (&f)[1]) {
  *p = from_float<T>(f[0]);
}
template <class T>
__device__ __forceinline__ void store_values(T* p, const float (&f)[4]) {
  if constexpr (sizeof(T) == 4) {
    store_pack(p, pack<T>(f));
  } else {
    const Pack q = pack<T>({f[0], f[1], f[2], f[3], 0, 0, 0, 0});
    __stcs(reinterpret_cast<uint2*>(p), make_uint2(q.word[0], q.word[1]));
  }
}
template <class T>
__device__ __forceinline__ void store_values(T* p, const float (&f)[8]) {
  store_pack(p, pack<T>(f));
}

// ---- where a thread is --------------------------------------------------------------------------

struct MdePlace {
  int64_t n, channel;
  int column;      // the first of COLS
  int first, end;  // rows of the block
  int64_t part;    // among the blocks of the unit
  int active;      // columns inside the map
};

__device__ __forceinline__ MdePlace mde_place(const MdePlan& p) {
  const int i = threadIdx.x;
  const int64_t parts = p.parts(), block = blockIdx.x;
  MdePlace at;
  at.part = block % parts;
  int64_t unit = block / parts * p.block_u;
  int64_t place = at.part % p.across * p.block_w;
  unit += p.s.last ? i % p.block_u : i / p.block_w;
  place += p.s.last ? i / p.block_u : i % p.block_w;
  const int64_t per_image = p.units / p.s.n;
  at.n = unit / per_image, at.channel = unit % per_image * p.channels;
  at.column = static_cast<int>(place * p.columns);
  at.first = static_cast<int>(at.part / p.across) * p.span;
  at.end = p.s.h - at.first < p.span ? p.s.h : at.first + p.span;
  at.active = unit < p.units ? p.s.w - at.column : 0;
  if (at.active > p.columns) at.active = p.columns;
  return at;
}

template <class T>
__device__ __forceinline__ T* mde_base(const MdeMap& map, const MdePlace& at) {
  return static_cast<T*>(map.data) + at.n * map.stride_n + at.channel * map.stride_c +
         at.column * map.stride_w;
}

// ---- reading a row ------------------------------------------------------------------------------

// The row's place in the map, or -1: outside it, or not below `end`.
__device__ __forceinline__ int mde_source(const MdeShape& s, int row, int end) {
  if (row >= end) return -1;
  if (s.reflect) return mirrored(row, s.h);
  return row < s.h ? row : -1;
}

// A thread's own columns of a row.
template <class T, int COLS, int CH>
struct Tile {
  static constexpr bool kAlongRow = CH == 1 && COLS > 1;
  static constexpr int kValues = kAlongRow ? COLS : CH, kLoads = kAlongRow ? 1 : COLS;
  Raw<T, kValues> raw[kLoads];

  __device__ __forceinline__ void load(const MdeMap& map, const T* base, int source, int active) {
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      raw[j] = {};
      if (source >= 0 && j < active)
        raw[j] = load_raw<kValues>(base + source * map.stride_h + j * map.stride_w);
    }
  }
  __device__ __forceinline__ void unpack(float (&f)[COLS][CH]) const {
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      float values[kValues];
      unpack_raw(raw[j], values);
#pragma unroll
      for (int v = 0; v < kValues; ++v) (kAlongRow ? f[v][0] : f[j][v]) = values[v];
    }
  }
};

// The row as this thread's window sees it: its columns and P on either side.
template <class T, int P, int COLS, int CH>
__device__ __forceinline__ void widen(const MdeWork& k, const MdePlace& at, const T* base,
                                      int source, const Tile<T, COLS, CH>& tile,
                                      float (&f)[COLS + 2 * P][CH]) {
  const MdeShape& s = k.plan.s;
  float own[COLS][CH];
  tile.unpack(own);
#pragma unroll
  for (int j = 0; j < COLS + 2 * P; ++j)
#pragma unroll
    for (int c = 0; c < CH; ++c) f[j][c] = j < P || j >= COLS + P ? 0.0f : own[j - P][c];
  if (source < 0 || at.active <= 0) return;
  const T* row = base + source * k.x.stride_h;
  if constexpr (CH == 1 && COLS > 1) {
    float before[4] = {}, after[4] = {};
    if (at.column > 0) load_values(row - 4, before);
    if (at.column + COLS < s.w) load_values(row + COLS, after);
    const bool low = s.reflect && at.column == 0, high = s.reflect && at.column + COLS == s.w;
#pragma unroll
    for (int e = 1; e <= P; ++e) {
      f[P - e][0] = low ? own[e][0] : before[4 - e];
      f[P + COLS - 1 + e][0] = high ? own[COLS - 1 - e][0] : after[e - 1];
    }
  } else {
#pragma unroll
    for (int j = 0; j < COLS + 2 * P; ++j) {
      if (j >= P && j - P < at.active && j < COLS + P) continue;
      int column = at.column + j - P;
      if (s.reflect) column = mirrored(column, s.w);
      if (column >= 0 && column < s.w) load_values(row + (column - at.column) * k.x.stride_w, f[j]);
    }
  }
}

// x / c, see MdeWork.
template <int P, int COLS, int CH>
__device__ __forceinline__ void divide(const MdeWork& k, const MdePlace& at, int source,
                                       float (&f)[COLS + 2 * P][CH]) {
  const MdeShape& s = k.plan.s;
  const float down = at_edge(source, s.h) ? 2.0f : 1.0f;
#pragma unroll
  for (int j = 0; j < COLS + 2 * P; ++j) {
    const float factor = at_edge(mirrored(at.column + j - P, s.w), s.w) ? 2.0f * down : down;
#pragma unroll
    for (int c = 0; c < CH; ++c) f[j][c] *= factor;
  }
}

}  // namespace
}  // namespace medseg::cuda
