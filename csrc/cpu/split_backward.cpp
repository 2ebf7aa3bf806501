// Split attention, backward. One read of grad_out and x for the gradients of the gates, the middle
// back to the pooled sum, then grad_x = grad_out * gate + term from one read of grad_out.
#include "split_pixels.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

// The scratch of a call, and of one thread.
template <class A>
struct Work {
  Sums sums;
  A *dz, *hidden, *normal, *dv;  // (n, radix * c), then (n, inner) three times
  A *gates, *terms, *line, *lines;
  double *mean, *mean_normal;  // over images, of dv and dv * normal

  Work(const SplitShape& s, Arena& arena, int64_t thread) {
    sums = sums_in(arena, s, s.radix * s.c);
    dz = arena.take<A>(s.n * s.radix * s.c);
    hidden = arena.take<A>(s.n * s.inner);
    normal = arena.take<A>(s.n * s.inner);
    dv = arena.take<A>(s.n * s.inner);
    for (int64_t t = 0; t <= thread; ++t) {
      gates = arena.take<A>(s.radix * line_of<A>(s));
      terms = arena.take<A>(line_of<A>(s));
      line = arena.take<A>(s.inner);
      lines = arena.take<A>(s.radix * line_of<A>(s));
      mean = arena.take<double>(s.inner);
      mean_normal = arena.take<double>(s.inner);
    }
  }
};

template <class T>
struct Backward {
  using A = Acc<T>;
  const SplitBackward& a;
  const SplitShape& s;

  static const A* acc(const void* p) { return static_cast<const A*>(p); }
  const T* grad_out(int64_t n) const { return static_cast<const T*>(a.grad_out) + n * s.c * s.hw; }
  const A* pooled(int64_t n) const { return acc(a.saved) + n * (1 + s.radix) * s.c; }

  void read(const Place& at, const Work<A>& work) const {
    const T* image = static_cast<const T*>(a.x) + at.image * s.stride_n;
    double* sums = work.sums.mine(at);
    if (s.channels_last)
      with_radix(s.radix, [&](auto radix) {
        dot_pixels<radix.value>(image, grad_out(at.image), s, at.of(s.hw), work.lines, sums);
      });
    else
      dot_planes(image, grad_out(at.image), s, at.of(s.c), sums);
  }

  // dz of one image, through the softmax or sigmoid, in the order of the second layer's rows.
  void gates_back(const Place& at, const Work<A>& work, A* dz) const {
    const A* gates = pooled(at.image) + s.c;
    const int64_t width = s.c / s.cardinality;
    for (int64_t c = 0; c < s.c; ++c) {
      double da[kMaxRadix], mean = 0;
      for (int r = 0; r < s.radix; ++r) {
        da[r] = work.sums.total(at, r * s.c + c);
        mean += da[r] * gates[r * s.c + c];
      }
      A* to = dz + c / width * s.radix * width + c % width;
      for (int r = 0; r < s.radix; ++r) {
        const double gate = gates[r * s.c + c];
        to[r * width] = A(s.radix == 1 ? da[r] * gate * (1 - gate) : gate * (da[r] - mean));
      }
    }
  }

  // One image from its sums to dv, the gradient of what the batch norm returned.
  void middle(const Place& at, const Work<A>& work) const {
    const int64_t row = at.image * s.inner;
    const A* stats = acc(a.stats);
    A *hidden = work.hidden + row, *normal = work.normal + row, *dv = work.dv + row;
    A* dz = work.dz + at.image * s.radix * s.c;
    gates_back(at, work, dz);
    apply(first_layer(s), acc(a.fc1_weight), acc(a.fc1_bias), pooled(at.image), normal);
    apply_transposed(second_layer(s), acc(a.fc2_weight), dz, dv);
    for (int64_t i = 0; i < s.inner; ++i) {
      normal[i] = (normal[i] - stats[i]) * stats[2 * s.inner + i];
      hidden[i] = relu(normal[i] * acc(a.bn_weight)[i] + acc(a.bn_bias)[i]);
      dv[i] = hidden[i] <= 0 ? A(0) : dv[i];
    }
  }

  // The means that the batch norm's backward takes off, which are its own gradients too.
  void batch_means(const Work<A>& work, A* grad_weight, A* grad_bias) const {
    for (int64_t i = 0; i < s.inner; ++i) {
      double sum = 0, sum_normal = 0;
      for (int64_t at = i; at < s.n * s.inner; at += s.inner) {
        sum += work.dv[at];
        sum_normal += double(work.dv[at]) * work.normal[at];
      }
      work.mean[i] = s.training ? sum / double(s.n) : 0;
      work.mean_normal[i] = s.training ? sum_normal / double(s.n) : 0;
      if (thread_number()) continue;
      grad_weight[i] = A(sum_normal);
      grad_bias[i] = A(sum);
    }
  }

