// Triplet attention, forward: out = x * (G0[a1,a2] + G1[a0,a2] + G2[a0,a1]), with
// G_m = sigmoid(bn(conv(max, mean of x over axis m))) / gates.
//
// x is read once for all six pooled planes and once more for the product, image by image, so that
// the second read finds it in the last-level cache; no permuted copy ever exists.
#include "triplet_planes.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace triplet {
namespace {

// AVX-512 has registers for 8 rows of running maxima and sums, and half of that with indices.
constexpr int kRows = kBytes == 64 ? 8 : 4;

// The pooled planes of one image in flight: maximum, and sum (later mean) one plane behind it.
template <class A>
struct Pooled {
  using I = typename Lanes<A>::integer;
  Plane plane[3];  // padded
  A* origin[3];
  Plane flat[3];  // unpadded: gates and indices
  I* index[3];
  A* strips;  // plane 1 of each thread that is not its image's first: maximum, sum, index
};

template <class A>
Pooled<A> take_pooled(const TripletShape& s, Arena& arena, bool keep) {
  Pooled<A> q;
  for (int m = 0; m < 3; ++m) {
    q.plane[m] = Plane::of<A>(s, m, true);
    q.flat[m] = Plane::of<A>(s, m, false);
    q.origin[m] = arena.take<A>(2 * q.plane[m].size(), q.plane[m].origin());
    q.index[m] = keep ? arena.take<typename Lanes<A>::integer>(q.flat[m].size()) : nullptr;
  }
  q.strips = nullptr;
  return q;
}

// Where a thread gathers plane 1: the plane itself, or its own partial one.
template <class A>
struct Strip {
  A *maximum, *sum;
  typename Lanes<A>::integer* index;
  int64_t ld;
};

template <class A>
MEDSEG_INLINE Strip<A> strip_of(const Pooled<A>& q, const Place& at, int64_t part) {
  if (part == 0) return {q.origin[1], q.origin[1] + q.plane[1].size(), q.index[1], q.plane[1].ld};
  const int64_t size = q.flat[1].size();
  A* base = q.strips + (at.slot * at.parts + part) * 3 * size;
  return {base, base + size, reinterpret_cast<typename Lanes<A>::integer*>(base + 2 * size),
          q.flat[1].ld};
}

// R rows a1.. of channel-like index a0, pooled along all three axes.
template <class T, bool kIndex, int R>
MEDSEG_INLINE void pool_rows(const TripletShape& s, const T* x, const Pooled<Acc<T>>& q,
                             const Strip<Acc<T>>& strip, int64_t a0, int64_t a1, bool first) {
  using A = Acc<T>;
  using I = typename Lanes<A>::integer;
  constexpr int64_t L = Lanes<A>::count;
  Vec<A> row_max[R], row_sum[R];
  IVec<A> row_at[R];
  for (int r = 0; r < R; ++r) {
    row_max[r] = fill(lowest<A>());
    row_sum[r] = Vec<A>{};
    row_at[r] = IVec<A>{};
  }
  A* max0 = q.origin[0] + a1 * q.plane[0].ld;
  A* sum0 = max0 + q.plane[0].size();
  I* at0 = kIndex ? q.index[0] + a1 * q.flat[0].ld : nullptr;
  A* max1 = strip.maximum + a0 * strip.ld;
  A* sum1 = strip.sum + a0 * strip.ld;
  I* at1 = kIndex ? strip.index + a0 * q.flat[1].ld : nullptr;

  const auto column = [&](int64_t j, auto fetch) {
    Vec<A> best = first ? fill(lowest<A>()) : read<Vec<A>>(max1 + j);
    Vec<A> total{};
    IVec<A> at{};
    if (kIndex) at = first ? ifill<A>(a1) : read<IVec<A>>(at1 + j);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<A> v = fetch(x + r * s.stride_1 + j);
      const int64_t o = r * q.plane[0].ld + j;
      const Vec<A> before = read<Vec<A>>(max0 + o);
      if (kIndex) {
        I* p = at0 + r * q.flat[0].ld + j;
        write(p, v > before ? ifill<A>(a0) : read<IVec<A>>(p));
        at = v > best ? ifill<A>(a1 + r) : at;
        row_at[r] = v > row_max[r] ? ifill<A>(j) : row_at[r];
      }
      write(max0 + o, vmax(v, before));
      write(sum0 + o, read<Vec<A>>(sum0 + o) + v);
      best = vmax(v, best);
      total += v;
      row_max[r] = vmax(v, row_max[r]);
      row_sum[r] += v;
    }
    write(max1 + j, best);
    write(sum1 + j, first ? total : read<Vec<A>>(sum1 + j) + total);
    if (kIndex) write(at1 + j, at);
  };

