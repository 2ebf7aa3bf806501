// What both directions of triplet attention share: where planes lie in scratch, and the small
// convolutions between them.
//
// An image is a 3-D array (a0, a1, a2) in memory order: (C, H, W), or (H, W, C) in channels_last.
// Plane m pools over axis m: plane 0 is (a1, a2), plane 1 (a0, a2), plane 2 (a0, a1). One kernel so
// serves both layouts; where a plane lies transposed, the taps are transposed instead.
#pragma once
#include "team.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace triplet {

// AVX-512 has registers for 8 rows of running maxima and sums, and half of that with indices.
constexpr int kRows = kBytes == 64 ? 8 : 4;

// A plane of rows x cols values. A padded one has zeros around for the convolution to read; rows
// begin on a cache line and end on a whole vector in either form.
struct Plane {
  int64_t rows, cols, margin, ld, height;

  template <class A>
  static MEDSEG_INLINE Plane of(const TripletShape& s, int m, bool padded) {
    const int64_t lanes = Lanes<A>::count, reach = padded ? s.taps / 2 : 0;
    Plane p;
    p.rows = s.a[m == 0 ? 1 : 0];
    p.cols = s.a[m == 2 ? 1 : 2];
    p.margin = round_up(reach, lanes);
    p.ld = round_up(p.cols, lanes) + 2 * p.margin;
    p.height = p.rows + 2 * reach;
    return p;
  }
  MEDSEG_INLINE int64_t size() const { return height * ld; }
  MEDSEG_INLINE int64_t origin() const { return (height - rows) / 2 * ld + margin; }
};

// Hands out pieces of scratch, as a pointer `origin` elements inside; a null base only counts.
struct Arena {
  char* base;
  int64_t used;

  template <class A>
  MEDSEG_INLINE A* take(int64_t count, int64_t origin = 0) {
    A* p = base ? reinterpret_cast<A*>(base + used) + origin : nullptr;
    used += round_up(count * int64_t(sizeof(A)), 64);
    return p;
  }
};

// Kept planes of the whole batch follow each other: n planes 0, n planes 1, n planes 2.
MEDSEG_INLINE int64_t plane_elements(const TripletShape& s, int m) {
  return s.a[m == 0 ? 1 : 0] * s.a[m == 2 ? 1 : 2];
}
MEDSEG_INLINE int64_t kept_offset(const TripletShape& s, int m, int64_t image) {
  int64_t offset = image * plane_elements(s, m);
  for (int before = 0; before < m; ++before) offset += s.n * plane_elements(s, before);
  return offset;
}
MEDSEG_INLINE int64_t kept_positions(const TripletShape& s) { return kept_offset(s, 2, s.n); }

struct Moments {  // of u over a piece of a plane
  double count, mean, m2;
};

MEDSEG_INLINE void combine(Moments& a, const Moments& b) {
  if (b.count == 0) return;
  const double count = a.count + b.count, delta = b.mean - a.mean;
  a.mean += delta * b.count / count;
  a.m2 += b.m2 + delta * delta * a.count * b.count / count;
  a.count = count;
}

// taps of plane m, (2, k, k), as the plane lies in memory; `flipped` for the transposed
// convolution.
template <class A>
void arrange_taps(const TripletShape& s, const A* conv_weight, int m, bool flipped, A* taps) {
  const int k = s.taps;
  for (int p = 0; p < 2; ++p) {
    const A* from = conv_weight + (s.gate[m] * 2 + p) * k * k;
    for (int i = 0; i < k; ++i) {
      for (int j = 0; j < k; ++j) {
        const int r = flipped ? k - 1 - i : i, c = flipped ? k - 1 - j : j;
        taps[(p * k + i) * k + j] = s.turned[m] ? from[c * k + r] : from[r * k + c];
      }
    }
  }
}

