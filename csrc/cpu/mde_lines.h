// The MDE filter along lines: a row of a plane, or, in channels_last with fewer channels than
// lanes, a row of pixels, whose neighbours then lie `step` elements apart.
//
// Per row: pairs p_d = row[y-d] + row[y+d], four sums q_d = sum_k w(k, d) p_k over the columns,
// then out[i] = q_0[i] + sum_d q_d[i - d step] + q_d[i + d step]. The lines q stay in the first
// cache, and are read a row later than written: a vector across two stores waits for both.
#pragma once
#include "mde_stencil.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

// A thread's lines. Vectors move by `stride`, whole pixels; where nothing may be read behind the
// row's end (`tight`) the last one is moved back.
template <class A>
struct Lines {
  int64_t count, step, stride;
  bool tight;
  A *q[2][4], *x;    // of even and odd rows; with a margin for the neighbours on both sides
  A *inner, *outer;  // D of the rows inside, and of the first and the last
  // Calls body(first element) for vectors that cover the line.
  template <class Body>
  MEDSEG_INLINE void each(Body body) const {
    const int64_t end = tight ? count - Lanes<A>::count : count - 1, by = stride;
    int64_t i = 0;
    for (; i <= end; i += by) body(i);
    if (tight && i < count) body(end);
  }
};

template <class A>
Lines<A> lines_of(const MdeCall& a, const Plan<A>& plan, bool kept, A* mine) {
  const MdeShape& s = a.shape;
  Lines<A> l;
  l.count = line_of(s), l.step = step_of(s), l.tight = !kept;
  l.stride = Lanes<A>::count / l.step * l.step;
  for (int64_t i = 0; i < plan.thread; ++i) mine[i] = 0;
  l.inner = mine + (slots(s.radius) + 1) * plan.pitch;
  l.outer = l.inner + plan.pitch;
  A* padded = l.outer + plan.pitch + plan.margin;
  for (int i = 0; i < 2 * (s.radius + 1); ++i, padded += plan.padded) l.q[i % 2][i / 2] = padded;
  l.x = padded;
  for (int64_t i = 0; i < l.count; ++i) {
    const bool edge = i < l.step || i >= l.count - l.step;
    l.inner[i] = A(s.reflect && edge ? 0.5 : 1);
    l.outer[i] = A(s.reflect ? 0.5 : 1) * l.inner[i];
  }
  return l;
}

// pair[d] = rows[y - d] + rows[y + d] at element i
template <int P, class A>
MEDSEG_INLINE void pairs(const A* const* rows, int64_t i, Vec<A>* pair) {
  pair[0] = read<Vec<A>>(rows[P] + i);
#pragma GCC unroll 3
  for (int d = 1; d <= P; ++d)
    pair[d] = read<Vec<A>>(rows[P - d] + i) + read<Vec<A>>(rows[P + d] + i);
}

template <int P, class A>
void vertical(const A* const* around, const Lines<A>& l, A* const* lines, const Vec<A>* weight) {
  // Copies: what the stores below might point to would be read again in every turn.
  const A* rows[2 * P + 1];
  A* q[P + 1];
  Vec<A> w[uniques(P)];
#pragma GCC unroll 7
  for (int k = 0; k <= 2 * P; ++k) rows[k] = around[k];
#pragma GCC unroll 4
  for (int d = 0; d <= P; ++d) q[d] = lines[d];
  for (int u = 0; u < uniques(P); ++u) w[u] = weight[u];
  const auto sums = [&](int64_t at) {
    Vec<A> pair[P + 1];
    pairs<P>(rows, at, pair);
#pragma GCC unroll 4
    for (int d = 0; d <= P; ++d) {
      Vec<A> sum = w[unique(0, d)] * pair[0];
#pragma GCC unroll 3
      for (int k = 1; k <= P; ++k) sum += w[unique(k, d)] * pair[k];
      write(q[d] + at, sum);
    }
  };
  l.each(sums);
}

// What lies beyond the ends of a line: nothing, or its own elements mirrored.
template <class A>
MEDSEG_INLINE void extend(A* line, const Lines<A>& l, int reach, bool reflect) {
  for (int64_t d = 1; d <= reach; ++d)
    for (int64_t c = 0; c < l.step; ++c) {
      A* left = line + c;
      A* right = line + l.count - l.step + c;
      left[-d * l.step] = reflect ? left[d * l.step] : A(0);
      right[d * l.step] = reflect ? right[-d * l.step] : A(0);
    }
}

