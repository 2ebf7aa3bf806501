// Split attention, forward: out = sum over splits of gate * x, the gates from the pooled sum.
//
// In inference an image is pooled and combined before the next one is touched, so that its second
// read comes from the last-level cache. In training the batch norm needs every image first; then
// they are combined from the last one back.
#include "split_pixels.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

// The scratch of a call, and of one thread.
template <class A>
struct Work {
  Sums sums;
  A* inner;  // in training (n, inner): what the batch norm sees
  A *pooled, *hidden, *stats, *z, *gates, *scale, *shift, *lines;

  Work(const SplitShape& s, Arena& arena, int64_t thread) {
    sums = sums_in(arena, s, s.c);
    inner = arena.take<A>(s.training ? s.n * s.inner : 0);
    for (int64_t t = 0; t <= thread; ++t) {
      pooled = arena.take<A>(s.c);
      hidden = arena.take<A>(s.inner);
      stats = arena.take<A>(3 * s.inner);
      z = arena.take<A>(s.radix * s.c + Lanes<A>::count);
      gates = arena.take<A>(s.radix * line_of<A>(s));
      scale = arena.take<A>(s.radix * line_of<A>(s));
      shift = arena.take<A>(s.radix * line_of<A>(s));
      lines = arena.take<A>(line_of<A>(s));
    }
  }
};

template <class T>
struct Forward {
  using A = Acc<T>;
  const SplitForward& a;
  const SplitShape& s;
  const A *scale, *shift;

  static const A* acc(const void* p) { return static_cast<const A*>(p); }
  const T* image(int64_t n) const { return static_cast<const T*>(a.x) + n * s.stride_n; }
  A* saved(int64_t n) const { return static_cast<A*>(a.saved) + n * (1 + s.radix) * s.c; }

  // Calls body(Count<radix>{}, Count<whether there is a batch norm in front>{}).
  template <class Body>
  void dispatch(Body body) const {
    with_radix(s.radix,
               [&](auto radix) { scale ? body(radix, Count<1>{}) : body(radix, Count<0>{}); });
  }

  void pool(const Place& at, const Work<A>& work) const {
    double* sums = work.sums.mine(at);
    const T* x = image(at.image);
    if (s.channels_last)
      dispatch([&](auto radix, auto fold) {
        pool_pixels<radix.value, fold.value>(x, s, work.scale, work.shift, at.of(s.hw), work.lines,
                                             sums);
      });
    else if (scale)
      pool_planes<true>(x, s, scale, shift, at.of(s.c), sums);
    else
      pool_planes<false>(x, s, scale, shift, at.of(s.c), sums);
  }

  // The first layer, from the sums of all threads that share the image.
  void first(const Place& at, const Work<A>& work, A* inner) const {
    for (int64_t c = 0; c < s.c; ++c) work.pooled[c] = A(work.sums.total(at, c) / double(s.hw));
    if (at.part == 0)
      for (int64_t c = 0; c < s.c; ++c) saved(at.image)[c] = work.pooled[c];
    apply(first_layer(s), acc(a.fc1_weight), acc(a.fc1_bias), work.pooled, inner);
  }

  void second(const Place& at, const Work<A>& work, const A* inner, const A* stats) const {
    for (int64_t i = 0; i < s.inner; ++i) {
      const A normal = (inner[i] - stats[i]) * stats[2 * s.inner + i];
      work.hidden[i] = relu(normal * acc(a.bn_weight)[i] + acc(a.bn_bias)[i]);
    }
    apply(second_layer(s), acc(a.fc2_weight), acc(a.fc2_bias), work.hidden, work.z);
    with_radix(s.radix, [&](auto radix) { gates_of<radix.value>(s, work.z, work.gates); });
    if (at.part) return;
    for (int r = 0; r < s.radix; ++r)
      for (int64_t c = 0; c < s.c; ++c)
        saved(at.image)[(1 + r) * s.c + c] = work.gates[r * line_of<A>(s) + c];
  }

  void combine(const Place& at, const Work<A>& work) const {
    const T* x = image(at.image);
    T* out = static_cast<T*>(a.out) + at.image * s.c * s.hw;
    dispatch([&](auto radix, auto fold) {
      constexpr int R = decltype(radix)::value, kFold = decltype(fold)::value;
      if (s.channels_last)
        combine_pixels<R, kFold>(x, s, work.scale, work.shift, work.gates, at.of(s.hw), out);
      else
        combine_planes<R, kFold>(x, s, scale, shift, work.gates, at.of(s.c), out);
    });
  }

  void infer(const Work<A>& work) const {
    for_each_image(s.n, [&](const Place& at) {
      if (at.active) pool(at, work);
      at.wait();
      if (!at.active) return;
      first(at, work, work.hidden);
      second(at, work, work.hidden, acc(a.stats));
      combine(at, work);
    });
  }

  void train(const Work<A>& work) const {
    for_my_images(s.n, false, [&](const Place& at) {
      pool(at, work);
      if (at.parts == 1) first(at, work, work.inner + at.image * s.inner);
    });
    if (some_are_shared(s.n)) {
#pragma omp barrier
      for_my_images(s.n, true, [&](const Place& at) {
        if (at.parts > 1 && at.part == 0) first(at, work, work.inner + at.image * s.inner);
      });
    }
#pragma omp barrier
    batch_stats(s, work.inner, work.stats);
    if (thread_number() == 0)
      for (int64_t i = 0; i < 3 * s.inner; ++i) static_cast<A*>(a.stats)[i] = work.stats[i];
    for_my_images(s.n, true, [&](const Place& at) {
      second(at, work, work.inner + at.image * s.inner, work.stats);
      combine(at, work);
    });
  }

  void run() const {
    for (int64_t i = 0; i < s.inner && !s.training; ++i)
      write_stats(s, i, acc(a.running_mean)[i], acc(a.running_var)[i], static_cast<A*>(a.stats));
#pragma omp parallel num_threads(s.threads)
    {
      Arena arena{static_cast<char*>(a.scratch)};
      const Work<A> work(s, arena, thread_number());
      if (scale && s.channels_last) {
        pad_lines(s, scale, work.scale);
        pad_lines(s, shift, work.shift);
      }
      s.training ? train(work) : infer(work);
    }
  }
};

template <class T>
void forward(const SplitForward& a) {
  using A = Acc<T>;
  Forward<T>{a, a.shape, static_cast<const A*>(a.scale), static_cast<const A*>(a.shift)}.run();
}

template <class T>
int64_t scratch(const SplitShape& s, bool /*backward*/) {
  Arena arena{nullptr};
  Work<Acc<T>>(s, arena, s.threads - 1);
  return arena.used;
}

}  // namespace

void split_forward(int dtype,
                   const SplitForward& a){MEDSEG_DISPATCH(split_forward, forward, dtype, a)}

int64_t split_backward_scratch(int dtype, const SplitShape& s);

int64_t split_scratch(int dtype, const SplitShape& s, bool backward) {
  if (backward) return split_backward_scratch(dtype, s);
  MEDSEG_DISPATCH(split_scratch, scratch, dtype, s, false)
}

}  // namespace MEDSEG_ISA
}  // namespace medseg
