// Triplet attention, forward, first pass: all six pooled planes of an image from one read of it.
#pragma once
#include "triplet_planes.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace triplet {
namespace {

// The pooled planes of one image in flight: maximum, and sum (later mean) one plane behind it.
template <class A>
struct Pooled {
  using I = typename Lanes<A>::integer;
  Plane plane[3];  // padded
  A* origin[3];
  Plane flat[3];  // unpadded: gates and indices
  I* index[3];
  A* strips;  // plane 1 of each thread that is not its image's first: maximum, sum, index
};

template <class A>
Pooled<A> take_pooled(const TripletShape& s, Arena& arena, bool keep) {
  Pooled<A> q;
  for (int m = 0; m < 3; ++m) {
    q.plane[m] = Plane::of<A>(s, m, true);
    q.flat[m] = Plane::of<A>(s, m, false);
    q.origin[m] = arena.take<A>(2 * q.plane[m].size(), q.plane[m].origin());
    q.index[m] = keep ? arena.take<typename Lanes<A>::integer>(q.flat[m].size()) : nullptr;
  }
  q.strips = nullptr;
  return q;
}

// Where a thread gathers plane 1: the plane itself, or its own partial one.
template <class A>
struct Strip {
  A *maximum, *sum;
  typename Lanes<A>::integer* index;
  int64_t ld;
};

template <class A>
MEDSEG_INLINE Strip<A> strip_of(const Pooled<A>& q, const Place& at, int64_t part) {
  if (part == 0) return {q.origin[1], q.origin[1] + q.plane[1].size(), q.index[1], q.plane[1].ld};
  const int64_t size = q.flat[1].size();
  A* base = q.strips + (at.slot * at.parts + part) * 3 * size;
  return {base, base + size, reinterpret_cast<typename Lanes<A>::integer*>(base + 2 * size),
          q.flat[1].ld};
}

// R rows a1.. of channel-like index a0, pooled along all three axes.
template <class T, bool kIndex, int R>
MEDSEG_INLINE void pool_rows(const TripletShape& s, const T* x, const Pooled<Acc<T>>& q,
                             const Strip<Acc<T>>& strip, int64_t a0, int64_t a1, bool first) {
  using A = Acc<T>;
  using I = typename Lanes<A>::integer;
  constexpr int64_t L = Lanes<A>::count;
  Vec<A> row_max[R], row_sum[R];
  IVec<A> row_at[R];
  for (int r = 0; r < R; ++r) {
    row_max[r] = fill(lowest<A>());
    row_sum[r] = Vec<A>{};
    row_at[r] = IVec<A>{};
  }
  A* max0 = q.origin[0] + a1 * q.plane[0].ld;
  A* sum0 = max0 + q.plane[0].size();
  I* at0 = kIndex ? q.index[0] + a1 * q.flat[0].ld : nullptr;
  A* max1 = strip.maximum + a0 * strip.ld;
  A* sum1 = strip.sum + a0 * strip.ld;
  I* at1 = kIndex ? strip.index + a0 * q.flat[1].ld : nullptr;

  const auto column = [&](int64_t j, auto fetch) {
    Vec<A> best = first ? fill(lowest<A>()) : read<Vec<A>>(max1 + j);
    Vec<A> total{};
    IVec<A> at{};
    if (kIndex) at = first ? ifill<A>(a1) : read<IVec<A>>(at1 + j);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<A> v = fetch(x + r * s.stride_1 + j);
      const int64_t o = r * q.plane[0].ld + j;
      const Vec<A> before = read<Vec<A>>(max0 + o);
      if (kIndex) {
        I* p = at0 + r * q.flat[0].ld + j;
        write(p, v > before ? ifill<A>(a0) : read<IVec<A>>(p));
        at = v > best ? ifill<A>(a1 + r) : at;
        row_at[r] = v > row_max[r] ? ifill<A>(j) : row_at[r];
      }
      write(max0 + o, vmax(v, before));
      write(sum0 + o, read<Vec<A>>(sum0 + o) + v);
      best = vmax(v, best);
      total += v;
      row_max[r] = vmax(v, row_max[r]);
      row_sum[r] += v;
    }
    write(max1 + j, best);
    write(sum1 + j, first ? total : read<Vec<A>>(sum1 + j) + total);
    if (kIndex) write(at1 + j, at);
  };

  int64_t j = 0;
  for (; j + L <= s.a[2]; j += L) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) __builtin_prefetch(x + s.stride_0 + r * s.stride_1 + j);
    column(j, [](const T* p) { return load(p); });
  }
  if (j < s.a[2]) {
    // Absent lanes must not win a maximum; their share of the sums is taken off again at the end.
    const int64_t count = s.a[2] - j;
    const IVec<A> here = lane_numbers<A>() < ifill<A>(count);
    Vec<A> kept[R];
    for (int r = 0; r < R; ++r) kept[r] = row_sum[r];
    column(j, [&](const T* p) {
      const Vec<A> v = load_part(p, count);
      return here ? v : fill(lowest<A>());
    });
    for (int r = 0; r < R; ++r) row_sum[r] = kept[r] + load_part(x + r * s.stride_1 + j, count);
  }

  A* max2 = q.origin[2] + a0 * q.plane[2].ld + a1;
  A* sum2 = max2 + q.plane[2].size();
  for (int r = 0; r < R; ++r) {
    max2[r] = max_lanes<A>(row_max[r]);
    sum2[r] = sum_lanes<A>(row_sum[r]);
    if (!kIndex) continue;
    const IVec<A> at = row_at[r] + lane_numbers<A>();
    I lowest_at = static_cast<I>(s.a[2] - 1);
    bool found = false;
    for (int64_t i = 0; i < L; ++i) {
      if (row_max[r][i] == max2[r] && (!found || at[i] < lowest_at)) {
        lowest_at = at[i];
        found = true;
      }
    }
    q.index[2][a0 * q.flat[2].ld + a1 + r] = found ? lowest_at : 0;
  }
}

