// ECA: out[n,c,:] = x[n,c,:] * sigmoid(bias + sum_j weight[j] * mean(x[n,c+j-p,:])).
//
// NCHW: a thread walks its planes, pools plane c+p and scales plane c while that is still in cache:
// one read and one write of memory. channels_last: the first gate needs the whole image, so the
// image is read twice, the second time from the last-level cache where it fits.
#include "team.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

// Floats are added in blocks of this many elements, the blocks in double: exact enough for any map.
constexpr int64_t kBlock = 4096;
constexpr int64_t kPixelBlock = 512;

// sum of p[i], or of p[i] * q[i] with kDot.
template <bool kDot, class T>
double sum_line(const T* p, const T* q, int64_t count) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  const auto term = [&](int64_t i) { return kDot ? load(p + i) * load(q + i) : load(p + i); };
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = smaller(count, begin + kBlock);
    Vec<A> s0{}, s1{}, s2{}, s3{};
    int64_t i = begin;
    for (; i + 4 * L <= end; i += 4 * L) {
      s0 += term(i);
      s1 += term(i + L);
      s2 += term(i + 2 * L);
      s3 += term(i + 3 * L);
    }
    for (; i + L <= end; i += L) s0 += term(i);
    if (i < end) {
      const Vec<A> tail = load_part(p + i, end - i);
      s1 += kDot ? tail * load_part(q + i, end - i) : tail;
    }
    total += sum_lanes<A>((s0 + s1) + (s2 + s3));
  }
  return total;
}

// out = p * factor + term, the shape of both directions' last pass.
template <bool kTerm, class T>
void scale_line(const T* p, Acc<T> factor, Acc<T> term, T* out, int64_t count) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  const auto value = [&](Vec<A> v) { return kTerm ? v * factor + term : v * factor; };
  int64_t i = 0;
  for (; i + 4 * L <= count; i += 4 * L) {
    const Vec<A> a = load(p + i), b = load(p + i + L), c = load(p + i + 2 * L),
                 d = load(p + i + 3 * L);
    store(out + i, value(a));
    store(out + i + L, value(b));
    store(out + i + 2 * L, value(c));
    store(out + i + 3 * L, value(d));
  }
  for (; i + L <= count; i += L) store(out + i, value(load(p + i)));
  if (i < count) store_part(out + i, value(load_part(p + i, count - i)), count - i);
}

// Two threads may pool the same plane at the edge of their ranges; both write the same bits.
template <class A>
MEDSEG_INLINE void publish(A* p, A value) {
  __atomic_store(p, &value, __ATOMIC_RELAXED);
}

// sum_j weight[j] * values[c + j - p] inside 0..channels-1; `reversed` runs the taps backward.
template <class A>
MEDSEG_INLINE A along_channels(const A* values, const A* weight, int taps, bool reversed, int64_t c,
                               int64_t channels) {
  A z = 0;
  for (int j = 0; j < taps; ++j) {
    const int64_t at = c + (reversed ? taps / 2 - j : j - taps / 2);
    if (at >= 0 && at < channels) z += weight[j] * values[at];
  }
  return z;
}

// Walks the planes of one thread: `ahead(i)` once for every plane within p of its range, in order,
// then `here(i)` as soon as its neighbourhood is known.
template <class Ahead, class Here>
MEDSEG_INLINE void walk_planes(const EcaShape& s, Ahead ahead, Here here) {
  const int64_t total = s.n * s.c, p = s.taps / 2;
  const int64_t thread = thread_number(), threads = thread_count();
  const int64_t begin = total * thread / threads, end = total * (thread + 1) / threads;
  int64_t next = begin;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i / s.c * s.c, last = first + s.c;
    if (i == begin || i == first) next = larger(first, i - p);
    for (; next < smaller(i + p + 1, last); ++next) ahead(next);
    here(i);
  }
}

template <class T>
MEDSEG_INLINE const T* plane_of(const T* x, const EcaShape& s, int64_t i) {
  return x + i / s.c * s.stride_n + i % s.c * s.stride_c;
}

