// The 2x2 max-pool behind ECA's gate. The gate is never negative, so the largest of four values is
// also the largest of the gated four, rounding included: it is picked from the map itself.
#pragma once
#include "team.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

// Floats are added in blocks of this many elements, the blocks in double: exact enough for any map.
constexpr int64_t kBlock = 4096;
constexpr int64_t kPixelBlock = 512;  // in channels_last, where a block is one value a pixel

template <class T>
MEDSEG_INLINE Vec<Acc<T>> load_some(const T* p, int64_t count) {
  return count == Lanes<Acc<T>>::count ? load(p) : load_part(p, count);
}
template <class T>
MEDSEG_INLINE void store_some(T* p, Vec<Acc<T>> v, int64_t count) {
  count == Lanes<Acc<T>>::count ? store(p, v) : store_part(p, v, count);
}

// Lane i of the result is lane at[i] of a and b, laid end to end.
template <class A>
MEDSEG_INLINE Vec<A> shuffled(Vec<A> a, Vec<A> b, IVec<A> at) {
#if defined(__clang__)
  constexpr int L = Lanes<A>::count;
  Vec<A> v;
  for (int i = 0; i < L; ++i) v[i] = at[i] < L ? a[at[i] % L] : b[at[i] % L];
  return v;
#else
  return __builtin_shuffle(a, b, at);
#endif
}

// A row of 2 * count values: those of even and those of odd columns.
template <class T>
MEDSEG_INLINE void split(const T* p, int64_t count, Vec<Acc<T>>* even, Vec<Acc<T>>* odd) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  const IVec<A> at = lane_numbers<A>() * 2;
  const Vec<A> a = load_some(p, smaller(2 * count, L));
  const Vec<A> b = 2 * count > L ? load_some(p + L, 2 * count - L) : Vec<A>{};
  *even = shuffled<A>(a, b, at);
  *odd = shuffled<A>(a, b, at + 1);
}
template <class T>
MEDSEG_INLINE void join(T* p, int64_t count, Vec<Acc<T>> even, Vec<Acc<T>> odd) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  const IVec<A> i = lane_numbers<A>(), at = i / 2 + (i & 1) * ifill<A>(L);
  store_some(p, shuffled<A>(even, odd, at), smaller(2 * count, L));
  if (2 * count > L) store_some(p + L, shuffled<A>(even, odd, at + L / 2), 2 * count - L);
}

// `count` windows side by side: value k of each, in the order of torch's scan.
template <class A>
struct Windows {
  Vec<A> value[4];
};
template <class A>
struct Picked {
  Vec<A> value;
  IVec<A> at;
};

// What max_pool2d takes of the gated values: the largest, of equal ones the first, of NaNs the
// last; infinity * 0 counts as NaN.
template <class A>
MEDSEG_INLINE Picked<A> pick(const Windows<A>& w, Vec<A> gate) {
  const auto candidate = [&](int k) {
    const Vec<A> gated = w.value[k] * gate;
    return gated != gated ? gated : w.value[k];
  };
  Picked<A> best{candidate(0), {}};
  for (int k = 1; k < 4; ++k) {
    const Vec<A> v = candidate(k);
    const IVec<A> better = (v > best.value) | (v != v);
    best.value = better ? v : best.value;
    best.at = better ? ifill<A>(k) : best.at;
  }
  return best;
}

// Calls body(pixel) for what an odd width or height leaves outside the windows of `rows`.
template <class Body>
MEDSEG_INLINE void for_leftovers(const EcaShape& s, Range rows, Body body) {
  const int64_t high = s.hw / s.w;
  for (int64_t row = 2 * rows.begin; s.w % 2 && row < 2 * rows.end; ++row)
    body(row * s.w + s.w - 1);
  for (int64_t i = 0; high % 2 && rows.end == high / 2 && i < s.w; ++i) body((high - 1) * s.w + i);
}

// ---- NCHW: a lane is a window -------------------------------------------------------------------

// Calls body(windows, first pixel, first output, count) for the windows of one plane.
template <class T, class Body>
MEDSEG_INLINE void for_windows(const T* plane, const EcaShape& s, Body body) {
  constexpr int64_t L = Lanes<Acc<T>>::count;
  const int64_t wide = s.w / 2, high = s.hw / s.w / 2;
  for (int64_t row = 0; row < high; ++row) {
    for (int64_t column = 0; column < wide; column += L) {
      const int64_t count = smaller(L, wide - column), pixel = 2 * (row * s.w + column);
      Windows<Acc<T>> w;
      split(plane + pixel, count, &w.value[0], &w.value[1]);
      split(plane + pixel + s.w, count, &w.value[2], &w.value[3]);
      body(w, pixel, row * wide + column, count);
    }
  }
}

// out = max_pool2d(p * gate)
template <class T>
void pool_plane(const T* p, const EcaShape& s, Acc<T> gate, T* out) {
  using A = Acc<T>;
  for_windows(p, s, [&](const Windows<A>& w, int64_t, int64_t at, int64_t count) {
    store_some(out + at, pick<A>(w, fill(gate)).value * gate, count);
  });
}

// sum of dy * (what the pool picked from p)
template <class T>
double dot_plane(const T* p, const T* dy, const EcaShape& s, Acc<T> gate) {
  using A = Acc<T>;
  double total = 0;
  Vec<A> sum{};
  int64_t added = 0;
  for_windows(p, s, [&](const Windows<A>& w, int64_t, int64_t at, int64_t count) {
    sum += pick<A>(w, fill(gate)).value * load_some(dy + at, count);
    added += count;
    if (added < kBlock) return;
    total += sum_lanes<A>(sum);
    sum = Vec<A>{};
    added = 0;
  });
  return total + sum_lanes<A>(sum);
}

