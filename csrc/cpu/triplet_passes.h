// Triplet attention, backward: what is kept between its two passes over the map, the passes, and
// the correlation that gives the gradient of the taps.
#pragma once
#include "triplet_planes.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace triplet {
namespace {

constexpr int kRows = kBytes == 64 ? 8 : 4;

// Of every image, from the first pass to the second.
template <class A>
struct Kept {
  A *u[3], *gate[3], *dv[3];  // flat planes; gate is divided by the number of gates
};

// Of one image in flight.
template <class A>
struct Flight {
  using I = typename Lanes<A>::integer;
  Plane plane[3], flat[3];
  A *q[3], *du[3];           // origins of padded planes: maximum and mean; du
  A *at_max[3], *at_all[3];  // flat: what the maximum, and every element of the line, receives
  I* index[3];
};

// R rows of sum(grad_out * x) along all three axes; the shape of the forward's pool_rows.
template <class T, int R>
MEDSEG_INLINE void dot_rows(const TripletShape& s, const T* x, const T* dy, Acc<T>* line0,
                            int64_t ld0, Acc<T>* line1, Acc<T>* line2, bool first) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  Vec<A> row[R] = {};
  const auto column = [&](int64_t j, auto product) {
    Vec<A> total{};
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<A> v = product(x + r * s.stride_1 + j, dy + r * s.a[2] + j);
      A* p = line0 + r * ld0 + j;
      write(p, read<Vec<A>>(p) + v);
      total += v;
      row[r] += v;
    }
    write(line1 + j, first ? total : read<Vec<A>>(line1 + j) + total);
  };
  int64_t j = 0;
  for (; j + L <= s.a[2]; j += L) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch(x + s.stride_0 + r * s.stride_1 + j);
      __builtin_prefetch(dy + s.a[1] * s.a[2] + r * s.a[2] + j);
    }
    column(j, [](const T* p, const T* q) { return load(p) * load(q); });
  }
  if (j < s.a[2]) {
    const int64_t count = s.a[2] - j;
    column(j, [&](const T* p, const T* q) { return load_part(p, count) * load_part(q, count); });
  }
  for (int r = 0; r < R; ++r) line2[r] = sum_lanes<A>(row[r]);
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// Pass 1 over one image: dv[m] receives the plain sums of grad_out * x.
template <class T>
void dot(const TripletShape& s, const T* x, const T* dy, const Kept<Acc<T>>& k, Acc<T>* strip,
         Range rows) {
  using A = Acc<T>;
  const int64_t ld0 = Plane::of<A>(s, 0, false).ld, ld2 = Plane::of<A>(s, 2, false).ld;
  const int64_t block = round_up(larger(1, 8192 / (ld0 * int64_t(sizeof(A)))), kRows);
  if (rows.begin == rows.end)  // a thread without rows adds nothing
    for (int64_t i = 0; i < s.a[0] * ld0; ++i) strip[i] = 0;
  for (int64_t begin = rows.begin; begin < rows.end; begin += block) {
    const int64_t end = smaller(begin + block, rows.end);
    for (int64_t i = begin * ld0; i < end * ld0; ++i) k.dv[0][i] = 0;
    for (int64_t a0 = 0; a0 < s.a[0]; ++a0) {
      int64_t r = begin;
      const auto step = [&](auto count) {
        constexpr int R = decltype(count)::value;
        for (; r + R <= end; r += R)
          dot_rows<T, R>(s, x + a0 * s.stride_0 + r * s.stride_1, dy + (a0 * s.a[1] + r) * s.a[2],
                         k.dv[0] + r * ld0, ld0, strip + a0 * ld0, k.dv[2] + a0 * ld2 + r,
                         r == rows.begin);
      };
      step(Count<kRows>{});
      step(Count<1>{});
    }
  }
}

