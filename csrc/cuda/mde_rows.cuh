// The kernel of the MDE filter: every thread walks down the rows of its columns.
#pragma once
#include "mde.cuh"

namespace medseg::cuda {
namespace {

// t_0, ..., t_P of each channel: the weight of x, then of each radius' row x row. The difference of
// the gains comes first, so that equal gains give x back as it is.
template <int P, int CH>
__device__ __forceinline__ void load_taps(const MdeWork& k, const MdePlace& at,
                                          float (&taps)[P + 1][CH]) {
  const MdeShape& s = k.plan.s;
#pragma unroll
  for (int c = 0; c < CH; ++c) {
    const float* gains = k.gains + (at.channel + c) * k.stride_gain;
    taps[0][c] = gains[0];
#pragma unroll
    for (int r = 1; r <= P; ++r) {
      const int j = s.bank.gain[r - 1];
      taps[r][c] = j > 0 ? (gains[j] - gains[j - 1]) * s.bank.norm[r - 1] : 0.0f;
    }
  }
}

// pairs[0] = x, pairs[e] = x[-e] + x[e]; out[r - 1] = row r of the bank along them.
template <int P>
__device__ __forceinline__ void smooth(const MdeShape& s, const float (&pairs)[P + 1],
                                       float (&out)[P]) {
#pragma unroll
  for (int r = 1; r <= P; ++r) {
    float sum = pairs[r];
#pragma unroll
    for (int e = 0; e < r; ++e) sum = fmaf(s.bank.row[4 * r - 4 + e], pairs[e], sum);
    out[r - 1] = sum;
  }
}

// Adds what the row gives to the 2 P rows still open and to a new one; returns the finished row.
template <int P>
__device__ __forceinline__ float add_row(const MdeShape& s, const float (&pairs)[P + 1],
                                         const float (&rows)[P], const float* taps, int stride,
                                         float (&open)[2 * P]) {
  float center = fmaf(taps[0], pairs[0], open[P]), given[P];
  if (P == 1 &&
      s.bank.cross) {  // a corner weighs 0, not nothing: what is not finite there must spread
    center = fmaf(taps[stride], pairs[0] + pairs[1], center);
    given[0] = taps[stride] * fmaf(0.0f, pairs[1], pairs[0]);
  } else {
    float weighed[P];
#pragma unroll
    for (int r = 0; r < P; ++r) {
      weighed[r] = taps[(r + 1) * stride] * rows[r];
      center = fmaf(s.bank.row[4 * r], weighed[r], center);
    }
#pragma unroll
    for (int d = 1; d <= P; ++d) {
      float sum = weighed[d - 1];
#pragma unroll
      for (int r = d + 1; r <= P; ++r) sum = fmaf(s.bank.row[4 * r - 4 + d], weighed[r - 1], sum);
      given[d - 1] = sum;
    }
  }
  const float done = open[0] + given[P - 1];
#pragma unroll
  for (int i = 1; i < 2 * P; ++i)
    open[i - 1] = i == P ? center : open[i] + given[(i < P ? P - i : i - P) - 1];
  open[2 * P - 1] = given[P - 1];
  return done;
}

// What the gradient of the gains needs of one position: x * (mask r of grad), norm left out. kept:
// x from P rows above to P below. The mask works along the row on grad, across it on x.
template <int P>
__device__ __forceinline__ void add_products(const MdeShape& s, const float (&pairs)[P + 1],
                                             const float (&rows)[P], const float* kept, int stride,
                                             float factor, float* sums, int sums_stride) {
  float across[P + 1], smoothed[P];
  across[0] = kept[P * stride] * factor;
#pragma unroll
  for (int d = 1; d <= P; ++d)
    across[d] = (kept[(P - d) * stride] + kept[(P + d) * stride]) * factor;
  smooth<P>(s, across, smoothed);
  sums[0] = fmaf(pairs[0], across[0], sums[0]);
  if (P == 1 && s.bank.cross) {
    sums[sums_stride] += fmaf(pairs[0], across[0] + across[1], pairs[1] * across[0]);
    return;
  }
#pragma unroll
  for (int r = 0; r < P; ++r)
    sums[(r + 1) * sums_stride] = fmaf(rows[r], smoothed[r], sums[(r + 1) * sums_stride]);
}

// What a thread carries from row to row.
template <int P, int COLS, int CH, bool PRODUCTS>
struct MdeState {
  float taps[P + 1][CH];
  float open[COLS][CH][2 * P];
  float kept[PRODUCTS ? 2 * P + 1 : 1][COLS][CH];
  float sums[PRODUCTS ? P + 1 : 1][CH];
};

// Works row `row` in; out receives row - P where that is the block's.
template <class T, int P, int COLS, int CH, bool PRODUCTS>
__device__ __forceinline__ void work_row(const MdeWork& k, const MdePlace& at, int row,
                                         const float (&f)[COLS + 2 * P][CH], T* out,
                                         MdeState<P, COLS, CH, PRODUCTS>& state) {
  const MdeShape& s = k.plan.s;
  const int to = row - P;
  const bool write = out && to >= at.first && to < at.end, count = row >= at.first && row < at.end;
  float done[COLS][CH];
#pragma unroll
  for (int j = 0; j < COLS; ++j)
#pragma unroll
    for (int c = 0; c < CH; ++c) {
      float pairs[P + 1], rows[P], factor = 1.0f;
      pairs[0] = f[j + P][c];
#pragma unroll
      for (int e = 1; e <= P; ++e) pairs[e] = f[j + P - e][c] + f[j + P + e][c];
      smooth<P>(s, pairs, rows);
      done[j][c] = add_row<P>(s, pairs, rows, &state.taps[0][c], CH, state.open[j][c]);
      if (k.divided) {
        factor = at_edge(at.column + j, s.w) ? 0.5f : 1.0f;
        done[j][c] *= at_edge(to, s.h) ? 0.5f * factor : factor;
        if (at_edge(row, s.h)) factor *= 0.5f;
      }
      if (PRODUCTS && count && j < at.active)
        add_products<P>(s, pairs, rows, &state.kept[0][j][c], COLS * CH, factor, &state.sums[0][c],
                        CH);
    }
  if (!write || at.active <= 0) return;
  T* target = out + to * k.out.stride_h;
  if constexpr (CH == 1 && COLS > 1) {
    float flat[COLS];
#pragma unroll
    for (int j = 0; j < COLS; ++j) flat[j] = done[j][0];
    store_values(target, flat);
  } else {
#pragma unroll
    for (int j = 0; j < COLS; ++j)
      if (j < at.active) store_values(target + j * k.out.stride_w, done[j]);
  }
}

// part[r, part, n, c] = the block's sums, each unit's threads in order.
template <int P, int CH>
__device__ __forceinline__ void store_sums(const MdeWork& k, const MdePlace& at,
                                           const float (&sums)[P + 1][CH]) {
  struct Sums {
    float value[P + 1][CH][kMdeThreads];
  };
  MEDSEG_SHARED(Sums, shared);
  const MdePlan& p = k.plan;
  const int t = threadIdx.x;
#pragma unroll
  for (int r = 0; r <= P; ++r)
#pragma unroll
    for (int c = 0; c < CH; ++c) shared.value[r][c][t] = sums[r][c];
  __syncthreads();
  const int place = p.s.last ? t / p.block_u : t % p.block_w;
  if (place != 0 || at.n >= p.s.n) return;  // the unit's first thread adds
  const int step = p.s.last ? p.block_u : 1;
#pragma unroll
  for (int r = 0; r <= P; ++r)
#pragma unroll
    for (int c = 0; c < CH; ++c) {
      const float* from = &shared.value[r][c][t];
      const float sum = part_sum(p.block_w, [&](int64_t i) { return from[i * step]; });
      k.part[((r * p.parts() + at.part) * p.s.n + at.n) * p.s.c + at.channel + c] = sum;
    }
}

// Blocks that a multiprocessor must hold at once, which bounds the registers of a thread.
constexpr int mde_blocks(int p, int cols, int ch, bool products) {
  if (p == 1 || cols * ch == 1) return 4;
  if (products && ch > 1) return p == 3 ? 2 : 3;
  return ch > 1 || (p == 3 && (products || cols == 8)) ? 3 : 4;
}

// out = the filter of x; PRODUCTS: the partial sums for the gradient of the gains. One read of x,
// one write, and with products one read of `other`; 2 P rows a span and the seams of blocks are
// read again, from L1 or L2.
template <class T, int P, int COLS, int CH, bool PRODUCTS>
__global__ void __launch_bounds__(kMdeThreads, mde_blocks(P, COLS, CH, PRODUCTS))
    mde_rows(const MdeWork k) {
  const MdePlace at = mde_place(k.plan);
  const MdeShape& s = k.plan.s;
  const T* base = mde_base<const T>(k.x, at);
  const T* beside = PRODUCTS ? mde_base<const T>(k.other, at) : nullptr;
  T* out = k.out.data ? mde_base<T>(k.out, at) : nullptr;
  MdeState<P, COLS, CH, PRODUCTS> state{};
  if (at.active > 0) load_taps<P, CH>(k, at, state.taps);
  Tile<T, COLS, CH> ahead[kMdeAhead];
  const int start = at.first - P, stop = at.end + P;
#pragma unroll
  for (int i = 0; i < kMdeAhead; ++i)
    ahead[i].load(k.x, base, mde_source(s, start + i, stop), at.active);
  const auto push = [&](int row) {
    Tile<T, COLS, CH> tile;
    tile.load(k.other, beside, mde_source(s, row, stop), at.active);
#pragma unroll
    for (int i = 0; i < 2 * P; ++i)
#pragma unroll
      for (int j = 0; j < COLS; ++j)
#pragma unroll
        for (int c = 0; c < CH; ++c) state.kept[i][j][c] = state.kept[i + 1][j][c];
    tile.unpack(state.kept[PRODUCTS ? 2 * P : 0]);
  };
  if constexpr (PRODUCTS)
    for (int row = start; row < at.first; ++row) push(row);
  for (int first = start; first < stop; first += kMdeAhead) {
#pragma unroll
    for (int i = 0; i < kMdeAhead; ++i) {
      const int row = first + i, source = mde_source(s, row, stop);
      float f[COLS + 2 * P][CH];
      widen<T, P, COLS, CH>(k, at, base, source, ahead[i], f);
      ahead[i].load(k.x, base, mde_source(s, row + kMdeAhead, stop), at.active);
      if (k.divided) divide<P, COLS, CH>(k, at, source, f);
      if constexpr (PRODUCTS) push(row + P);
      work_row<T, P, COLS, CH, PRODUCTS>(k, at, row, f, out, state);
    }
  }
  if constexpr (PRODUCTS) store_sums<P, CH>(k, at, state.sums);
}

}  // namespace
}  // namespace medseg::cuda