template <class T>
void forward_planes(const EcaForward& a) {
  using A = Acc<T>;
  const EcaShape& s = a.shape;
  const T* x = static_cast<const T*>(a.x);
  const A* weight = static_cast<const A*>(a.weight);
  const A bias = a.bias ? *static_cast<const A*>(a.bias) : A(0);
  A* pooled = static_cast<A*>(a.pooled);
  A* gate = static_cast<A*>(a.gate);
#pragma omp parallel num_threads(s.threads)
  walk_planes(
      s,
      [&](int64_t i) {
        publish(pooled + i, A(sum_line<false>(plane_of(x, s, i), plane_of(x, s, i), s.hw) / s.hw));
      },
      [&](int64_t i) {
        const A* values = pooled + i / s.c * s.c;
        gate[i] =
            sigmoid_scalar(bias + along_channels(values, weight, s.taps, false, i % s.c, s.c));
        scale_line<false>(plane_of(x, s, i), gate[i], A(0), static_cast<T*>(a.out) + i * s.hw,
                          s.hw);
      });
}

// dz[i] = (sum over the plane of grad_out * x) * gate * (1 - gate)
template <class T>
void backward_planes(const EcaBackward& a, Acc<T>* dz) {
  using A = Acc<T>;
  const EcaShape& s = a.shape;
  const T* x = static_cast<const T*>(a.x);
  const T* dy = static_cast<const T*>(a.grad_out);
  const A* weight = static_cast<const A*>(a.weight);
  const A* gate = static_cast<const A*>(a.gate);
#pragma omp parallel num_threads(s.threads)
  walk_planes(
      s,
      [&](int64_t i) {
        const A g = gate[i];
        publish(dz + i, A(sum_line<true>(dy + i * s.hw, plane_of(x, s, i), s.hw)) * g * (1 - g));
      },
      [&](int64_t i) {
        if (!a.grad_x) return;
        const A* values = dz + i / s.c * s.c;
        const A ds = along_channels(values, weight, s.taps, true, i % s.c, s.c) / A(s.hw);
        scale_line<true>(dy + i * s.hw, gate[i], ds, static_cast<T*>(a.grad_x) + i * s.hw, s.hw);
      });
}

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

// line[j] += sum over the rows of p (times q), rows of `period` elements.
template <bool kDot, class T>
void add_rows(const T* p, const T* q, int64_t rows, int64_t period, Acc<T>* line) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  for (int64_t row = 0; row < rows; row += 8) {
    const int64_t count = smaller(8, rows - row);
    for (int64_t j = 0; j < period; j += L) {
      const int64_t at = row * period + j;
      Vec<A> sum = read<Vec<A>>(line + j);
      Vec<A> part{};
      for (int64_t r = 0; r < count; ++r) {
        const Vec<A> v = load(p + at + r * period);
        part += kDot ? v * load(q + at + r * period) : v;
      }
      write(line + j, sum + part);
    }
  }
}

// sums[c] = sum over pixels [begin, end) of p (times q); line is scratch of `period` elements.
template <bool kDot, class T>
void sum_pixels(const T* p, const T* q, const EcaShape& s, Range pixels, int64_t period,
                Acc<T>* line, double* sums) {
  const int64_t step = period / s.c, block = round_up(kPixelBlock, step);
  for (int64_t c = 0; c < s.c; ++c) sums[c] = 0;
  for (int64_t pixel = pixels.begin; pixel < pixels.end; pixel += block) {
    const int64_t rows = smaller(block, pixels.end - pixel) / step;
    for (int64_t j = 0; j < period; ++j) line[j] = 0;
    add_rows<kDot>(p + pixel * s.c, q + pixel * s.c, rows, period, line);
    for (int64_t j = 0; j < period; ++j) sums[j % s.c] += line[j];
    for (int64_t i = (pixel + rows * step) * s.c; i < smaller(pixel + block, pixels.end) * s.c;
         ++i) {
      Acc<T> v = load_part(p + i, 1)[0];
      if (kDot) v *= load_part(q + i, 1)[0];
      sums[i % s.c] += v;
    }
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
    at.wait();
  });
}