  int64_t j = 0;
  for (; j + L <= s.a[2]; j += L) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) __builtin_prefetch(x + s.stride_0 + r * s.stride_1 + j);
    column(j, [](const T* p) { return load(p); });
  }
  if (j < s.a[2]) {
    // Absent lanes must not win a maximum; their share of the sums is taken off again at the end.
    const int64_t count = s.a[2] - j;
    const IVec<A> here = lane_numbers<A>() < ifill<A>(count);
    Vec<A> kept[R];
    for (int r = 0; r < R; ++r) kept[r] = row_sum[r];
    column(j, [&](const T* p) {
      const Vec<A> v = load_part(p, count);
      return here ? v : fill(lowest<A>());
    });
    for (int r = 0; r < R; ++r) row_sum[r] = kept[r] + load_part(x + r * s.stride_1 + j, count);
  }

  A* max2 = q.origin[2] + a0 * q.plane[2].ld + a1;
  A* sum2 = max2 + q.plane[2].size();
  for (int r = 0; r < R; ++r) {
    max2[r] = max_lanes<A>(row_max[r]);
    sum2[r] = sum_lanes<A>(row_sum[r]);
    if (!kIndex) continue;
    const IVec<A> at = row_at[r] + lane_numbers<A>();
    I lowest_at = static_cast<I>(s.a[2] - 1);
    bool found = false;
    for (int64_t i = 0; i < L; ++i) {
      if (row_max[r][i] == max2[r] && (!found || at[i] < lowest_at)) {
        lowest_at = at[i];
        found = true;
      }
    }
    q.index[2][a0 * q.flat[2].ld + a1 + r] = found ? lowest_at : 0;
  }
}

// What a thread without rows adds to plane 1: nothing.
template <class A>
void clear_strip(const Strip<A>& strip, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < cols; ++j) {
      strip.maximum[r * strip.ld + j] = lowest<A>();
      strip.sum[r * strip.ld + j] = 0;
      if (strip.index) strip.index[r * cols + j] = 0;
    }
  }
}

// This thread's rows a1 of one image, in blocks that stay in the first-level cache
// while all of a0 passes by.
template <class T, bool kIndex>
void pool(const TripletShape& s, const T* x, const Pooled<Acc<T>>& q, const Place& at) {
  using A = Acc<T>;
  constexpr int R = kIndex ? kRows / 2 : kRows;
  const Strip<A> strip = strip_of(q, at, at.part);
  const Range rows = at.of(s.a[1]);
  if (rows.begin == rows.end) clear_strip(strip, s.a[0], q.flat[1].ld);
  const int64_t width = round_up(s.a[2], Lanes<A>::count) * int64_t(sizeof(A));
  const int64_t block = round_up(larger(1, 8192 / width), R);
  for (int64_t begin = rows.begin; begin < rows.end; begin += block) {
    const int64_t end = smaller(begin + block, rows.end);
    for (int64_t r = begin; r < end; ++r) {
      A* line = q.origin[0] + r * q.plane[0].ld;
      for (int64_t j = 0; j < q.flat[0].ld; j += Lanes<A>::count) {
        write(line + j, fill(lowest<A>()));
        write(line + q.plane[0].size() + j, Vec<A>{});
        if (kIndex) write(q.index[0] + r * q.flat[0].ld + j, IVec<A>{});
      }
    }
    for (int64_t a0 = 0; a0 < s.a[0]; ++a0) {
      const T* base = x + a0 * s.stride_0;
      int64_t r = begin;
      for (; r + R <= end; r += R)
        pool_rows<T, kIndex, R>(s, base + r * s.stride_1, q, strip, a0, r, r == rows.begin);
      for (; r < end; ++r)
        pool_rows<T, kIndex, 1>(s, base + r * s.stride_1, q, strip, a0, r, r == rows.begin);
    }
  }
}

