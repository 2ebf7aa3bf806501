// Triplet attention: the passes that apply gates and go back through them, what is kept between
// the two of backward, and the correlation that gives the gradient of the taps.
#pragma once
#include "triplet_planes.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace triplet {
namespace {

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

// out = x * (g0 + g1 + g2) for rows [rows.begin, rows.end) of index a0, but for the gate of memory
// axis kAbsent. Rows forward, as the prefetcher likes them. Products, not x times the sum of gates:
// infinity * 0 must stay NaN where a gate is 0, and they cost nothing.
template <int kAbsent, class T>
MEDSEG_INLINE void apply_rows_but(const TripletShape& s, const T* x, int64_t stride_1,
                                  Acc<T>* const gate[3], int64_t a0, Range rows, T* out) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  const int64_t ld0 = round_up(s.a[2], L), ld1 = ld0, ld2 = round_up(s.a[1], L);
  const A* g1 = gate[1] + a0 * ld1;
  for (int64_t a1 = rows.begin; a1 < rows.end; ++a1) {
    const T* from = x + a1 * stride_1;
    T* to = out + (a0 * s.a[1] + a1) * s.a[2];
    const A* g0 = gate[0] + a1 * ld0;
    const A g2 = gate[2][a0 * ld2 + a1];
    const auto gated = [&](int64_t j, Vec<A> v) {
      if constexpr (kAbsent == 0) return v * read<Vec<A>>(g1 + j) + v * g2;
      if constexpr (kAbsent == 2) return v * read<Vec<A>>(g0 + j) + v * read<Vec<A>>(g1 + j);
      return v * read<Vec<A>>(g0 + j) + (v * read<Vec<A>>(g1 + j) + v * g2);
    };
    int64_t j = 0;
    for (; j + L <= s.a[2]; j += L) store(to + j, gated(j, load(from + j)));
    if (j < s.a[2]) {
      const int64_t count = s.a[2] - j;
      store_part(to + j, gated(j, load_part(from + j, count)), count);
    }
  }
}

// The spatial gate, the one that may be absent, pools over the innermost axis of a channels_last
// map and over the outermost of any other.
template <class T>
MEDSEG_INLINE void apply_rows(const TripletShape& s, const T* x, int64_t stride_1,
                              Acc<T>* const gate[3], int64_t a0, Range rows, T* out) {
  if (s.gate[0] < 0) return apply_rows_but<0>(s, x, stride_1, gate, a0, rows, out);
  if (s.gate[2] < 0) return apply_rows_but<2>(s, x, stride_1, gate, a0, rows, out);
  apply_rows_but<3>(s, x, stride_1, gate, a0, rows, out);
}

// Backward along a0, the image's newest part first.
template <class T>
void apply(const TripletShape& s, const T* x, Acc<T>* const gate[3], Range a0s, T* out) {
  for (int64_t a0 = a0s.end; a0-- > a0s.begin;)
    apply_rows(s, x + a0 * s.stride_0, s.stride_1, gate, a0, Range{0, s.a[1]}, out);
}

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

// Pass 1 over one image: sums[m] receives the plain sums of grad_out * x. Behind it `then(a0,
// rows)` is called, while these rows of grad_out are in the cache.
template <class T, class Then>
void dot(const TripletShape& s, const T* x, const T* dy, Acc<T>* const sums[3], Acc<T>* strip,
         Range rows, Then then) {
  using A = Acc<T>;
  const int64_t ld0 = Plane::of<A>(s, 0, false).ld, ld2 = Plane::of<A>(s, 2, false).ld;
  const int64_t block = round_up(larger(1, 8192 / (ld0 * int64_t(sizeof(A)))), kRows);
  if (rows.begin == rows.end)  // a thread without rows adds nothing
    for (int64_t i = 0; i < s.a[0] * ld0; ++i) strip[i] = 0;
  for (int64_t begin = rows.begin; begin < rows.end; begin += block) {
    const int64_t end = smaller(begin + block, rows.end);
    for (int64_t i = begin * ld0; i < end * ld0; ++i) sums[0][i] = 0;
    for (int64_t a0 = 0; a0 < s.a[0]; ++a0) {
      int64_t r = begin;
      const auto step = [&](auto count) {
        constexpr int R = decltype(count)::value;
        for (; r + R <= end; r += R)
          dot_rows<T, R>(s, x + a0 * s.stride_0 + r * s.stride_1, dy + (a0 * s.a[1] + r) * s.a[2],
                         sums[0] + r * ld0, ld0, strip + a0 * ld0, sums[2] + a0 * ld2 + r,
                         r == rows.begin);
      };
      step(Count<kRows>{});
      step(Count<1>{});
      then(a0, Range{begin, end});
    }
  }
}

