// The MDE filter in channels_last: lanes are channels, a walk along the row holds the outputs that
// are not complete yet in registers.
#pragma once
#include "mde_lines.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

// One block of channels of one row: out[x - d] and out[x + d] += sum_k w(k, d) p_k(x), x ascending.
template <class T, int P>
struct PixelRow {
  using A = Acc<T>;
  const A* rows[2 * P + 1];
  int64_t pitch, w;
  Vec<A> weight[uniques(P)];
  Vec<A> open[2 * P + 1];  // outputs x - P to x + P

  MEDSEG_INLINE void step(int64_t x) {
    Vec<A> pair[P + 1];
    pairs<P>(rows, x * pitch, pair);
#pragma GCC unroll 4
    for (int d = 0; d <= P; ++d) {
      Vec<A> sum = weight[unique(0, d)] * pair[0];
#pragma GCC unroll 3
      for (int k = 1; k <= P; ++k) sum += weight[unique(k, d)] * pair[k];
      if (d > 0) open[P - d] += sum;
      open[P + d] = d == P ? sum : open[P + d] + sum;
    }
  }
  MEDSEG_INLINE void shift() {
#pragma GCC unroll 6
    for (int k = 0; k < 2 * P; ++k) open[k] = open[k + 1];
    open[2 * P] = Vec<A>{};
  }
  // kFactor: times D kCorner, `factor` inside the row and half of it at its ends
  template <bool kFactor>
  MEDSEG_INLINE void walk(bool reflect, A factor, T* out, int64_t out_pitch) {
    const auto emit = [&](int64_t x) {
      if (kFactor) open[0] *= kCorner * (at_edge(x, w) ? factor / 2 : factor);
      store(out + x * out_pitch, open[0]);
    };
    for (Vec<A>& v : open) v = Vec<A>{};
    for (int64_t x = reflect ? -P : 0; x < smaller(P, w); ++x) {
      step(mirror(x, w));
      shift();
    }
    for (int64_t x = P; x < w; ++x) {
      step(x);
      emit(x - P);
      shift();
    }
    for (int64_t x = w; x < w + P; ++x) {
      if (reflect) step(mirror(x, w));
      if (x >= P) emit(x - P);
      shift();
    }
  }
};

// sums[u][lane] += pairs of the rows times pairs of x along the row, times D with kFactor.
template <bool kFactor, class T, int P>
MEDSEG_INLINE void correlate_pixels(const PixelRow<T, P>& r, const T* x, int64_t x_pitch,
                                    bool reflect, Acc<T> factor, int64_t from, double* sums,
                                    int64_t channels) {
  using A = Acc<T>;
  Vec<A> sum[uniques(P)] = {}, near[2 * P + 1] = {};  // near: x of pixels i - P to i + P
  const auto fetch = [&](int64_t i) {
    if (reflect) i = mirror(i, r.w);
    return i >= 0 && i < r.w ? load(x + i * x_pitch) : Vec<A>{};
  };
  for (int64_t k = 0; k < 2 * P; ++k) near[k + 1] = fetch(k - P);
  for (int64_t i = 0; i < r.w; ++i) {
#pragma GCC unroll 6
    for (int k = 0; k < 2 * P; ++k) near[k] = near[k + 1];
    near[2 * P] = fetch(i + P);
    Vec<A> pair[P + 1];
    pairs<P>(r.rows, i * r.pitch, pair);
#pragma GCC unroll 4
    for (int d = 0; d <= P; ++d) {
      Vec<A> across = d ? near[P - d] + near[P + d] : near[P];
      if (kFactor) across *= at_edge(i, r.w) ? factor / 2 : factor;
#pragma GCC unroll 4
      for (int k = 0; k <= P; ++k) sum[unique(k, d)] += across * pair[k];
    }
  }
  for (int u = 0; u < uniques(P); ++u)
    for (int64_t lane = from; lane < Lanes<A>::count; ++lane)
      sums[u * channels + lane] += sum[u][lane];
}

template <class T, int P>
struct PixelWalk {
  using A = Acc<T>;
  const MdeCall& a;
  const Plan<A>& plan;
  bool kept;

  // Rows of the tensor itself often lie a multiple of 4096 bytes apart and throw each other out of
  // the first cache; kept ones do not, which pays for the copy.
  static bool must_keep(const MdeCall&) { return true; }
  // Rows are pointed to at their first channel; the last block of channels overlaps the one before.
  void row(const A* const* around, const A* table, int64_t n, int64_t y, double* sums) const {
    constexpr int64_t L = Lanes<A>::count;
    const MdeShape& s = a.shape;
    const bool weighed = a.adjoint && s.reflect;
    const A factor = A(weighed && at_edge(y, s.h) ? 0.5 : 1);
    PixelRow<T, P> r;
    r.pitch = s.c, r.w = s.w;
    for (int64_t block = 0; block < s.c; block += L) {
      const int64_t c = smaller(block, s.c - L);
      for (int k = 0; k <= 2 * P; ++k) r.rows[k] = around[k] + c;
      for (int u = 0; u < uniques(P); ++u) r.weight[u] = read<Vec<A>>(table + u * plan.weights + c);
      if (a.out) {
        const MdeStrides& t = a.out_strides;
        T* out = static_cast<T*>(a.out) + n * t.n + y * t.h + c;
        weighed ? r.template walk<true>(true, factor, out, t.w)
                : r.template walk<false>(s.reflect, factor, out, t.w);
      }
      if (!a.x) continue;
      const MdeStrides& t = a.x_strides;
      const T* x = static_cast<const T*>(a.x) + n * t.n + y * t.h + c;
      weighed ? correlate_pixels<true>(r, x, t.w, true, factor, block - c, sums + c, s.c)
              : correlate_pixels<false>(r, x, t.w, false, factor, block - c, sums + c, s.c);
    }
  }
  void operator()(const A* table) const {
    const MdeShape& s = a.shape;
    A* mine = plan.of_thread(a, thread_number());
    Rows<T> rows{};
    int64_t current = -1;
    for_each_band(s, [&](int64_t band, int64_t n, int64_t begin, int64_t end) {
      if (n != current) {
        rows = rows_of<T>(a, plan, kept, n, 0, mine);
        if (current < 0)
          for (int64_t i = 0; i < plan.pitch; ++i) rows.zeros[i] = 0;
        current = n;
      }
      const A* around[2 * P + 1];
      for (int64_t y = begin; y < end; ++y) {
        rows.around(y, P, around);
        row(around, table, n, y, plan.of_band(a, band));
        if (a.up) copy_row<T>(a, n, y);
      }
    });
  }
};

}  // namespace
}  // namespace MEDSEG_ISA
}  // namespace medseg