// Joins the strips of all parts, rows [begin, end) of plane 1; parts are in ascending a1, so the
// first maximum stays the first.
template <class A>
void join_strips(const Pooled<A>& q, const Place& at, Range rows) {
  const Strip<A> to = strip_of(q, at, 0);
  for (int64_t part = 1; part < at.parts; ++part) {
    const Strip<A> from = strip_of(q, at, part);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      for (int64_t j = 0; j < q.plane[1].cols; ++j) {
        const int64_t a = r * to.ld + j, b = r * from.ld + j;
        to.sum[a] += from.sum[b];
        if (!(from.maximum[b] > to.maximum[a])) continue;
        to.maximum[a] = from.maximum[b];
        if (to.index) to.index[r * q.flat[1].ld + j] = from.index[b];
      }
    }
  }
}

// Sums become means, margins zeros, and what backward needs is copied out.
template <class A>
void finish(const TripletForward& a, const Pooled<A>& q, const Place& at) {
  const TripletShape& s = a.shape;
  int64_t offset = at.image * (s.a[1] * s.a[2] + s.a[0] * s.a[2] + s.a[0] * s.a[1]);
  for (int m = 0; m < 3; ++m) {
    const Plane& p = q.plane[m];
    const Range rows = at.of(p.rows);
    if (m == 1) join_strips(q, at, rows);
    A* maximum = q.origin[m];
    A* mean = maximum + p.size();
    const A scale = A(1) / A(s.a[m]);
    for (int64_t r = rows.begin; r < rows.end; ++r)
      for (int64_t j = 0; j < p.cols; ++j) mean[r * p.ld + j] *= scale;
    clear_around(p, maximum, rows);
    clear_around(p, mean, rows);
    if (a.planes) {
      A* planes = static_cast<A*>(a.planes) + 2 * offset;
      for (int64_t r = rows.begin; r < rows.end; ++r) {
        for (int64_t j = 0; j < p.cols; ++j) {
          const int64_t i = r * p.cols + j;
          planes[i] = maximum[r * p.ld + j];
          planes[p.rows * p.cols + i] = mean[r * p.ld + j];
          const auto found = q.index[m][r * q.flat[m].ld + j];
          if (a.index_bytes == 2)
            static_cast<int16_t*>(a.index)[offset + i] = static_cast<int16_t>(found);
          else
            static_cast<int32_t*>(a.index)[offset + i] = static_cast<int32_t>(found);
        }
      }
    }
    offset += p.rows * p.cols;
  }
}

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

// Backward along a0, the image's newest part first; rows forward, as the prefetcher likes them.
// Three products, not x times the sum of gates: infinity * 0 must stay NaN, and they cost nothing.
template <class T>
void apply(const TripletShape& s, const T* x, Acc<T>* const gate[3], Range a0s, T* out) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  const int64_t ld0 = round_up(s.a[2], L), ld1 = ld0, ld2 = round_up(s.a[1], L);
  for (int64_t a0 = a0s.end; a0-- > a0s.begin;) {
    const A* g1 = gate[1] + a0 * ld1;
    for (int64_t a1 = 0; a1 < s.a[1]; ++a1) {
      const T* from = x + a0 * s.stride_0 + a1 * s.stride_1;
      T* to = out + (a0 * s.a[1] + a1) * s.a[2];
      const A* g0 = gate[0] + a1 * ld0;
      const A g2 = gate[2][a0 * ld2 + a1];
      int64_t j = 0;
      const auto gated = [&](int64_t j, Vec<A> v) {
        return v * read<Vec<A>>(g0 + j) + (v * read<Vec<A>>(g1 + j) + v * g2);
      };
      for (; j + L <= s.a[2]; j += L) store(to + j, gated(j, load(from + j)));
      if (j < s.a[2]) {
        const int64_t count = s.a[2] - j;
        store_part(to + j, gated(j, load_part(from + j, count)), count);
      }
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
      if (at.active) finish(a, steps.pooled(at), at);
      at.wait();
      if (at.active) steps.convolve_planes(at);
      at.wait();
      if (s.training) return;
      if (at.active) steps.activate_planes(at, running);
      at.wait();
      if (at.active) steps.apply_image(at);
      at.wait();
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

}  // namespace
}  // namespace triplet

void triplet_forward(int dtype,
                     const TripletForward& a){MEDSEG_DISPATCH(dtype, triplet::forward, a)}

int64_t triplet_backward_scratch(int dtype, const TripletShape& s);

int64_t triplet_scratch(int dtype, const TripletShape& s, bool backward) {
  if (backward) return triplet_backward_scratch(dtype, s);
  return dtype == kFloat64 ? triplet::lay_out<double>(s, true, nullptr).bytes
                           : triplet::lay_out<float>(s, true, nullptr).bytes;
}

}  // namespace MEDSEG_ISA
}  // namespace medseg
