// ECA on channels_last: the first gate needs the whole image, so the image is read twice, the
// second time from the last-level cache where it fits.
#pragma once
#include "eca_planes.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

// channels_last. A line of `period` elements, the least common multiple of the channels and the
// lanes, holds whole vectors and whole pixels, so that no channel count needs a tail inside it.
MEDSEG_INLINE int64_t period_of(int64_t channels, int64_t lanes) {
  int64_t a = channels, b = lanes;
  while (b) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return channels / a * lanes;
}

// line[j] += the terms at j of all rows from element `first` on, rows of `period` elements.
template <Term kTerm, class T>
void add_rows(const T* p, const T* q, T* r, int64_t first, int64_t rows, int64_t period,
              Acc<T>* line) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  for (int64_t row = 0; row < rows; row += 8) {
    const int64_t count = smaller(8, rows - row);
    for (int64_t j = 0; j < period; j += L) {
      const int64_t at = first + row * period + j;
      Vec<A> sum = read<Vec<A>>(line + j);
      Vec<A> part{};
      for (int64_t i = at; i < at + count * period; i += period) part += term<kTerm>(p, q, r, i, L);
      write(line + j, sum + part);
    }
  }
}

// sums[c] = the terms of pixels [begin, end); line is scratch of `period` elements.
template <Term kTerm, class T>
void sum_pixels(const T* p, const T* q, T* r, const EcaShape& s, Range pixels, int64_t period,
                Acc<T>* line, double* sums) {
  const int64_t step = period / s.c, block = round_up(kPixelBlock, step);
  for (int64_t c = 0; c < s.c; ++c) sums[c] = 0;
  for (int64_t pixel = pixels.begin; pixel < pixels.end; pixel += block) {
    const int64_t rows = smaller(block, pixels.end - pixel) / step;
    for (int64_t j = 0; j < period; ++j) line[j] = 0;
    add_rows<kTerm>(p, q, r, pixel * s.c, rows, period, line);
    for (int64_t j = 0; j < period; ++j) sums[j % s.c] += line[j];
    for (int64_t i = (pixel + rows * step) * s.c; i < smaller(pixel + block, pixels.end) * s.c; ++i)
      sums[i % s.c] += term<kTerm>(p, q, r, i, 1)[0];
  }
}

// out = p * factor + term, pixel by pixel; factor and term are lines of `period` elements.
template <bool kTerm, class T>
void scale_pixels(const T* p, const EcaShape& s, Range pixels, int64_t period, const Acc<T>* factor,
                  const Acc<T>* term, T* out) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  const int64_t first = pixels.begin * s.c, last = pixels.end * s.c;
  int64_t i = first;
  for (; i + period <= last; i += period) {
    for (int64_t j = 0; j < period; j += L) {
      const Vec<A> v = load(p + i + j) * read<Vec<A>>(factor + j);
      store(out + i + j, kTerm ? v + read<Vec<A>>(term + j) : v);
    }
  }
  for (int64_t j = 0; i < last; i += L, j += L) {
    const int64_t count = smaller(L, last - i);
    const Vec<A> v = load_part(p + i, count) * read<Vec<A>>(factor + j);
    store_part(out + i, kTerm ? v + read<Vec<A>>(term + j) : v, count);
  }
}

// The scratch of one thread: its sums (c doubles), then two lines of `period` elements.
template <class A>
struct Lines {
  double* sums;
  A *factor, *term;
};
template <class A>
MEDSEG_INLINE int64_t lines_bytes(const EcaShape& s) {
  return round_up(s.c * 8 + 2 * period_of(s.c, Lanes<A>::count) * int64_t(sizeof(A)), 64);
}
template <class A>
MEDSEG_INLINE Lines<A> lines_of(void* scratch, const EcaShape& s, int64_t thread) {
  char* base = static_cast<char*>(scratch) + thread * lines_bytes<A>(s);
  A* lines = reinterpret_cast<A*>(base + s.c * 8);
  return {reinterpret_cast<double*>(base), lines, lines + period_of(s.c, Lanes<A>::count)};
}

// Every thread sums its pixels of an image, `sum(place, range, lines)`; when the threads of that
// image are done it learns the totals and scales, `scale(place, range, total(channel), lines)`.
template <class A, class Sum, class Scale>
void walk_images(const EcaShape& s, void* scratch, Sum sum, Scale scale) {
#pragma omp parallel num_threads(s.threads)
  for_each_image(s.n, [&](const Place& at) {
    const Range pixels = at.of(s.hw);
    const Lines<A> mine = lines_of<A>(scratch, s, thread_number());
    if (at.active) sum(at, pixels, mine);
    at.wait();
    const auto total = [&](int64_t c) {
      double value = 0;
      for (int64_t i = 0; i < at.parts; ++i)
        value += lines_of<A>(scratch, s, at.slot * at.parts + i).sums[c];
      return value;
    };
    if (at.active) scale(at, pixels, total, mine);
  });
}