// out = q_0 + the pairs of the others, times kCorner factor if there is one
template <int P, bool kFactor, class T>
void horizontal(const Lines<Acc<T>>& l, Acc<T>* const* q, const Acc<T>* factor, T* out) {
  using A = Acc<T>;
  const A *left[P + 1], *right[P + 1];
#pragma GCC unroll 4
  for (int d = 0; d <= P; ++d) left[d] = q[d] - d * l.step, right[d] = q[d] + d * l.step;
  const auto sum = [&](int64_t at) {
    Vec<A> v = read<Vec<A>>(left[0] + at);
#pragma GCC unroll 3
    for (int d = 1; d <= P; ++d) v += read<Vec<A>>(left[d] + at) + read<Vec<A>>(right[d] + at);
    if (kFactor) v *= read<Vec<A>>(factor + at) * A(kCorner);
    return v;
  };
  const int64_t spare = l.count - Lanes<A>::count;
  l.each([&](int64_t at) {
    if (at <= spare)
      store(out + at, sum(at));
    else
      store_part(out + at, sum(at), l.count - at);
  });
}

// sums[u] += the pairs of rows times the pairs of x along the line, times factor: what the gradient
// of weight u is made of. D once, since of the two maps only the vertical one acts on the rows.
template <int P, class A>
void correlate(const A* const* around, const Lines<A>& l, const A* factor, Vec<A>* sums) {
  const A *rows[2 * P + 1], *x = l.x;
  Vec<A> sum[uniques(P)];
#pragma GCC unroll 7
  for (int k = 0; k <= 2 * P; ++k) rows[k] = around[k];
  for (int u = 0; u < uniques(P); ++u) sum[u] = sums[u];
  const int64_t count = l.count, stride = l.stride, step = l.step;
  for (int64_t i = 0; i < count; i += stride) {
    Vec<A> pair[P + 1], across[P + 1];
    pairs<P>(rows, i, pair);
    across[0] = read<Vec<A>>(x + i);
#pragma GCC unroll 3
    for (int d = 1; d <= P; ++d)
      across[d] = read<Vec<A>>(x + i - d * step) + read<Vec<A>>(x + i + d * step);
    const Vec<A> f = read<Vec<A>>(factor + i);
#pragma GCC unroll 4
    for (int d = 0; d <= P; ++d) {
      across[d] *= f;
#pragma GCC unroll 4
      for (int k = 0; k <= P; ++k) sum[unique(k, d)] += across[d] * pair[k];
    }
  }
  for (int u = 0; u < uniques(P); ++u) sums[u] = sum[u];
}

// l.x = a row of x, with its neighbours
template <class T>
void bring_x(const MdeCall& a, int64_t n, int64_t c, int64_t y, const Lines<Acc<T>>& l) {
  const MdeStrides& t = a.x_strides;
  Rows<T> rows{};
  rows.base = static_cast<const T*>(a.x) + n * t.n + c * t.c;
  rows.stride_h = t.h, rows.stride_w = t.w, rows.w = a.shape.w, rows.h = a.shape.h;
  rows.group = l.step;
  rows.bring(y, l.x);
  extend(l.x, l, a.shape.radius, a.shape.reflect);
}

// Adds the lanes of vector sums to the doubles of a band, [u][channel], and clears them.
template <int P, class A>
void flush(const Lines<A>& l, Vec<A>* sums, double* band) {
  for (int u = 0; u < uniques(P); ++u, band += l.step) {
    if (l.step == 1) *band += sum_lanes<A>(sums[u]);
    for (int64_t i = 0; l.step > 1 && i < l.stride; i += l.step)
      for (int64_t c = 0; c < l.step; ++c) band[c] += sums[u][i + c];
    sums[u] = Vec<A>{};
  }
}

// A line of out whose pixels do not lie together.
template <class T>
void scatter(const T* line, const MdeStrides& t, const MdeShape& s, T* out) {
  for (int64_t x = 0; x < s.w; ++x)
    for (int64_t c = 0; c < s.c; ++c) out[x * t.w + c] = line[x * s.c + c];
}

