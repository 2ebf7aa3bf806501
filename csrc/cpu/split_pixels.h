// Split attention on channels_last: a thread owns pixels. Vectors run along the channels of a split
// and, where these do not fill the last vector, into what follows: what is read there is dropped,
// what is written there is written again, correctly, one step later. The last pixels of a range,
// behind which there may be nothing, go by part.
#pragma once
#include "split_planes.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

constexpr int64_t kPixelBlock = 512;  // summed in floats before they go to double
constexpr int64_t kRows = 8;          // pixels that one accumulator takes at a time

// The last pixels of any range, from which a whole vector would run over its end.
template <class A>
MEDSEG_INLINE int64_t last_pixels(const SplitShape& s) {
  return (round_up(s.c, Lanes<A>::count) - 1) / s.c;
}

// body(pixel, channel, rest) for pixels `begin` to `end` and every vector of channels, by part
// from pixel `whole` on.
template <class A, class Body>
MEDSEG_INLINE void for_pixels(const SplitShape& s, int64_t begin, int64_t whole, int64_t end,
                              Body body) {
  constexpr int64_t L = Lanes<A>::count;
  int64_t p = begin;
  for (; p < smaller(whole, end); ++p)
    for (int64_t j = 0; j < s.c; j += L) body(p, j, L);
  for (; p < end; ++p)
    for (int64_t j = 0; j < s.c; j += L) body(p, j, smaller(L, s.c - j));
}

// Adds kLines lines of sums over a range of pixels, term(line, pixel, channel, rest), to doubles:
// sums[line * c + channel]; `lines` is scratch.
template <int kLines, class A, class Term>
MEDSEG_INLINE void sum_pixels(const SplitShape& s, Range pixels, A* lines, double* sums,
                              Term term) {
  constexpr int64_t L = Lanes<A>::count;
  const int64_t stride = line_of<A>(s), whole = s.hw - last_pixels<A>(s);
  for (int64_t k = 0; k < kLines * s.c; ++k) sums[k] = 0;
  for (int64_t block = pixels.begin; block < pixels.end; block += kPixelBlock) {
    const int64_t end = smaller(block + kPixelBlock, pixels.end);
    for (int64_t k = 0; k < kLines * stride; ++k) lines[k] = 0;
    int64_t p = block;
    for (; p + kRows <= smaller(whole, end); p += kRows) {
      for (int line = 0; line < kLines; ++line) {
        for (int64_t j = 0; j < s.c; j += L) {
          Vec<A> part{};
          for (int64_t row = 0; row < kRows; ++row) part += term(line, p + row, j, L);
          store(lines + line * stride + j, load(lines + line * stride + j) + part);
        }
      }
    }
    for_pixels<A>(s, p, whole, end, [&](int64_t pixel, int64_t j, int64_t rest) {
      for (int line = 0; line < kLines; ++line) {
        A* at = lines + line * stride + j;
        store(at, load(at) + term(line, pixel, j, rest));
      }
    });
    for (int line = 0; line < kLines; ++line)
      for (int64_t c = 0; c < s.c; ++c) sums[line * s.c + c] += lines[line * stride + c];
  }
}

// The four passes of split_planes.h; scale, shift, gates and terms are padded lines.
template <int R, bool kFold, class T>
void pool_pixels(const T* image, const SplitShape& s, const Acc<T>* scale, const Acc<T>* shift,
                 Range pixels, Acc<T>* lines, double* sums) {
  using A = Acc<T>;
  const int64_t stride = line_of<A>(s);
  sum_pixels<1>(s, pixels, lines, sums, [&](int, int64_t p, int64_t j, int64_t rest) {
    Vec<A> sum{};
    for (int r = 0; r < R; ++r) {
      const Vec<A> v = load_rest(image + (p * R + r) * s.c + j, rest);
      sum += kFold ? activate(v, load(scale + r * stride + j), load(shift + r * stride + j)) : v;
    }
    return sum;
  });
}

template <int R, bool kFold, class T>
void combine_pixels(const T* image, const SplitShape& s, const Acc<T>* scale, const Acc<T>* shift,
                    const Acc<T>* gates, Range pixels, T* out) {
  using A = Acc<T>;
  const int64_t stride = line_of<A>(s);
  for (int64_t end = pixels.end; end > pixels.begin; end -= kPixelBlock) {
    const int64_t begin = larger(pixels.begin, end - kPixelBlock);
    const auto body = [&](int64_t p, int64_t j, int64_t rest) {
      Vec<A> sum{};
      for (int r = 0; r < R; ++r) {
        const int64_t k = r * stride + j;
        const Vec<A> v = load_rest(image + (p * R + r) * s.c + j, rest);
        sum += load(gates + k) * (kFold ? activate(v, load(scale + k), load(shift + k)) : v);
      }
      store_rest(out + p * s.c + j, sum, rest);
    };
    for_pixels<A>(s, begin, end - last_pixels<A>(s), end, body);
  }
}

template <int R, class T>
void dot_pixels(const T* image, const T* dy, const SplitShape& s, Range pixels, Acc<T>* lines,
                double* sums) {
  sum_pixels<R>(s, pixels, lines, sums, [&](int r, int64_t p, int64_t j, int64_t rest) {
    return load_rest(image + (p * R + r) * s.c + j, rest) * load_rest(dy + p * s.c + j, rest);
  });
}

template <int R, class T>
void spread_pixels(const T* dy, const SplitShape& s, const Acc<T>* gates, const Acc<T>* terms,
                   Range pixels, T* grad_x) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  const int64_t stride = line_of<A>(s);
  const auto spread = [&](int64_t p, int r, int64_t j, int64_t rest) {
    const Vec<A> v = load_rest(dy + p * s.c + j, rest);
    store_rest(grad_x + (p * R + r) * s.c + j, v * load(gates + r * stride + j) + load(terms + j),
               rest);
  };
  for (int64_t end = pixels.end; end > pixels.begin; end -= kPixelBlock) {
    const int64_t begin = larger(pixels.begin, end - kPixelBlock);
    const int64_t whole = end - last_pixels<A>(s);
    int64_t p = begin;
    for (; p < whole; ++p)
      for (int r = 0; r < R; ++r)
        for (int64_t j = 0; j < s.c; j += L) spread(p, r, j, L);
    for (; p < end; ++p)
      for (int r = 0; r < R; ++r)
        for (int64_t j = 0; j < s.c; j += L) spread(p, r, j, smaller(L, s.c - j));
  }
}

}  // namespace
}  // namespace MEDSEG_ISA
}  // namespace medseg