// Zeros around the rows [begin, end) of a padded plane, above the first and below the last row, and
// in the lanes beyond the last column.
template <class A>
void clear_around(const Plane& p, A* origin, Range rows) {
  if (rows.begin == rows.end) return;  // of more threads than rows, one alone clears each end
  const int64_t reach = (p.height - p.rows) / 2;
  const int64_t first = rows.begin == 0 ? -reach : rows.begin;
  const int64_t last = rows.end == p.rows ? p.rows + reach : rows.end;
  for (int64_t r = first; r < last; ++r) {
    A* row = origin + r * p.ld;
    const bool inside = r >= 0 && r < p.rows;
    for (int64_t j = -p.margin; j < (inside ? 0 : p.cols); ++j) row[j] = 0;
    for (int64_t j = p.cols; j < p.ld - p.margin; ++j) row[j] = 0;
  }
}

// R rows x C vectors of out at once: every loaded vector serves up to R rows.
template <int K, int R, int C, class A>
MEDSEG_INLINE void conv_tile(const A* in, int64_t ld, int64_t plane, int planes, const A* taps,
                             A* out, int64_t ld_out) {
  constexpr int64_t L = Lanes<A>::count;
  Vec<A> sum[R][C] = {};
  for (int p = 0; p < planes; ++p) {
    const A* top = in + p * plane - K / 2 * ld - K / 2;
    const A* weight = taps + p * K * K;
#pragma GCC unroll 16
    for (int row = 0; row < R + K - 1; ++row) {
#pragma GCC unroll 16
      for (int t = 0; t < K; ++t) {
        Vec<A> v[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) v[c] = load(top + row * ld + t + c * L);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          if (row - r < 0 || row - r >= K) continue;
#pragma GCC unroll 8
          for (int c = 0; c < C; ++c) sum[r][c] += v[c] * weight[(row - r) * K + t];
        }
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store(out + r * ld_out + c * L, sum[r][c]);
}

template <int K, int R, class A>
MEDSEG_INLINE void conv_band(const Plane& p, const A* in, int64_t plane, int planes, const A* taps,
                             A* out, int64_t ld_out) {
  constexpr int64_t L = Lanes<A>::count;
  int64_t j = 0;
  for (; j + 2 * L <= p.ld - 2 * p.margin; j += 2 * L)
    conv_tile<K, R, 2>(in + j, p.ld, plane, planes, taps, out + j, ld_out);
  for (; j < p.cols; j += L) conv_tile<K, R, 1>(in + j, p.ld, plane, planes, taps, out + j, ld_out);
}

template <int K, class A>
void conv_rows(const Plane& p, const A* in, int planes, const A* taps, Range rows, A* out,
               int64_t ld_out) {
  int64_t r = rows.begin;
  for (; r + 4 <= rows.end; r += 4)
    conv_band<K, 4>(p, in + r * p.ld, p.size(), planes, taps, out + r * ld_out, ld_out);
  for (; r < rows.end; ++r)
    conv_band<K, 1>(p, in + r * p.ld, p.size(), planes, taps, out + r * ld_out, ld_out);
}

// Any odd k, one vector at a time.
template <class A>
void conv_rows_any(const Plane& p, const A* in, int planes, const A* taps, int k, Range rows,
                   A* out, int64_t ld_out) {
  constexpr int64_t L = Lanes<A>::count;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int64_t j = 0; j < p.cols; j += L) {
      Vec<A> sum{};
      for (int q = 0; q < planes; ++q) {
        const A* top = in + q * p.size() + (r - k / 2) * p.ld + j - k / 2;
        for (int i = 0; i < k; ++i)
          for (int t = 0; t < k; ++t) sum += load(top + i * p.ld + t) * taps[(q * k + i) * k + t];
      }
      store(out + r * ld_out + j, sum);
    }
  }
}

// out[r, :] = sum over planes and taps of taps[i, j] * in[r + i - k/2, : + j - k/2]; `in` points at
// the origin of the first padded plane, the next lies p.size() behind.
template <class A>
void convolve(const Plane& p, const A* in, int planes, const A* taps, int k, Range rows, A* out,
              int64_t ld_out) {
  if (k == 7) return conv_rows<7>(p, in, planes, taps, rows, out, ld_out);
  if (k == 3) return conv_rows<3>(p, in, planes, taps, rows, out, ld_out);
  conv_rows_any(p, in, planes, taps, k, rows, out, ld_out);
}

}  // namespace triplet
}  // namespace MEDSEG_ISA
}  // namespace medseg