template <class T>
void forward_pixels(const EcaForward& a) {
  using A = Acc<T>;
  const EcaShape& s = a.shape;
  const T* x = static_cast<const T*>(a.x);
  const A* weight = static_cast<const A*>(a.weight);
  const A bias = a.bias ? *static_cast<const A*>(a.bias) : A(0);
  const int64_t period = period_of(s.c, Lanes<A>::count);
  walk_images<A>(
      s, a.scratch,
      [&](const Place& at, Range pixels, Lines<A> mine) {
        const T* image = x + at.image * s.stride_n;
        sum_pixels<false>(image, image, s, pixels, period, mine.factor, mine.sums);
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
        for (int64_t j = s.c; j < period; ++j) mine.factor[j] = mine.factor[j - s.c];
        scale_pixels<false>(x + n * s.stride_n, s, pixels, period, mine.factor, mine.term,
                            static_cast<T*>(a.out) + n * s.c * s.hw);
      });
}

template <class T>
void backward_pixels(const EcaBackward& a, Acc<T>* dz) {
  using A = Acc<T>;
  const EcaShape& s = a.shape;
  const T* x = static_cast<const T*>(a.x);
  const T* dy = static_cast<const T*>(a.grad_out);
  const A* weight = static_cast<const A*>(a.weight);
  const A* gates = static_cast<const A*>(a.gate);
  const int64_t period = period_of(s.c, Lanes<A>::count);
  walk_images<A>(
      s, reinterpret_cast<char*>(a.scratch) + round_up(s.n * s.c * sizeof(A), 64),
      [&](const Place& at, Range pixels, Lines<A> mine) {
        const int64_t n = at.image;
        sum_pixels<true>(dy + n * s.c * s.hw, x + n * s.stride_n, s, pixels, period, mine.factor,
                         mine.sums);
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
        for (int64_t j = s.c; j < period; ++j) mine.factor[j] = mine.factor[j - s.c];
        for (int64_t j = s.c; j < period; ++j) mine.term[j] = mine.term[j - s.c];
        scale_pixels<true>(dy + n * s.c * s.hw, s, pixels, period, mine.factor, mine.term,
                           static_cast<T*>(a.grad_x) + n * s.c * s.hw);
      });
}

template <class T>
void forward(const EcaForward& a) {
  a.shape.channels_last ? forward_pixels<T>(a) : forward_planes<T>(a);
}

template <class T>
void backward(const EcaBackward& a) {
  using A = Acc<T>;
  const EcaShape& s = a.shape;
  A* dz = static_cast<A*>(a.scratch);
  s.channels_last ? backward_pixels<T>(a, dz) : backward_planes<T>(a, dz);
  const A* pooled = static_cast<const A*>(a.pooled);
  double bias = 0;
  for (int64_t i = 0; i < s.n * s.c; ++i) bias += dz[i];
  *static_cast<A*>(a.grad_bias) = A(bias);
  for (int j = 0; j < s.taps; ++j) {
    double sum = 0;
    for (int64_t i = 0; i < s.n * s.c; ++i) {
      const int64_t at = i % s.c + j - s.taps / 2;
      if (at >= 0 && at < s.c) sum += double(dz[i]) * pooled[i + j - s.taps / 2];
    }
    static_cast<A*>(a.grad_weight)[j] = A(sum);
  }
}

}  // namespace

void eca_forward(int dtype, const EcaForward& a) { MEDSEG_DISPATCH(dtype, forward, a) }
void eca_backward(int dtype, const EcaBackward& a){MEDSEG_DISPATCH(dtype, backward, a)}

// Bytes: dz (n, c), then the lines of every thread.
int64_t eca_scratch(int dtype, const EcaShape& s) {
  const int64_t size = dtype == kFloat64 ? 8 : 4;
  const int64_t lines = dtype == kFloat64 ? lines_bytes<double>(s) : lines_bytes<float>(s);
  return round_up(s.n * s.c * size, 64) + (s.channels_last ? s.threads * lines : 0);
}

}  // namespace MEDSEG_ISA
}  // namespace medseg
