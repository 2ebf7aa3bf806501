// The small middle of split attention, on vectors: two grouped layers, batch norm, softmax; and how
// threads share the images of a batch whose gates need all of them.
#pragma once
#include "team.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

constexpr int kMaxRadix = 4;

template <int N>
struct Count {
  static constexpr int value = N;
};
// Calls body(Count<radix>{}).
template <class Body>
MEDSEG_INLINE void with_radix(int radix, Body body) {
  switch (radix) {
    case 1:
      return body(Count<1>{});
    case 2:
      return body(Count<2>{});
    case 3:
      return body(Count<3>{});
    default:
      return body(Count<4>{});
  }
}

// Hands out pieces of one block, each on cache lines of its own. Over a null block it only counts.
struct Arena {
  char* base;
  int64_t used = 0;
  template <class A>
  A* take(int64_t count) {
    A* piece = base ? reinterpret_cast<A*>(base + used) : nullptr;
    used += round_up(count * int64_t(sizeof(A)), 64);
    return piece;
  }
};

template <class A>
A dot(const A* p, const A* q, int64_t count) {
  constexpr int64_t L = Lanes<A>::count;
  Vec<A> s0{}, s1{};
  int64_t i = 0;
  for (; i + 2 * L <= count; i += 2 * L) {
    s0 += load(p + i) * load(q + i);
    s1 += load(p + i + L) * load(q + i + L);
  }
  for (; i < count; i += L) {
    const int64_t rest = smaller(L, count - i);
    s0 += rest == L ? load(p + i) * load(q + i) : load_part(p + i, rest) * load_part(q + i, rest);
  }
  return sum_lanes<A>(s0 + s1);
}

// y += factor * x
template <class A>
void add_scaled(A factor, const A* x, int64_t count, A* y) {
  constexpr int64_t L = Lanes<A>::count;
  int64_t i = 0;
  for (; i + L <= count; i += L) store(y + i, load(y + i) + factor * load(x + i));
  for (; i < count; ++i) y[i] += factor * x[i];
}

// A layer of `groups` groups: weight (outputs, inputs), inputs those of one group.
struct Layer {
  int64_t outputs, inputs;
  int groups;
  MEDSEG_INLINE int64_t first_input(int64_t output) const {
    return output / (outputs / groups) * inputs;
  }
};

// y = weight * x + bias
template <class A>
void apply(const Layer& layer, const A* weight, const A* bias, const A* x, A* y) {
  for (int64_t o = 0; o < layer.outputs; ++o)
    y[o] = dot(weight + o * layer.inputs, x + layer.first_input(o), layer.inputs) +
           (bias ? bias[o] : A(0));
}

// x = transposed weight * y
template <class A>
void apply_transposed(const Layer& layer, const A* weight, const A* y, A* x) {
  for (int64_t i = 0; i < layer.inputs * layer.groups; ++i) x[i] = 0;
  for (int64_t o = 0; o < layer.outputs; ++o)
    add_scaled(y[o], weight + o * layer.inputs, layer.inputs, x + layer.first_input(o));
}

MEDSEG_INLINE Layer first_layer(const SplitShape& s) {
  return {s.inner, s.c / s.cardinality, s.cardinality};
}
MEDSEG_INLINE Layer second_layer(const SplitShape& s) {
  return {s.radix * s.c, s.inner / s.cardinality, s.cardinality};
}

// The elements from one split's gates to the next: vectors may run over the end of a line.
template <class A>
MEDSEG_INLINE int64_t line_of(const SplitShape& s) {
  return round_up(s.c, Lanes<A>::count) + Lanes<A>::count;
}
template <class A>
void pad_lines(const SplitShape& s, const A* from, A* lines) {
  for (int r = 0; r < s.radix; ++r)
    for (int64_t c = 0; c < s.c; ++c) lines[r * line_of<A>(s) + c] = from[r * s.c + c];
}

// exp(x) for x <= 0, and exactly 0 where the reference has 0: infinity * 0 has to be NaN.
template <class A>
MEDSEG_INLINE Vec<A> exp_below(Vec<A> x) {
  return x < A(sizeof(A) == 4 ? -104 : -746) ? Vec<A>{} : vexp(x);
}