// Kept planes back into padded ones, rows [rows.begin, rows.end).
template <class A>
void unpack(const Plane& p, const A* planes, Range rows, A* q) {
  for (int which = 0; which < 2; ++which) {
    const A* from = planes + which * p.rows * p.cols;
    A* to = q + which * p.size();
    for (int64_t r = rows.begin; r < rows.end; ++r)
      for (int64_t j = 0; j < p.cols; ++j) to[r * p.ld + j] = from[r * p.cols + j];
    clear_around(p, to, rows);
  }
}

// grad_taps[p, i, t] += sum over rows of du[r, :] * q_p[r + i - k/2, : + t - k/2], at most 8 taps
// of a row at once; floats are added over one row of the plane, rows in double.
template <class A>
void correlate(const Plane& p, const A* q, const A* du, int k, Range rows, double* grad_taps) {
  constexpr int64_t L = Lanes<A>::count;
  constexpr int kAtOnce = 8;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int pi = 0; pi < 2 * k; ++pi) {
      const A* line = q + pi / k * p.size() + (r + pi % k - k / 2) * p.ld - k / 2;
      for (int t0 = 0; t0 < k; t0 += kAtOnce) {
        const int count = k - t0 < kAtOnce ? k - t0 : kAtOnce;
        Vec<A> sum[kAtOnce] = {};
        for (int64_t j = 0; j < p.cols; j += L) {
          const Vec<A> d = load(du + r * p.ld + j);
          if (count == 7) {
#pragma GCC unroll 8
            for (int t = 0; t < 7; ++t) sum[t] += d * load(line + t0 + t + j);
          } else {
#pragma GCC unroll 8
            for (int t = 0; t < kAtOnce; ++t)
              if (t < count) sum[t] += d * load(line + t0 + t + j);
          }
        }
        for (int t = 0; t < count; ++t) grad_taps[pi * k + t0 + t] += sum_lanes<A>(sum[t]);
      }
    }
  }
}

// Pass 2 over one image, indices [a0s.begin, a0s.end) of the outermost axis.
template <class T>
void spread(const TripletShape& s, const T* dy, const Kept<Acc<T>>& k, const Flight<Acc<T>>& f,
            Range a0s, T* dx) {
  using A = Acc<T>;
  using I = IVec<A>;
  constexpr int64_t L = Lanes<A>::count;
  const int64_t ld0 = f.flat[0].ld, ld2 = f.flat[2].ld;
  for (int64_t a0 = a0s.end; a0-- > a0s.begin;) {
    for (int64_t a1 = 0; a1 < s.a[1]; ++a1) {
      const int64_t row = (a0 * s.a[1] + a1) * s.a[2], r0 = a1 * ld0, r1 = a0 * ld0;
      const int64_t i2 = a0 * ld2 + a1;
      const A g2 = k.gate[2][i2], all2 = f.at_all[2][i2], max2 = f.at_max[2][i2];
      const I at2 = ifill<A>(f.index[2][i2]);
      const auto value = [&](int64_t j, Vec<A> d) {
        const Vec<A> none{};
        const Vec<A> g = read<Vec<A>>(k.gate[0] + r0 + j) + read<Vec<A>>(k.gate[1] + r1 + j) + g2;
        Vec<A> v = read<Vec<A>>(f.at_all[0] + r0 + j) + read<Vec<A>>(f.at_all[1] + r1 + j) + all2;
        v += read<I>(f.index[0] + r0 + j) == ifill<A>(a0) ? read<Vec<A>>(f.at_max[0] + r0 + j)
                                                          : none;
        v += read<I>(f.index[1] + r1 + j) == ifill<A>(a1) ? read<Vec<A>>(f.at_max[1] + r1 + j)
                                                          : none;
        v += lane_numbers<A>() + ifill<A>(j) == at2 ? fill(max2) : none;
        return d * g + v;
      };
      int64_t j = 0;
      for (; j + L <= s.a[2]; j += L) store(dx + row + j, value(j, load(dy + row + j)));
      if (j < s.a[2]) {
        const int64_t count = s.a[2] - j;
        store_part(dx + row + j, value(j, load_part(dy + row + j, count)), count);
      }
    }
  }
}

}  // namespace
}  // namespace triplet
}  // namespace MEDSEG_ISA
}  // namespace medseg
