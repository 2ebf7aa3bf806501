// Triplet attention, forward: out = x * (G0[a1,a2] + G1[a0,a2] + G2[a0,a1]), with
// G_m = sigmoid(bn(conv(max, mean of x over axis m))) / gates.
//
// x is read once for all six pooled planes and once more for the product, image by image, so that
// the second read finds it in the last-level cache; no permuted copy ever exists.
#include "triplet_passes.h"
#include "triplet_pool.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace triplet {
namespace {

template <class A>
Moments moments_of(const Plane& flat, const A* u, Range rows) {
  const double count = double(rows.end - rows.begin) * double(flat.cols);
  if (count == 0) return {0, 0, 0};
  double sum = 0, m2 = 0;
  for (int64_t r = rows.begin; r < rows.end; ++r)
    for (int64_t j = 0; j < flat.cols; ++j) sum += u[r * flat.ld + j];
  const double mean = sum / count;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int64_t j = 0; j < flat.cols; ++j) {
      const double d = u[r * flat.ld + j] - mean;
      m2 += d * d;
    }
  }
  return {count, mean, m2};
}

// G = sigmoid(u * scale + shift) / gates, in place.
template <class A>
void activate(const Plane& flat, A* u, Range rows, A scale, A shift, A share) {
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int64_t j = 0; j < flat.ld; j += Lanes<A>::count) {
      A* p = u + r * flat.ld + j;
      write(p, sigmoid<A>(read<Vec<A>>(p) * scale + shift) * share);
    }
  }
}

// Everything in scratch.
template <class A>
struct Work {
  A* taps[3];        // (2, k, k) per plane, as the plane lies
  Moments* moments;  // (image, plane, thread)
  A* strips;
  Arena gates, slots;  // where the pieces that repeat begin, and how large one is
  int64_t gates_bytes, slot_bytes, bytes;
};

template <class A>
void take_gates(const TripletShape& s, Arena& arena, A* gate[3]) {
  for (int m = 0; m < 3; ++m) gate[m] = arena.take<A>(Plane::of<A>(s, m, false).size());
}

template <class A>
Work<A> lay_out(const TripletShape& s, bool keep, void* scratch) {
  Arena arena{static_cast<char*>(scratch), 0};
  Work<A> w;
  for (int m = 0; m < 3; ++m) w.taps[m] = arena.take<A>(int64_t(2) * s.taps * s.taps);
  w.moments = arena.take<Moments>(s.n * 3 * s.threads);
  w.strips = arena.take<A>(s.threads * 3 * Plane::of<A>(s, 1, false).size());
  const int64_t slots = smaller(s.n, s.threads);
  Arena one{nullptr, 0};
  A* unused[3];
  take_gates<A>(s, one, unused);
  w.gates_bytes = one.used;
  w.gates = arena;
  // In training the gates of the whole batch wait for its statistics.
  arena.used += w.gates_bytes * (s.training ? s.n : slots);
  one.used = 0;
  take_pooled<A>(s, one, keep);
  w.slot_bytes = one.used;
  w.slots = arena;
  w.bytes = arena.used + w.slot_bytes * slots;
  return w;
}

template <class A>
struct Norm {
  A scale[3], shift[3];
};

// scale and shift of every gate from running or batch statistics; stats are written by `lead`.
template <class A>
Norm<A> normalise(const TripletForward& a, const Moments* moments, bool lead) {
  const TripletShape& s = a.shape;
  A* stats = static_cast<A*>(a.stats);
  Norm<A> norm{};
  for (int m = 0; m < 3; ++m) {
    const int g = s.gate[m];
    if (g < 0) continue;
    double mean = double(static_cast<const A*>(a.running_mean)[g]);
    double var = double(static_cast<const A*>(a.running_var)[g]), unbiased = var;
    if (s.training) {
      Moments all{0, 0, 0};
      for (int64_t i = 0; i < s.n * s.threads; ++i)
        combine(all, moments[(i / s.threads * 3 + m) * s.threads + i % s.threads]);
      mean = all.mean;
      var = all.m2 / all.count;
      unbiased = all.m2 / (all.count - 1);
    }
    const double rstd = 1. / __builtin_sqrt(var + s.eps);
    const double scale = double(static_cast<const A*>(a.bn_weight)[g]) * rstd;
    norm.scale[m] = A(scale);
    norm.shift[m] = A(double(static_cast<const A*>(a.bn_bias)[g]) - mean * scale);
    if (!lead) continue;
    stats[g] = A(mean);
    stats[s.gates + g] = A(unbiased);
    stats[2 * s.gates + g] = A(rstd);
  }
  return norm;
}

