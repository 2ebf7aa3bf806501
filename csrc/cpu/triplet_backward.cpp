// Triplet attention, backward, from (grad_out, x) and the kept planes.
//
// One read of grad_out and x gives the gradients of all gates; gates and their inputs are computed
// again from the kept planes, which are small; one more read of grad_out and one write give grad_x:
// grad_x = grad_out * (G0 + G1 + G2) + means' share + maximum's share where the maximum was.
#include "triplet_passes.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace triplet {
namespace {

struct Sums {  // over a piece of a plane
  double dv, dv_uhat;
};

template <class A>
struct Work {
  A *taps[3], *flipped[3];
  Sums* sums;         // (image, plane, thread)
  double* grad_taps;  // (thread, plane, 2, k, k)
  A* strips;          // plane 1 of threads that are not their image's first
  Arena kept, flights;
  int64_t kept_bytes, flight_bytes, bytes;
};

template <class A>
Kept<A> take_kept(const TripletShape& s, Arena& arena) {
  Kept<A> k;
  for (int m = 0; m < 3; ++m) {
    const int64_t size = Plane::of<A>(s, m, false).size();
    k.u[m] = arena.take<A>(size);
    k.gate[m] = arena.take<A>(size);
    k.dv[m] = arena.take<A>(size);
  }
  return k;
}

template <class A>
Flight<A> take_flight(const TripletShape& s, Arena& arena) {
  Flight<A> f;
  for (int m = 0; m < 3; ++m) {
    f.plane[m] = Plane::of<A>(s, m, true);
    f.flat[m] = Plane::of<A>(s, m, false);
    f.q[m] = arena.take<A>(2 * f.plane[m].size(), f.plane[m].origin());
    f.du[m] = arena.take<A>(f.plane[m].size(), f.plane[m].origin());
    f.at_max[m] = arena.take<A>(f.flat[m].size());
    f.at_all[m] = arena.take<A>(f.flat[m].size());
    f.index[m] = arena.take<typename Lanes<A>::integer>(f.flat[m].size());
  }
  return f;
}

template <class A>
Work<A> lay_out(const TripletShape& s, void* scratch) {
  Arena arena{static_cast<char*>(scratch), 0};
  Work<A> w;
  const int64_t taps = int64_t(2) * s.taps * s.taps;
  for (int m = 0; m < 3; ++m) {
    w.taps[m] = arena.take<A>(taps);
    w.flipped[m] = arena.take<A>(taps);
  }
  w.sums = arena.take<Sums>(s.n * 3 * s.threads);
  w.grad_taps = arena.take<double>(s.threads * 3 * taps);
  w.strips = arena.take<A>(s.threads * Plane::of<A>(s, 1, false).size());
  Arena one{nullptr, 0};
  take_kept<A>(s, one);
  w.kept_bytes = one.used;
  w.kept = arena;
  arena.used += s.n * w.kept_bytes;
  one.used = 0;
  take_flight<A>(s, one);
  w.flight_bytes = one.used;
  w.flights = arena;
  w.bytes = arena.used + smaller(s.n, s.threads) * w.flight_bytes;
  return w;
}

// The steps of one image; every step needs what all threads of the image did in the one before.
template <class T>
struct Steps {
  using A = Acc<T>;
  const TripletBackward& a;
  const TripletShape& s = a.shape;
  const Work<A> w = lay_out<A>(s, a.scratch);
  const A share = A(1) / A(s.gates);
  const int64_t volume = s.a[0] * s.a[1] * s.a[2];

  Kept<A> kept(const Place& at) const {
    Arena arena{w.kept.base, w.kept.used + at.image * w.kept_bytes};
    return take_kept<A>(s, arena);
  }
  Flight<A> flight(const Place& at) const {
    Arena arena{w.flights.base, w.flights.used + at.slot * w.flight_bytes};
    return take_flight<A>(s, arena);
  }
  const T* grad(const Place& at) const {
    return static_cast<const T*>(a.grad_out) + at.image * volume;
  }
  A* strip(const Place& at, int64_t part, const Kept<A>& k) const {
    const int64_t thread = at.slot * at.parts + part;
    return part ? w.strips + thread * Plane::of<A>(s, 1, false).size() : k.dv[1];
  }
  A stat(int which, int m) const {
    return static_cast<const A*>(a.stats)[which * s.gates + s.gate[m]];
  }
  A gamma(int m) const { return static_cast<const A*>(a.bn_weight)[s.gate[m]]; }