// dx = (dy * gate where the pool picked, else 0) + shift + ds; ds may be null.
template <class T>
void spread_plane(const T* p, const T* dy, const T* ds, const EcaShape& s, Acc<T> gate,
                  Acc<T> shift, T* dx) {
  using A = Acc<T>;
  for_windows(p, s, [&](const Windows<A>& w, int64_t pixel, int64_t at, int64_t count) {
    const IVec<A> chosen = pick<A>(w, fill(gate)).at;
    const Vec<A> grad = load_some(dy + at, count) * gate;
    for (int row = 0; row < 2; ++row, pixel += s.w) {
      Vec<A> even{}, odd{};
      if (ds) split(ds + pixel, count, &even, &odd);
      even += (chosen == ifill<A>(2 * row) ? grad : Vec<A>{}) + shift;
      odd += (chosen == ifill<A>(2 * row + 1) ? grad : Vec<A>{}) + shift;
      join(dx + pixel, count, even, odd);
    }
  });
  for_leftovers(s, {0, s.hw / s.w / 2}, [&](int64_t pixel) {
    store_part(dx + pixel, (ds ? load_part(ds + pixel, 1) : Vec<A>{}) + shift, 1);
  });
}

// ---- channels_last: a lane is a channel ---------------------------------------------------------

// Calls body(windows, first element, first output, channel, count) for rows of windows of an image.
template <class T, class Body>
MEDSEG_INLINE void for_pixel_windows(const T* image, const EcaShape& s, Range rows, Body body) {
  constexpr int64_t L = Lanes<Acc<T>>::count;
  const int64_t wide = s.w / 2;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    for (int64_t column = 0; column < wide; ++column) {
      const int64_t pixel = 2 * (row * s.w + column), out = (row * wide + column) * s.c;
      for (int64_t c = 0; c < s.c; c += L) {
        const int64_t count = smaller(L, s.c - c);
        const T* at = image + pixel * s.c + c;
        Windows<Acc<T>> w{{load_some(at, count), load_some(at + s.c, count),
                           load_some(at + s.w * s.c, count),
                           load_some(at + (s.w + 1) * s.c, count)}};
        body(w, pixel, out, c, count);
      }
    }
  }
}

// out = max_pool2d(p * gate); gate is a line of whole vectors.
template <class T>
void pool_pixels(const T* p, const EcaShape& s, Range rows, const Acc<T>* gate, T* out) {
  using A = Acc<T>;
  for_pixel_windows(p, s, rows,
                    [&](const Windows<A>& w, int64_t, int64_t at, int64_t c, int64_t count) {
                      const Vec<A> g = read<Vec<A>>(gate + c);
                      store_some(out + at + c, pick<A>(w, g).value * g, count);
                    });
}

// sums[c] = sum of dy * (what the pool picked from p); line is scratch of whole vectors.
template <class T>
void dot_pooled_pixels(const T* p, const T* dy, const EcaShape& s, Range rows, const Acc<T>* gate,
                       Acc<T>* line, double* sums) {
  using A = Acc<T>;
  const int64_t block = larger(1, kPixelBlock / (s.w / 2));
  for (int64_t c = 0; c < s.c; ++c) sums[c] = 0;
  for (int64_t row = rows.begin; row < rows.end; row += block) {
    for (int64_t c = 0; c < s.c; c += Lanes<A>::count) write(line + c, Vec<A>{});
    for_pixel_windows(p, s, {row, smaller(row + block, rows.end)},
                      [&](const Windows<A>& w, int64_t, int64_t at, int64_t c, int64_t count) {
                        const Vec<A> picked = pick<A>(w, read<Vec<A>>(gate + c)).value;
                        write(line + c,
                              read<Vec<A>>(line + c) + picked * load_some(dy + at + c, count));
                      });
    for (int64_t c = 0; c < s.c; ++c) sums[c] += line[c];
  }
}

// dx as in spread_plane; gate and shift are lines, the pixels of ds lie `pitch` apart.
template <class T>
void spread_pixels(const T* p, const T* dy, const T* ds, int64_t pitch, const EcaShape& s,
                   Range rows, const Acc<T>* gate, const Acc<T>* shift, T* dx) {
  using A = Acc<T>;
  const auto put = [&](int64_t pixel, int64_t c, int64_t count, Vec<A> v) {
    v += read<Vec<A>>(shift + c);
    if (ds) v += load_some(ds + pixel * pitch + c, count);
    store_some(dx + pixel * s.c + c, v, count);
  };
  for_pixel_windows(
      p, s, rows, [&](const Windows<A>& w, int64_t pixel, int64_t at, int64_t c, int64_t count) {
        const Vec<A> g = read<Vec<A>>(gate + c), grad = load_some(dy + at + c, count) * g;
        const IVec<A> chosen = pick<A>(w, g).at;
        for (int k = 0; k < 4; ++k)
          put(pixel + k / 2 * s.w + k % 2, c, count, chosen == ifill<A>(k) ? grad : Vec<A>{});
      });
  for_leftovers(s, rows, [&](int64_t pixel) {
    for (int64_t c = 0; c < s.c; c += Lanes<A>::count)
      put(pixel, c, smaller(Lanes<A>::count, s.c - c), Vec<A>{});
  });
}

}  // namespace
}  // namespace MEDSEG_ISA
}  // namespace medseg
