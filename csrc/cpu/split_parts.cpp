// Split attention by parts, for gates that are made elsewhere: the pool, and the combination with
// its gradients. The passes over the map are those of the whole.
#include "split_pixels.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

// The scratch of a call, and of one thread.
template <class A>
struct Work {
  Sums sums;
  double* block;  // sums of a block of pixels
  A *gates, *terms, *lines;

  Work(const SplitShape& s, Arena& arena, int64_t thread) {
    sums = sums_in(arena, s, s.radix * s.c);
    for (int64_t t = 0; t <= thread; ++t) {
      block = arena.take<double>(s.radix * s.c);
      gates = arena.take<A>(s.radix * line_of<A>(s));
      terms = arena.take<A>(line_of<A>(s));
      lines = arena.take<A>(s.radix * line_of<A>(s));
    }
  }
};

template <class T>
struct Parts {
  using A = Acc<T>;
  const SplitPart& a;
  const SplitShape& s;

  const T* image(const Place& at) const {
    return static_cast<const T*>(a.x) + at.image * s.stride_n;
  }
  template <class Out>
  Out* row(void* base, const Place& at, int64_t length) const {
    return static_cast<Out*>(base) + at.image * length;
  }
  void load_gates(const Place& at, const Work<A>& work) const {
    pad_lines(s, static_cast<const A*>(a.gates) + at.image * s.radix * s.c, work.gates);
  }

  void pool(const Place& at, const Work<A>& work) const {
    double* sums = work.sums.mine(at);
    if (s.channels_last)
      with_radix(s.radix, [&](auto radix) {
        pool_pixels<radix.value, false, T>(image(at), s, nullptr, nullptr, at.of(s.hw), work.lines,
                                           sums);
      });
    else
      pool_planes<false, T>(image(at), s, nullptr, nullptr, at.of(s.c), sums);
  }

  void combine(const Place& at, const Work<A>& work) const {
    load_gates(at, work);
    T* out = row<T>(a.mapped, at, s.c * s.hw);
    with_radix(s.radix, [&](auto radix) {
      constexpr int R = decltype(radix)::value;
      if (s.channels_last)
        combine_pixels<R, false, T>(image(at), s, nullptr, nullptr, work.gates, at.of(s.hw), out);
      else
        combine_planes<R, false, T>(image(at), s, nullptr, nullptr, work.gates, at.of(s.c), out);
    });
  }

  // Sums of grad_out * x, and grad_x while grad_out is in the cache.
  void back(const Place& at, const Work<A>& work) const {
    load_gates(at, work);
    const T* dy = static_cast<const T*>(a.grad_out) + at.image * s.c * s.hw;
    T* dx = a.mapped ? row<T>(a.mapped, at, s.radix * s.c * s.hw) : nullptr;
    with_radix(s.radix, [&](auto radix) {
      constexpr int R = decltype(radix)::value;
      s.channels_last ? back_pixels<R>(at, work, dy, dx) : back_planes<R>(at, work, dy, dx);
    });
  }
  template <int R>
  void back_planes(const Place& at, const Work<A>& work, const T* dy, T* dx) const {
    const Range mine = at.of(s.c);
    for (int64_t c = mine.begin; c < mine.end; ++c) {
      dot_planes(image(at), dy, s, Range{c, c + 1}, work.sums.mine(at));
      if (dx) spread_planes<R>(dy, s, work.gates, work.terms, Range{c, c + 1}, dx);
    }
  }
  template <int R>
  void back_pixels(const Place& at, const Work<A>& work, const T* dy, T* dx) const {
    double* sums = work.sums.mine(at);
    const Range mine = at.of(s.hw);
    for (int64_t k = 0; k < R * s.c; ++k) sums[k] = 0;
    for (int64_t p = mine.begin; p < mine.end; p += kPixelBlock) {
      const Range block{p, smaller(p + kPixelBlock, mine.end)};
      dot_pixels<R>(image(at), dy, s, block, work.lines, work.block);
      for (int64_t k = 0; k < R * s.c; ++k) sums[k] += work.block[k];
      if (dx) spread_pixels<R>(dy, s, work.gates, work.terms, block, dx);
    }
  }

  // This thread's share of an image's `width` sums, over `by`.
  void total(const Place& at, const Work<A>& work, int64_t width, double by) const {
    const Range mine = at.of(width);
    A* to = row<A>(a.sums, at, width);
    for (int64_t k = mine.begin; k < mine.end; ++k) to[k] = A(work.sums.total(at, k) / by);
  }
};

// Calls body(parts, work) on every thread.
template <class T, class Body>
void on_threads(const SplitPart& a, Body body) {
  const Parts<T> parts{a, a.shape};
#pragma omp parallel num_threads(a.shape.threads)
  {
    Arena arena{static_cast<char*>(a.scratch)};
    const Work<Acc<T>> work(a.shape, arena, thread_number());
    for (int64_t i = 0; i < line_of<Acc<T>>(a.shape); ++i) work.terms[i] = 0;
    body(parts, work);
  }
}

template <class T>
void pool(const SplitPart& a) {
  on_threads<T>(a, [&](const auto& parts, const auto& work) {
    for_each_image(a.shape.n, [&](const Place& at) {
      if (at.active) parts.pool(at, work);
      at.wait();
      if (at.active) parts.total(at, work, a.shape.c, double(a.shape.hw));
    });
  });
}

template <class T>
void apply(const SplitPart& a) {
  on_threads<T>(a, [&](const auto& parts, const auto& work) {
    for_my_images(a.shape.n, false, [&](const Place& at) { parts.combine(at, work); });
  });
}

template <class T>
void apply_back(const SplitPart& a) {
  on_threads<T>(a, [&](const auto& parts, const auto& work) {
    for_each_image(a.shape.n, [&](const Place& at) {
      if (at.active) parts.back(at, work);
      at.wait();
      if (at.active) parts.total(at, work, a.shape.radix * a.shape.c, 1);
    });
  });
}

template <class T>
int64_t scratch(const SplitShape& s) {
  Arena arena{nullptr};
  Work<Acc<T>>(s, arena, s.threads - 1);
  return arena.used;
}

}  // namespace

void split_pool(int dtype, const SplitPart& a) { MEDSEG_DISPATCH(split_pool, pool, dtype, a) }

void split_apply(int dtype, const SplitPart& a) { MEDSEG_DISPATCH(split_apply, apply, dtype, a) }

void split_apply_backward(int dtype, const SplitPart& a){
    MEDSEG_DISPATCH(split_apply_backward, apply_back, dtype, a)}

int64_t split_part_scratch(int dtype, const SplitShape& s) {
  MEDSEG_DISPATCH(split_part_scratch, scratch, dtype, s)
}

}  // namespace MEDSEG_ISA
}  // namespace medseg