  // The gradient of what the first layer returned.
  A inner_grad(const Work<A>& work, int64_t n, int64_t i) const {
    const int64_t at = n * s.inner + i;
    const double rstd = acc(a.stats)[2 * s.inner + i];
    return A(acc(a.bn_weight)[i] * rstd *
             (work.dv[at] - work.mean[i] - work.normal[at] * work.mean_normal[i]));
  }

  void write(const Place& at, const Work<A>& work) const {
    for (int64_t i = 0; i < s.inner; ++i) work.line[i] = inner_grad(work, at.image, i);
    apply_transposed(first_layer(s), acc(a.fc1_weight), work.line, work.terms);
    for (int64_t c = 0; c < s.c; ++c) work.terms[c] /= A(s.hw);
    pad_lines(s, pooled(at.image) + s.c, work.gates);
    T* grad_x = static_cast<T*>(a.grad_x) + at.image * s.radix * s.c * s.hw;
    const T* dy = grad_out(at.image);
    with_radix(s.radix, [&](auto radix) {
      constexpr int R = decltype(radix)::value;
      if (s.channels_last)
        spread_pixels<R>(dy, s, work.gates, work.terms, at.of(s.hw), grad_x);
      else
        spread_planes<R>(dy, s, work.gates, work.terms, at.of(s.c), grad_x);
    });
  }

  // This thread's rows of a layer's gradients: sums over images of grad(n, row) * input(n).
  template <class Grad, class Input>
  void weight_grads(const Layer& layer, Grad grad, Input input, A* weight, A* bias) const {
    const int64_t thread = thread_number(), threads = thread_count();
    for (int64_t o = layer.outputs * thread / threads; o < layer.outputs * (thread + 1) / threads;
         ++o) {
      A* row = weight + o * layer.inputs;
      for (int64_t i = 0; i < layer.inputs; ++i) row[i] = 0;
      double sum = 0;
      for (int64_t n = 0; n < s.n; ++n) {
        const A g = grad(n, o);
        sum += g;
        add_scaled(g, input(n) + layer.first_input(o), layer.inputs, row);
      }
      bias[o] = A(sum);
    }
  }

  void run(const Work<A>& work) const {
    const Layer one = first_layer(s), two = second_layer(s);
    A* fc1 = static_cast<A*>(a.grads);
    A *fc1_bias = fc1 + one.outputs * one.inputs, *bn_weight = fc1_bias + s.inner;
    A *bn_bias = bn_weight + s.inner, *fc2 = bn_bias + s.inner;
    A* fc2_bias = fc2 + two.outputs * two.inputs;
    for_my_images(s.n, false, [&](const Place& at) {
      read(at, work);
      if (at.parts == 1) middle(at, work);
    });
    if (some_are_shared(s.n)) {
#pragma omp barrier
      for_my_images(s.n, true, [&](const Place& at) {
        if (at.parts > 1 && at.part == 0) middle(at, work);
      });
    }
#pragma omp barrier
    batch_means(work, bn_weight, bn_bias);
    if (a.grad_x) for_my_images(s.n, true, [&](const Place& at) { write(at, work); });
    weight_grads(
        one, [&](int64_t n, int64_t i) { return inner_grad(work, n, i); },
        [&](int64_t n) { return pooled(n); }, fc1, fc1_bias);
    weight_grads(
        two, [&](int64_t n, int64_t o) { return work.dz[n * s.radix * s.c + o]; },
        [&](int64_t n) { return work.hidden + n * s.inner; }, fc2, fc2_bias);
  }
};

template <class T>
void backward(const SplitBackward& a) {
  const Backward<T> back{a, a.shape};
#pragma omp parallel num_threads(a.shape.threads)
  {
    Arena arena{static_cast<char*>(a.scratch)};
    back.run(Work<Acc<T>>(a.shape, arena, thread_number()));
  }
}

template <class T>
int64_t scratch(const SplitShape& s, bool /*backward*/) {
  Arena arena{nullptr};
  Work<Acc<T>>(s, arena, s.threads - 1);
  return arena.used;
}

}  // namespace

void split_backward(int dtype,
                    const SplitBackward& a){MEDSEG_DISPATCH(split_backward, backward, dtype, a)}

int64_t split_backward_scratch(int dtype, const SplitShape& s) {
  MEDSEG_DISPATCH(split_scratch, scratch, dtype, s, true)
}

}  // namespace MEDSEG_ISA
}  // namespace medseg