// What a thread without rows adds to plane 1: nothing.
template <class A>
void clear_strip(const Strip<A>& strip, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < cols; ++j) {
      strip.maximum[r * strip.ld + j] = lowest<A>();
      strip.sum[r * strip.ld + j] = 0;
      if (strip.index) strip.index[r * cols + j] = 0;
    }
  }
}

// This thread's rows a1 of one image, in blocks that stay in the first-level cache
// while all of a0 passes by.
template <class T, bool kIndex>
void pool(const TripletShape& s, const T* x, const Pooled<Acc<T>>& q, const Place& at) {
  using A = Acc<T>;
  constexpr int R = kIndex ? kRows / 2 : kRows;
  const Strip<A> strip = strip_of(q, at, at.part);
  const Range rows = at.of(s.a[1]);
  if (rows.begin == rows.end) clear_strip(strip, s.a[0], q.flat[1].ld);
  const int64_t width = round_up(s.a[2], Lanes<A>::count) * int64_t(sizeof(A));
  const int64_t block = round_up(larger(1, 8192 / width), R);
  for (int64_t begin = rows.begin; begin < rows.end; begin += block) {
    const int64_t end = smaller(begin + block, rows.end);
    for (int64_t r = begin; r < end; ++r) {
      A* line = q.origin[0] + r * q.plane[0].ld;
      for (int64_t j = 0; j < q.flat[0].ld; j += Lanes<A>::count) {
        write(line + j, fill(lowest<A>()));
        write(line + q.plane[0].size() + j, Vec<A>{});
        if (kIndex) write(q.index[0] + r * q.flat[0].ld + j, IVec<A>{});
      }
    }
    for (int64_t a0 = 0; a0 < s.a[0]; ++a0) {
      const T* base = x + a0 * s.stride_0;
      int64_t r = begin;
      for (; r + R <= end; r += R)
        pool_rows<T, kIndex, R>(s, base + r * s.stride_1, q, strip, a0, r, r == rows.begin);
      for (; r < end; ++r)
        pool_rows<T, kIndex, 1>(s, base + r * s.stride_1, q, strip, a0, r, r == rows.begin);
    }
  }
}

// Joins the strips of all parts, rows [begin, end) of plane 1; parts are in ascending a1, so the
// first maximum stays the first.
template <class A>
void join_strips(const Pooled<A>& q, const Place& at, Range rows) {
  const Strip<A> to = strip_of(q, at, 0);
  for (int64_t part = 1; part < at.parts; ++part) {
    const Strip<A> from = strip_of(q, at, part);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      for (int64_t j = 0; j < q.plane[1].cols; ++j) {
        const int64_t a = r * to.ld + j, b = r * from.ld + j;
        to.sum[a] += from.sum[b];
        if (!(from.maximum[b] > to.maximum[a])) continue;
        to.maximum[a] = from.maximum[b];
        if (to.index) to.index[r * q.flat[1].ld + j] = from.index[b];
      }
    }
  }
}

// Where what backward needs is kept; null: nothing is.
struct Keep {
  void* planes;  // acc: maxima, then means
  void* index;
  int index_bytes;
};

// Sums become means, margins zeros, and what is kept is copied out.
template <class A>
void finish(const TripletShape& s, const Keep& keep, const Pooled<A>& q, const Place& at) {
  for (int m = 0; m < 3; ++m) {
    const Plane& p = q.plane[m];
    const Range rows = at.of(p.rows);
    if (m == 1) join_strips(q, at, rows);
    A* maximum = q.origin[m];
    A* mean = maximum + p.size();
    const A scale = A(1) / A(s.a[m]);
    for (int64_t r = rows.begin; r < rows.end; ++r)
      for (int64_t j = 0; j < p.cols; ++j) mean[r * p.ld + j] *= scale;
    clear_around(p, maximum, rows);
    clear_around(p, mean, rows);
    if (!keep.planes) continue;
    const int64_t offset = kept_offset(s, m, at.image);
    A* maxima = static_cast<A*>(keep.planes) + offset;
    A* means = maxima + kept_positions(s);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      for (int64_t j = 0; j < p.cols; ++j) {
        const int64_t i = r * p.cols + j;
        maxima[i] = maximum[r * p.ld + j];
        means[i] = mean[r * p.ld + j];
        const auto found = q.index[m][r * q.flat[m].ld + j];
        if (keep.index_bytes == 2)
          static_cast<int16_t*>(keep.index)[offset + i] = static_cast<int16_t>(found);
        else
          static_cast<int32_t*>(keep.index)[offset + i] = static_cast<int32_t>(found);
      }
    }
  }
}

}  // namespace
}  // namespace triplet
}  // namespace MEDSEG_ISA
}  // namespace medseg