// The steps of one image; every step needs what all threads of the image did in the one before.
template <class T>
struct Steps {
  using A = Acc<T>;
  const TripletForward& a;
  const TripletShape& s = a.shape;
  const Work<A> w = lay_out<A>(s, a.planes != nullptr, a.scratch);
  const A share = A(1) / A(s.gates);

  const T* image(const Place& at) const {
    return static_cast<const T*>(a.x) + at.image * s.stride_n;
  }
  Pooled<A> pooled(const Place& at) const {
    Arena arena{w.slots.base, w.slots.used + at.slot * w.slot_bytes};
    Pooled<A> q = take_pooled<A>(s, arena, a.planes != nullptr);
    q.strips = w.strips;
    return q;
  }
  void gates(const Place& at, A* gate[3]) const {
    Arena arena{w.gates.base, w.gates.used + (s.training ? at.image : at.slot) * w.gates_bytes};
    take_gates<A>(s, arena, gate);
  }
  void pool_image(const Place& at) const {
    if (a.planes)
      pool<T, true>(s, image(at), pooled(at), at);
    else
      pool<T, false>(s, image(at), pooled(at), at);
  }
  // u of every plane, and its moments.
  void convolve_planes(const Place& at) const {
    const Pooled<A> q = pooled(at);
    A* gate[3];
    gates(at, gate);
    for (int m = 0; m < 3; ++m) {
      const Range rows = at.of(q.plane[m].rows);
      if (s.gate[m] < 0) {
        for (int64_t i = rows.begin * q.flat[m].ld; i < rows.end * q.flat[m].ld; ++i)
          gate[m][i] = 0;
        continue;
      }
      convolve(q.plane[m], q.origin[m], 2, w.taps[m], s.taps, rows, gate[m], q.flat[m].ld);
      if (s.training)
        w.moments[(at.image * 3 + m) * s.threads + at.part] = moments_of(q.flat[m], gate[m], rows);
    }
  }
  void activate_planes(const Place& at, const Norm<A>& norm) const {
    A* gate[3];
    gates(at, gate);
    for (int m = 0; m < 3; ++m) {
      const Plane flat = Plane::of<A>(s, m, false);
      if (s.gate[m] >= 0)
        activate(flat, gate[m], at.of(flat.rows), norm.scale[m], norm.shift[m], share);
    }
  }
  void apply_image(const Place& at) const {
    A* gate[3];
    gates(at, gate);
    apply(s, image(at), gate, at.of(s.a[0]),
          static_cast<T*>(a.out) + at.image * s.a[0] * s.a[1] * s.a[2]);
  }
};

template <class T>
void forward(const TripletForward& a) {
  using A = Acc<T>;
  const Steps<T> steps{a};
  const TripletShape& s = a.shape;
  for (int m = 0; m < 3; ++m)
    if (s.gate[m] >= 0)
      arrange_taps(s, static_cast<const A*>(a.conv_weight), m, false, steps.w.taps[m]);
  for (int64_t i = 0; i < s.n * 3 * s.threads; ++i) steps.w.moments[i] = {0, 0, 0};
  const Norm<A> running = normalise<A>(a, steps.w.moments, !s.training);

#pragma omp parallel num_threads(s.threads)
  {
    for_each_image(s.n, [&](const Place& at) {
      if (at.active) steps.pool_image(at);
      at.wait();
      if (at.active) finish(s, {a.planes, a.index, a.index_bytes}, steps.pooled(at), at);
      at.wait();
      if (at.active) steps.convolve_planes(at);
      if (s.training) return;
      at.wait();
      if (at.active) steps.activate_planes(at, running);
      at.wait();
      if (at.active) steps.apply_image(at);
    });
    if (s.training) {
#pragma omp barrier
      const Norm<A> batch = normalise<A>(a, steps.w.moments, thread_number() == 0);
      for_each_image(s.n, [&](const Place& at) {
        if (at.active) steps.activate_planes(at, batch);
        at.wait();
        if (at.active) steps.apply_image(at);
      });
    }
  }
}

template <class T>
int64_t scratch(const TripletShape& s, bool /*backward*/) {
  return lay_out<Acc<T>>(s, true, nullptr).bytes;
}

}  // namespace
}  // namespace triplet

void triplet_forward(int dtype, const TripletForward& a){
    MEDSEG_DISPATCH(triplet_forward, triplet::forward, dtype, a)}

int64_t triplet_backward_scratch(int dtype, const TripletShape& s);

int64_t triplet_scratch(int dtype, const TripletShape& s, bool backward) {
  if (backward) return triplet_backward_scratch(dtype, s);
  MEDSEG_DISPATCH(triplet_scratch, triplet::scratch, dtype, s, false)
}

}  // namespace MEDSEG_ISA
}  // namespace medseg
