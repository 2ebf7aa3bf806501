// Triplet attention by parts, for gates that are made elsewhere: the pools and the application,
// with the gradients of both. The passes over the map are those of the whole; planes come and go
// dense, and lie in scratch with rows of whole vectors.
#include "triplet_passes.h"
#include "triplet_pool.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace triplet {
namespace {

// Flat planes of one image in flight.
template <class A>
struct Maps {
  Plane flat[3];
  A *gate[3], *sums[3];  // gate is divided by the number of gates
};

template <class A>
struct Work {
  A* strips;
  Arena slots;
  int64_t slot_bytes, bytes;
};

template <class A>
Maps<A> take_maps(const TripletShape& s, Arena& arena) {
  Maps<A> m;
  for (int i = 0; i < 3; ++i) {
    m.flat[i] = Plane::of<A>(s, i, false);
    m.gate[i] = arena.take<A>(m.flat[i].size());
    m.sums[i] = arena.take<A>(m.flat[i].size());
  }
  return m;
}

template <class A>
Flight<A> take_shares(const TripletShape& s, Arena& arena) {
  Flight<A> f{};
  for (int m = 0; m < 3; ++m) {
    f.flat[m] = Plane::of<A>(s, m, false);
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
  w.strips = arena.take<A>(s.threads * 3 * Plane::of<A>(s, 1, false).size());
  w.slots = arena;
  w.slot_bytes = 0;
  for (int part = 0; part < 3; ++part) {
    Arena one{nullptr, 0};
    if (part == 0) take_pooled<A>(s, one, true);
    if (part == 1) take_maps<A>(s, one);
    if (part == 2) take_shares<A>(s, one);
    w.slot_bytes = larger(w.slot_bytes, one.used);
  }
  w.bytes = arena.used + w.slot_bytes * smaller(s.n, s.threads);
  return w;
}

// to[r, j] = from[r, j] * factor, from a dense plane.
template <class A>
void spread_out(const Plane& flat, const A* from, A factor, Range rows, A* to) {
  for (int64_t r = rows.begin; r < rows.end; ++r)
    for (int64_t j = 0; j < flat.cols; ++j)
      to[r * flat.ld + j] = from ? from[r * flat.cols + j] * factor : A(0);
}

// The steps of one image; every step needs what all threads of the image did in the one before.
template <class T>
struct Parts {
  using A = Acc<T>;
  const TripletPart& a;
  const TripletShape& s = a.shape;
  const Work<A> w = lay_out<A>(s, a.scratch);
  const A share = A(1) / A(s.gates);
  const int64_t volume = s.a[0] * s.a[1] * s.a[2];

  Arena slot(const Place& at) const {
    return Arena{w.slots.base, w.slots.used + at.slot * w.slot_bytes};
  }
  Pooled<A> pooled(const Place& at) const {
    Arena arena = slot(at);
    Pooled<A> q = take_pooled<A>(s, arena, true);
    q.strips = w.strips;
    return q;
  }
  Maps<A> maps(const Place& at) const {
    Arena arena = slot(at);
    return take_maps<A>(s, arena);
  }
  Flight<A> shares(const Place& at) const {
    Arena arena = slot(at);
    return take_shares<A>(s, arena);
  }
  const T* image(const Place& at) const {
    return static_cast<const T*>(a.x) + at.image * s.stride_n;
  }
  T* mapped(const Place& at) const { return static_cast<T*>(a.mapped) + at.image * volume; }
  A* plane(void* planes, int m, const Place& at) const {
    return static_cast<A*>(planes) + kept_offset(s, m, at.image);
  }

  void load_gates(const Place& at) const {
    const Maps<A> k = maps(at);
    for (int m = 0; m < 3; ++m) {
      const A* from = s.gate[m] < 0 ? nullptr : plane(a.gates, m, at);
      spread_out(k.flat[m], from, share, at.of(k.flat[m].rows), k.gate[m]);
    }
  }
  void load_shares(const Place& at) const {
    const Flight<A> f = shares(at);
    for (int m = 0; m < 3; ++m) {
      const Range rows = at.of(f.flat[m].rows);
      const bool gated = s.gate[m] >= 0;
      const A* maxima = plane(a.planes, m, at);
      const A* means = maxima + kept_positions(s);
      spread_out(f.flat[m], gated ? maxima : nullptr, A(1), rows, f.at_max[m]);
      spread_out(f.flat[m], gated ? means : nullptr, A(1) / A(s.a[m]), rows, f.at_all[m]);
      const int64_t first = kept_offset(s, m, at.image) * a.index_bytes;
      unpack_index(f.flat[m], static_cast<const char*>(a.index) + first, a.index_bytes, rows,
                   f.index[m]);
    }
  }
  A* strip(const Place& at, int64_t part, const Maps<A>& k) const {
    const int64_t thread = at.slot * at.parts + part;
    return part ? w.strips + thread * k.flat[1].size() : k.sums[1];
  }
  // Sums of grad_out * x, and grad_x while grad_out is in the cache.
  void dot_image(const Place& at) const {
    const Maps<A> k = maps(at);
    const T* dy = static_cast<const T*>(a.grad_out) + at.image * volume;
    T* dx = mapped(at);
    dot(s, image(at), dy, k.sums, strip(at, at.part, k), at.of(s.a[1]),
        [&](int64_t a0, Range rows) {
          apply_rows(s, dy + a0 * s.a[1] * s.a[2], s.a[2], k.gate, a0, rows, dx);
        });
  }
  void store_sums(const Place& at) const {
    const Maps<A> k = maps(at);
    for (int m = 0; m < 3; ++m) {
      const Plane& flat = k.flat[m];
      const Range rows = at.of(flat.rows);
      A* to = plane(a.grad_gates, m, at);
      for (int64_t r = rows.begin; r < rows.end; ++r)
        for (int64_t j = 0; j < flat.cols; ++j) {
          A sum = k.sums[m][r * flat.ld + j];
          for (int64_t part = 1; m == 1 && part < at.parts; ++part)
            sum += strip(at, part, k)[r * flat.ld + j];
          to[r * flat.cols + j] = s.gate[m] < 0 ? A(0) : sum * share;
        }
    }
  }
};

// Calls the steps on every image in turn, its threads waiting for each other in between.
template <class T, class... Step>
void each_image(const TripletPart& a, Step... steps) {
  const Parts<T> parts{a};
#pragma omp parallel num_threads(a.shape.threads)
  for_each_image(a.shape.n, [&](const Place& at) {
    bool later = false;
    const auto run = [&](auto step) {
      if (later) at.wait();
      later = true;
      if (at.active) step(parts, at);
    };
    (run(steps), ...);
  });
}

template <class T>
void pools(const TripletPart& a) {
  const Keep keep{a.planes, a.index, a.index_bytes};
  each_image<T>(
      a,
      [](const auto& parts, const Place& at) {
        pool<T, true>(parts.s, parts.image(at), parts.pooled(at), at);
      },
      [&](const auto& parts, const Place& at) { finish(parts.s, keep, parts.pooled(at), at); });
}

template <class T>
void pools_back(const TripletPart& a) {
  each_image<T>(
      a, [](const auto& parts, const Place& at) { parts.load_shares(at); },
      [](const auto& parts, const Place& at) {
        const T* none = nullptr;
        spread<false>(parts.s, none, nullptr, parts.shares(at), at.of(parts.s.a[0]),
                      parts.mapped(at));
      });
}

template <class T>
void gated(const TripletPart& a) {
  each_image<T>(
      a, [](const auto& parts, const Place& at) { parts.load_gates(at); },
      [](const auto& parts, const Place& at) {
        apply(parts.s, parts.image(at), parts.maps(at).gate, at.of(parts.s.a[0]), parts.mapped(at));
      });
}

template <class T>
void gated_back(const TripletPart& a) {
  each_image<T>(
      a, [](const auto& parts, const Place& at) { parts.load_gates(at); },
      [](const auto& parts, const Place& at) { parts.dot_image(at); },
      [](const auto& parts, const Place& at) { parts.store_sums(at); });
}

template <class T>
int64_t scratch(const TripletShape& s) {
  return lay_out<Acc<T>>(s, nullptr).bytes;
}

}  // namespace
}  // namespace triplet

void triplet_pool(int dtype, const TripletPart& a) {
  MEDSEG_DISPATCH(triplet_pool, triplet::pools, dtype, a)
}

void triplet_pool_backward(int dtype, const TripletPart& a) {
  MEDSEG_DISPATCH(triplet_pool_backward, triplet::pools_back, dtype, a)
}

void triplet_apply(int dtype, const TripletPart& a) {
  MEDSEG_DISPATCH(triplet_apply, triplet::gated, dtype, a)
}

void triplet_apply_backward(int dtype, const TripletPart& a){
    MEDSEG_DISPATCH(triplet_apply_backward, triplet::gated_back, dtype, a)}

int64_t triplet_part_scratch(int dtype, const TripletShape& s) {
  MEDSEG_DISPATCH(triplet_part_scratch, triplet::scratch, dtype, s)
}

}  // namespace MEDSEG_ISA
}  // namespace medseg