// Lines of gates, softmax over the splits (a sigmoid for one) of z, whose order is group, split,
// channel. One vector past the end of z is read.
template <int R, class A>
void gates_of(const SplitShape& s, const A* z, A* gates) {
  constexpr int64_t L = Lanes<A>::count;
  const int64_t width = s.c / s.cardinality, line = line_of<A>(s);
  for (int64_t g = 0; g < s.cardinality; ++g) {
    for (int64_t j = 0; j < width; j += L) {
      const A* from = z + g * R * width + j;
      A* to = gates + g * width + j;
      if constexpr (R == 1) {
        store(to, sigmoid<A>(load(from)));
        continue;
      }
      Vec<A> top = load(from), total{}, part[R];
      for (int r = 1; r < R; ++r) top = vmax(top, load(from + r * width));
      for (int r = 0; r < R; ++r) total += part[r] = exp_below<A>(load(from + r * width) - top);
      for (int r = 0; r < R; ++r) store(to + r * line, part[r] / total);
    }
  }
}

// v > 0 ? v : 0, and NaN stays NaN.
template <class A>
MEDSEG_INLINE A relu(A v) {
  return v <= 0 ? A(0) : v;
}

template <class A>
void write_stats(const SplitShape& s, int64_t i, double mean, double var, A* stats) {
  const double biased = s.training ? var * double(s.n - 1) / double(s.n) : var;
  stats[i] = A(mean);
  stats[s.inner + i] = A(var);
  stats[2 * s.inner + i] = A(1. / __builtin_sqrt(biased + s.eps));
}

// stats (3, inner) of `values` (n, inner): mean, unbiased variance, 1 / sqrt(variance + eps).
template <class A>
void batch_stats(const SplitShape& s, const A* values, A* stats) {
  for (int64_t i = 0; i < s.inner; ++i) {
    double mean = 0, squares = 0;
    for (int64_t n = 0; n < s.n; ++n) mean += values[n * s.inner + i];
    mean /= double(s.n);
    for (int64_t n = 0; n < s.n; ++n) {
      const double d = values[n * s.inner + i] - mean;
      squares += d * d;
    }
    write_stats(s, i, mean, squares / double(s.n - 1), stats);
  }
}

// Calls body(place) for the images of one thread, without a barrier; with `reversed` from the last
// image to the first. Whole images first, and the rest of the batch shared by several threads.
template <class Body>
MEDSEG_INLINE void for_my_images(int64_t images, bool reversed, Body body) {
  const int64_t thread = thread_number(), threads = thread_count();
  const int64_t whole = images / threads * threads, left = images - whole;
  const int64_t parts = left ? threads / left : 1, mine = thread / parts;
  const Place rest{left > mine, whole + mine, (whole + parts - 1) / parts + mine, thread % parts,
                   parts};
  if (reversed && rest.active) body(rest);
  for (int64_t base = 0; base < whole; base += threads) {
    const int64_t image = (reversed ? whole - threads - base : base) + thread;
    body(Place{true, image, image, 0, 1});
  }
  if (!reversed && rest.active) body(rest);
}
MEDSEG_INLINE bool some_are_shared(int64_t images) {
  return images % thread_count() && thread_count() / (images % thread_count()) > 1;
}

// Sums of every image: a line of doubles for each, or for each part of it in channels_last.
struct Sums {
  double* lines;
  int64_t width;
  bool by_parts;
  MEDSEG_INLINE double* mine(const Place& at) const {
    return lines + (at.slot * at.parts + (by_parts ? at.part : 0)) * width;
  }
  MEDSEG_INLINE double total(const Place& at, int64_t i) const {
    double sum = 0;
    for (int64_t part = 0; part < (by_parts ? at.parts : 1); ++part)
      sum += lines[(at.slot * at.parts + part) * width + i];
    return sum;
  }
};
MEDSEG_INLINE Sums sums_in(Arena& arena, const SplitShape& s, int64_t width) {
  return {arena.take<double>((s.n + 2 * s.threads) * width), width, s.channels_last};
}

}  // namespace
}  // namespace MEDSEG_ISA
}  // namespace medseg