// channels_last: a row of the pixels that come up from the decoder
template <class T>
MEDSEG_INLINE void copy_row(const MdeCall& a, int64_t n, int64_t y) {
  const MdeStrides &from = a.up_strides, &to = a.out_strides;
  const T* p = static_cast<const T*>(a.up) + n * from.n + y * from.h;
  T* out = static_cast<T*>(a.up_out) + n * to.n + y * to.h;
  for (int64_t x = 0; x < a.shape.w; ++x)
    __builtin_memcpy(out + x * to.w, p + x * from.w, a.up_c * sizeof(T));
}

template <class T, int P>
struct LineWalk {
  using A = Acc<T>;
  const MdeCall& a;
  const Plan<A>& plan;
  bool kept;

  // Whether rows have to be copied: to be widened, weighed, or filled up to whole vectors.
  static bool must_keep(const MdeCall& a) {
    constexpr int64_t L = Lanes<A>::count;
    const MdeShape& s = a.shape;
    return sizeof(T) != sizeof(A) || s.channels_last || s.w < L || (a.x && s.w % L) ||
           (a.adjoint && s.reflect);
  }
  void load_weights(const A* table, int64_t c, Vec<A>* weight) const {
    for (int u = 0; u < uniques(P); ++u) {
      const A* w = table + u * plan.weights;
      weight[u] = a.shape.channels_last ? read<Vec<A>>(w) : fill(w[c]);
    }
  }
  // Row y of out, from the sums of its columns.
  void finish(const Lines<A>& l, int64_t n, int64_t c, int64_t y) const {
    const MdeShape& s = a.shape;
    const MdeStrides& t = a.out_strides;
    T* out = static_cast<T*>(a.out) + n * t.n + c * t.c + y * t.h;
    A* const* q = l.q[y & 1];
    // Rows of NCHW are dense whatever t.w is: an axis of length 1 may have any stride. Where pixels
    // do not lie together the line of x is free.
    const bool packed = !s.channels_last || t.w == l.step;
    T* target = packed ? out : reinterpret_cast<T*>(l.x);
    if (a.adjoint && s.reflect)
      horizontal<P, true>(l, q, at_edge(y, s.h) ? l.outer : l.inner, target);
    else
      horizontal<P, false>(l, q, l.inner, target);
    if (!packed) scatter(target, t, s, out);
  }
  void band_of_rows(Rows<T>& rows, const Lines<A>& l, const Vec<A>* weight, int64_t n, int64_t c,
                    Range range, double* band) const {
    const MdeShape& s = a.shape;
    const A* around[2 * P + 1];
    Vec<A> sums[uniques(P)] = {};
    const int64_t often = larger(1, 4096 / l.count);
    for (int64_t y = range.begin; y < range.end; ++y) {
      rows.around(y, P, around);
      if (a.x) bring_x<T>(a, n, c, y, l);
      if (a.out) {
        vertical<P>(around, l, l.q[y & 1], weight);
        if (s.reflect)  // else the margins have stayed zero
          for (int d = 1; d <= P; ++d) extend(l.q[y & 1][d], l, d, true);
        if (y > range.begin) finish(l, n, c, y - 1);
      }
      if (a.up && s.channels_last) copy_row<T>(a, n, y);
      if (!a.x) continue;
      correlate<P>(around, l, at_edge(y, s.h) ? l.outer : l.inner, sums);
      if ((y - range.begin) % often == often - 1 || y == range.end - 1) flush<P>(l, sums, band);
    }
    if (a.out) finish(l, n, c, range.end - 1);
  }
  void operator()(const A* table) const {
    const MdeShape& s = a.shape;
    A* mine = plan.of_thread(a, thread_number());
    const Lines<A> l = lines_of(a, plan, kept, mine);
    Rows<T> rows{};
    int64_t current = -1;
    Vec<A> weight[uniques(P)];
    for_each_band(s, [&](int64_t band, int64_t plane, int64_t begin, int64_t end) {
      const int64_t n = s.channels_last ? plane : plane / s.c;
      const int64_t c = s.channels_last ? 0 : plane % s.c;
      if (plane != current) {
        rows = rows_of<T>(a, plan, kept, n, c, mine);
        load_weights(table, c, weight);
        current = plane;
      }
      band_of_rows(rows, l, weight, n, c, {begin, end}, plan.of_band(a, band));
    });
  }
};

}  // namespace
}  // namespace MEDSEG_ISA
}  // namespace medseg