// Kept planes back into padded ones, rows [rows.begin, rows.end).
template <class A>
void unpack(const Plane& p, const A* maxima, const A* means, Range rows, A* q) {
  for (int which = 0; which < 2; ++which) {
    const A* from = which ? means : maxima;
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

// Kept argmaxima into a flat plane, rows [rows.begin, rows.end).
template <class I>
void unpack_index(const Plane& flat, const void* index, int bytes, Range rows, I* to) {
  for (int64_t r = rows.begin; r < rows.end; ++r)
    for (int64_t j = 0; j < flat.cols; ++j) {
      const int64_t i = r * flat.cols + j;
      to[r * flat.ld + j] = bytes == 2 ? static_cast<const int16_t*>(index)[i]
                                       : static_cast<const int32_t*>(index)[i];
    }
}

// Pass 2 over one image, indices [a0s.begin, a0s.end) of the outermost axis. Without gates, what
// the pooled planes send back alone: then neither they nor dy are read.
template <bool kGates, class T>
void spread(const TripletShape& s, const T* dy, Acc<T>* const gate[3], const Flight<Acc<T>>& f,
            Range a0s, T* dx) {
  using A = Acc<T>;
  using I = IVec<A>;
  constexpr int64_t L = Lanes<A>::count;
  const int64_t ld0 = f.flat[0].ld, ld2 = f.flat[2].ld;
  for (int64_t a0 = a0s.end; a0-- > a0s.begin;) {
    for (int64_t a1 = 0; a1 < s.a[1]; ++a1) {
      const int64_t row = (a0 * s.a[1] + a1) * s.a[2], r0 = a1 * ld0, r1 = a0 * ld0;
      const int64_t i2 = a0 * ld2 + a1;
      const A g2 = kGates ? gate[2][i2] : A(0), all2 = f.at_all[2][i2], max2 = f.at_max[2][i2];
      const I at2 = ifill<A>(f.index[2][i2]);
      const auto value = [&](int64_t j, Vec<A> d) {
        const Vec<A> none{};
        Vec<A> v = read<Vec<A>>(f.at_all[0] + r0 + j) + read<Vec<A>>(f.at_all[1] + r1 + j) + all2;
        v += read<I>(f.index[0] + r0 + j) == ifill<A>(a0) ? read<Vec<A>>(f.at_max[0] + r0 + j)
                                                          : none;
        v += read<I>(f.index[1] + r1 + j) == ifill<A>(a1) ? read<Vec<A>>(f.at_max[1] + r1 + j)
                                                          : none;
        v += lane_numbers<A>() + ifill<A>(j) == at2 ? fill(max2) : none;
        if constexpr (!kGates) return v;
        const Vec<A> g = read<Vec<A>>(gate[0] + r0 + j) + read<Vec<A>>(gate[1] + r1 + j) + g2;
        return d * g + v;
      };
      int64_t j = 0;
      for (; j + L <= s.a[2]; j += L)
        store(dx + row + j, value(j, kGates ? load(dy + row + j) : Vec<A>{}));
      if (j < s.a[2]) {
        const int64_t count = s.a[2] - j;
        const Vec<A> d = kGates ? load_part(dy + row + j, count) : Vec<A>{};
        store_part(dx + row + j, value(j, d), count);
      }
    }
  }
}

}  // namespace
}  // namespace triplet
}  // namespace MEDSEG_ISA
}  // namespace medseg