  void unpack_planes(const Place& at) const {
    const Flight<A> f = flight(at);
    for (int m = 0; m < 3; ++m) {
      const Plane& p = f.plane[m];
      const A* maxima = static_cast<const A*>(a.planes) + kept_offset(s, m, at.image);
      unpack(p, maxima, maxima + kept_positions(s), at.of(p.rows), f.q[m]);
    }
  }
  void dot_image(const Place& at) const {
    const Kept<A> k = kept(at);
    dot(s, static_cast<const T*>(a.x) + at.image * s.stride_n, grad(at), k.dv,
        strip(at, at.part, k), at.of(s.a[1]), [](int64_t, Range) {});
  }
  // u and gates again; dv = dG * G * (1 - G) and its two sums.
  void gate_gradients(const Place& at) const {
    const Flight<A> f = flight(at);
    const Kept<A> k = kept(at);
    for (int m = 0; m < 3; ++m) {
      const Range rows = at.of(f.flat[m].rows);
      Sums& sums = w.sums[(at.image * 3 + m) * s.threads + at.part];
      for (int64_t part = 1; m == 1 && part < at.parts; ++part)
        for (int64_t i = rows.begin * f.flat[1].ld; i < rows.end * f.flat[1].ld; ++i)
          k.dv[1][i] += strip(at, part, k)[i];
      if (s.gate[m] < 0) {
        for (int64_t i = rows.begin * f.flat[m].ld; i < rows.end * f.flat[m].ld; ++i)
          k.gate[m][i] = 0;
        continue;
      }
      convolve(f.plane[m], f.q[m], 2, w.taps[m], s.taps, rows, k.u[m], f.flat[m].ld);
      for (int64_t r = rows.begin; r < rows.end; ++r) gate_row(k, f.flat[m], m, r, sums);
    }
  }
  void gate_row(const Kept<A>& k, const Plane& flat, int m, int64_t r, Sums& sums) const {
    constexpr int64_t L = Lanes<A>::count;
    const A mean = stat(0, m), rstd = stat(2, m);
    const A beta = static_cast<const A*>(a.bn_bias)[s.gate[m]];
    Vec<A> dv_sum{}, dot_sum{};
    for (int64_t j = 0; j < flat.cols; j += L) {
      const int64_t i = r * flat.ld + j;
      const IVec<A> here = lane_numbers<A>() < ifill<A>(flat.cols - j);
      const Vec<A> uhat = (read<Vec<A>>(k.u[m] + i) - mean) * rstd;
      const Vec<A> g = sigmoid<A>(uhat * gamma(m) + beta);
      const Vec<A> dv = here ? read<Vec<A>>(k.dv[m] + i) * share * g * (A(1) - g) : Vec<A>{};
      write(k.u[m] + i, uhat);
      write(k.gate[m] + i, g * share);
      write(k.dv[m] + i, dv);
      dv_sum += dv;
      dot_sum += here ? dv * uhat : Vec<A>{};
    }
    sums.dv += sum_lanes<A>(dv_sum);
    sums.dv_uhat += sum_lanes<A>(dot_sum);
  }
  Sums total(int m) const {
    Sums all{0, 0};
    for (int64_t i = 0; i < s.n * s.threads; ++i) {
      const Sums& one = w.sums[(i / s.threads * 3 + m) * s.threads + i % s.threads];
      all.dv += one.dv;
      all.dv_uhat += one.dv_uhat;
    }
    return all;
  }
  // Gradient of the convolution's output; in training through the batch statistics too.
  void norm_gradients(const Place& at, const Sums totals[3]) const {
    const Flight<A> f = flight(at);
    const Kept<A> k = kept(at);
    for (int m = 0; m < 3; ++m) {
      if (s.gate[m] < 0) continue;
      const Plane& flat = f.flat[m];
      const double count = double(s.n) * double(flat.rows) * double(flat.cols);
      const A mean_dv = s.training ? A(totals[m].dv / count) : A(0);
      const A mean_dot = s.training ? A(totals[m].dv_uhat / count) : A(0);
      const A scale = gamma(m) * stat(2, m);
      const Range rows = at.of(flat.rows);
      for (int64_t r = rows.begin; r < rows.end; ++r) {
        for (int64_t j = 0; j < flat.cols; ++j) {
          const int64_t i = r * flat.ld + j;
          f.du[m][r * f.plane[m].ld + j] = scale * (k.dv[m][i] - mean_dv - k.u[m][i] * mean_dot);
        }
      }
      clear_around(f.plane[m], f.du[m], rows);
    }
  }
  // Gradients of the taps and of the pooled planes.
  void plane_gradients(const Place& at) const {
    const Flight<A> f = flight(at);
    const int k2 = s.taps * s.taps;
    for (int m = 0; m < 3; ++m) {
      const Plane &flat = f.flat[m], &p = f.plane[m];
      const Range rows = at.of(flat.rows);
      if (s.gate[m] < 0) {
        for (int64_t i = rows.begin * flat.ld; i < rows.end * flat.ld; ++i)
          f.at_max[m][i] = f.at_all[m][i] = 0;
      } else {
        correlate(p, f.q[m], f.du[m], s.taps, rows,
                  w.grad_taps + (thread_number() * 3 + m) * 2 * k2);
        convolve(p, f.du[m], 1, w.flipped[m], s.taps, rows, f.at_max[m], flat.ld);
        convolve(p, f.du[m], 1, w.flipped[m] + k2, s.taps, rows, f.at_all[m], flat.ld);
        const A scale = A(1) / A(s.a[m]);
        for (int64_t i = rows.begin * flat.ld; i < rows.end * flat.ld; ++i) f.at_all[m][i] *= scale;
      }
      const int64_t first = kept_offset(s, m, at.image) * a.index_bytes;
      unpack_index(flat, static_cast<const char*>(a.index) + first, a.index_bytes, rows,
                   f.index[m]);
    }
  }
  void spread_image(const Place& at) const {
    spread<true>(s, grad(at), kept(at).gate, flight(at), at.of(s.a[0]),
                 static_cast<T*>(a.grad_x) + at.image * volume);
  }
  // The parameters' gradients, back in the order of the gates.
  void collect() const {
    const int k = s.taps, size = 2 * k * k;
    for (int m = 0; m < 3; ++m) {
      if (s.gate[m] < 0) continue;
      A* to = static_cast<A*>(a.grad_conv_weight) + s.gate[m] * size;
      for (int i = 0; i < size; ++i) {
        double sum = 0;
        for (int64_t t = 0; t < s.threads; ++t) sum += w.grad_taps[(t * 3 + m) * size + i];
        const int p = i / (k * k), r = i / k % k, c = i % k;
        to[s.turned[m] ? (p * k + c) * k + r : i] = A(sum);
      }
      const Sums all = total(m);
      static_cast<A*>(a.grad_bn_weight)[s.gate[m]] = A(all.dv_uhat);
      static_cast<A*>(a.grad_bn_bias)[s.gate[m]] = A(all.dv);
    }
  }
};

template <class T>
void backward(const TripletBackward& a) {
  using A = Acc<T>;
  const Steps<T> steps{a};
  const TripletShape& s = a.shape;
  for (int m = 0; m < 3; ++m) {
    if (s.gate[m] < 0) continue;
    arrange_taps(s, static_cast<const A*>(a.conv_weight), m, false, steps.w.taps[m]);
    arrange_taps(s, static_cast<const A*>(a.conv_weight), m, true, steps.w.flipped[m]);
  }
  for (int64_t i = 0; i < s.n * 3 * s.threads; ++i) steps.w.sums[i] = {0, 0};
  for (int64_t i = 0; i < int64_t(s.threads) * 6 * s.taps * s.taps; ++i) steps.w.grad_taps[i] = 0;

#pragma omp parallel num_threads(s.threads)
  {
    for_each_image(s.n, [&](const Place& at) {
      if (at.active) steps.unpack_planes(at);
      if (at.active) steps.dot_image(at);
      at.wait();
      if (at.active) steps.gate_gradients(at);
    });
#pragma omp barrier
    Sums totals[3];
    for (int m = 0; m < 3; ++m) totals[m] = steps.total(m);
    for_each_image(s.n, [&](const Place& at) {
      if (at.active) steps.unpack_planes(at);
      if (at.active) steps.norm_gradients(at, totals);
      at.wait();
      if (at.active) steps.plane_gradients(at);
      at.wait();
      if (at.active) steps.spread_image(at);
    });
  }
  steps.collect();
}

template <class T>
int64_t scratch(const TripletShape& s, bool /*backward*/) {
  return lay_out<Acc<T>>(s, nullptr).bytes;
}

}  // namespace
}  // namespace triplet

void triplet_backward(int dtype, const TripletBackward& a){
    MEDSEG_DISPATCH(triplet_backward, triplet::backward, dtype, a)}

int64_t triplet_backward_scratch(int dtype, const TripletShape& s) {
  MEDSEG_DISPATCH(triplet_scratch, triplet::scratch, dtype, s, true)
}

}  // namespace MEDSEG_ISA
}  // namespace medseg