// Repeats the first c elements to the end of a line.
template <class A>
MEDSEG_INLINE void repeat(A* line, int64_t c, int64_t period) {
  for (int64_t j = c; j < period; ++j) line[j] = line[j - c];
}

template <class T>
void forward_pixels(const EcaForward& a) {
  using A = Acc<T>;
  const EcaShape& s = a.shape;
  const T* x = static_cast<const T*>(a.x);
  const T* residual = static_cast<const T*>(a.residual);
  T* summed = static_cast<T*>(a.summed);
  T* out = static_cast<T*>(a.out);
  const A* weight = static_cast<const A*>(a.weight);
  const A bias = a.bias ? *static_cast<const A*>(a.bias) : A(0);
  const int64_t period = period_of(s.c, Lanes<A>::count), image = s.c * s.hw, high = s.hw / s.w / 2;
  walk_images<A>(
      s, a.scratch,
      [&](const Place& at, Range pixels, Lines<A> mine) {
        const int64_t n = at.image;
        const T* p = x + n * s.stride_n;
        residual
            ? sum_pixels<kAdd, T>(p, residual + n * image, summed + n * image, s, pixels, period,
                                  mine.factor, mine.sums)
            : sum_pixels<kOne, T>(p, nullptr, nullptr, s, pixels, period, mine.factor, mine.sums);
      },
      [&](const Place& at, Range pixels, auto total, Lines<A> mine) {
        const int64_t n = at.image;
        for (int64_t c = 0; c < s.c; ++c) mine.term[c] = A(total(c) / s.hw);
        for (int64_t c = 0; c < s.c; ++c) {
          const A z = bias + along_channels(mine.term, weight, s.taps, false, c, s.c);
          mine.factor[c] = sigmoid_scalar(z);
          if (at.part) continue;
          static_cast<A*>(a.pooled)[n * s.c + c] = mine.term[c];
          static_cast<A*>(a.gate)[n * s.c + c] = mine.factor[c];
        }
        repeat(mine.factor, s.c, period);
        const T* p = residual ? summed + n * image : x + n * s.stride_n;
        s.pool == 2
            ? pool_pixels(p, s, at.of(high), mine.factor, out + n * s.c * high * (s.w / 2))
            : scale_pixels<false>(p, s, pixels, period, mine.factor, mine.term, out + n * image);
      });
}

template <class T>
void backward_pixels(const EcaBackward& a, Acc<T>* dz) {
  using A = Acc<T>;
  const EcaShape& s = a.shape;
  const T* x = static_cast<const T*>(a.x);
  const T* grad_out = static_cast<const T*>(a.grad_out);
  const T* grad_summed = static_cast<const T*>(a.grad_summed);
  const A* weight = static_cast<const A*>(a.weight);
  const A* gates = static_cast<const A*>(a.gate);
  const int64_t period = period_of(s.c, Lanes<A>::count), high = s.hw / s.w / 2;
  const int64_t image = s.c * (s.pool == 2 ? high * (s.w / 2) : s.hw);
  walk_images<A>(
      s, reinterpret_cast<char*>(a.scratch) + round_up(s.n * s.c * sizeof(A), 64),
      [&](const Place& at, Range pixels, Lines<A> mine) {
        const int64_t n = at.image;
        const T *p = x + n * s.stride_n, *dy = grad_out + n * image;
        if (s.pool != 2)
          return sum_pixels<kDot, T>(dy, p, nullptr, s, pixels, period, mine.factor, mine.sums);
        for (int64_t c = 0; c < s.c; ++c) mine.term[c] = gates[n * s.c + c];
        dot_pooled_pixels(p, dy, s, at.of(high), mine.term, mine.factor, mine.sums);
      },
      [&](const Place& at, Range pixels, auto total, Lines<A> mine) {
        const int64_t n = at.image;
        for (int64_t c = 0; c < s.c; ++c) {
          const A g = gates[n * s.c + c];
          mine.factor[c] = A(total(c)) * g * (1 - g);
          if (at.part == 0) dz[n * s.c + c] = mine.factor[c];
        }
        if (!a.grad_x) return;
        for (int64_t c = 0; c < s.c; ++c)
          mine.term[c] = along_channels(mine.factor, weight, s.taps, true, c, s.c) / A(s.hw);
        for (int64_t c = 0; c < s.c; ++c) mine.factor[c] = gates[n * s.c + c];
        repeat(mine.factor, s.c, period);
        repeat(mine.term, s.c, period);
        const T* dy = grad_out + n * image;
        T* dx = static_cast<T*>(a.grad_x) + n * s.c * s.hw;
        if (s.pool != 2)
          return scale_pixels<true>(dy, s, pixels, period, mine.factor, mine.term, dx);
        spread_pixels(x + n * s.stride_n, dy, grad_summed ? grad_summed + n * a.summed_n : nullptr,
                      a.summed_c, s, at.of(high), mine.factor, mine.term, dx);
      });
}

}  // namespace
}  // namespace MEDSEG_ISA
}  // namespace medseg
