// What both walks of the MDE filter share: the folded stencil, the source rows, the scratch.
#pragma once
#include "team.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

// Masks are symmetric under flips and under the exchange of the axes, so the weights at (dy, dx)
// and (dx, dy) are one; `unique` is its number.
MEDSEG_INLINE constexpr int unique(int a, int b) {
  return a < b ? b * (b + 1) / 2 + a : a * (a + 1) / 2 + b;
}
MEDSEG_INLINE constexpr int uniques(int radius) { return (radius + 1) * (radius + 2) / 2; }

// Rows kept at once; a power of two.
MEDSEG_INLINE constexpr int slots(int radius) { return radius == 1 ? 4 : 8; }

template <class A>
MEDSEG_INLINE bool by_pixels(const MdeShape& s) {
  return s.channels_last && s.c >= Lanes<A>::count;
}
// Elements of one row as the walk by lines sees it, and its distance between neighbouring pixels.
MEDSEG_INLINE int64_t line_of(const MdeShape& s) { return s.channels_last ? s.w * s.c : s.w; }
MEDSEG_INLINE int64_t step_of(const MdeShape& s) { return s.channels_last ? s.c : 1; }

// Work is dealt out in bands of rows of a plane, or of an image in channels_last. Their number
// does not depend on the threads, and so neither do the bits of the sums taken over each band.
struct Bands {
  int64_t planes, each;
};
MEDSEG_INLINE Bands bands_of(const MdeShape& s) {
  const int64_t planes = s.channels_last ? s.n : s.n * s.c;
  return {planes, larger(1, smaller((64 + planes - 1) / planes, (s.h + 7) / 8))};
}

// The parts of the scratch, in elements of A; every part begins at a multiple of 64 bytes.
template <class A>
struct Plan {
  int64_t pitch;    // a row of the source, its tail filled up
  int64_t margin;   // in front of a padded line
  int64_t padded;   // a line with room for its neighbours on both sides
  int64_t weights;  // of one number, for all channels
  int64_t thread;   // of one thread
  int64_t sums;     // doubles of one band

  explicit Plan(const MdeShape& s) {
    constexpr int64_t L = Lanes<A>::count;
    pitch = round_up(line_of(s), L) + L;
    margin = round_up(s.radius * step_of(s), L);
    padded = pitch + 2 * margin;
    weights = round_up(larger(s.c, L), L);
    // Kept rows, the row of zeros; two lines of factors, sums q of the columns of two rows, and x.
    thread = (slots(s.radius) + 1) * pitch;
    if (!by_pixels<A>(s)) thread += 2 * pitch + (2 * s.radius + 3) * padded;
    sums = uniques(s.radius) * (s.channels_last ? s.c : 1);
  }
  MEDSEG_INLINE int64_t bytes(const MdeShape& s) const {
    const Bands bands = bands_of(s);
    const int64_t elements = uniques(s.radius) * weights + s.threads * thread;
    return elements * int64_t(sizeof(A)) + bands.planes * bands.each * sums * 8;
  }
  MEDSEG_INLINE A* of_thread(const MdeCall& a, int64_t number) const {
    return static_cast<A*>(a.scratch) + uniques(a.shape.radius) * weights + number * thread;
  }
  MEDSEG_INLINE double* of_band(const MdeCall& a, int64_t number) const {
    return reinterpret_cast<double*>(of_thread(a, a.shape.threads)) + number * sums;
  }
};

// weight[u][c] = sum_j tap_j(c) * mask_j[u] in double, rounded once; where lanes outnumber the
// channels the channels repeat.
template <class A>
void fold(const MdeCall& a, int64_t pitch, A* weight) {
  const MdeShape& s = a.shape;
  const int side = s.radius + 1;
  const A* gains = static_cast<const A*>(a.gains);
  const int64_t made = s.shared ? 1 : s.c;
  for (int64_t c = 0; c < made; ++c) {
    const A* gain = gains + c * s.masks;
    for (int dx = 0; dx < side; ++dx) {
      for (int dy = 0; dy <= dx; ++dy) {
        double sum = 0;
        for (int j = 0; j < s.masks; ++j) {
          const double tap = j ? double(gain[j]) - double(gain[j - 1]) : double(gain[0]);
          sum += tap * a.quadrants[(j * side + dy) * side + dx];
        }
        weight[unique(dy, dx) * pitch + c] = A(sum);
      }
    }
  }
  for (int u = 0; u < uniques(s.radius); ++u)
    for (int64_t c = made; c < pitch; ++c) weight[u * pitch + c] = weight[u * pitch + c - made];
}

MEDSEG_INLINE int64_t mirror(int64_t i, int64_t count) {
  return i < 0 ? -i : i >= count ? 2 * (count - 1) - i : i;
}

// The adjoint of the reflecting filter A is D A D^-1, D = diag(c), where c is 1/2 for the first and
// last index of an axis and 1 elsewhere, multiplied over both axes. Rows come in times D^-1 / 4,
// which is at most 1, so that they overflow no earlier than in the forward, where two are added.
// D kCorner undoes it exactly.
constexpr int kCorner = 4;  // D^-1 in a corner
MEDSEG_INLINE bool at_edge(int64_t i, int64_t count) { return i == 0 || i == count - 1; }

// Row pointers of one plane (or image), taken from the tensor itself or, where elements must be
// widened, weighed or filled up, from rows kept in scratch: each is then brought in once.
template <class T>
struct Rows {
  using A = Acc<T>;
  const T* base;
  int64_t stride_h, stride_w, w, h, group;  // group: channels of a pixel that lie in a row
  bool reflect, weighed, kept;
  A *ring, *zeros;
  int64_t pitch, mask, next;  // next: the first row not brought in yet

  // out = row y of the source, weighed: times D^-1 / kCorner
  void bring(int64_t y, A* out) const {
    constexpr int64_t L = Lanes<A>::count;
    const T* p = base + y * stride_h;
    const int64_t line = w * group;
    const A scale = !weighed ? 1 : A(at_edge(y, h) ? 2 : 1) / kCorner;
    if (stride_w == group) {
      int64_t i = 0;
      for (; i + L <= line; i += L) write(out + i, load(p + i) * scale);
      if (i < line) write(out + i, load_part(p + i, line - i) * scale);
    } else {
      for (int64_t i = 0; i < w; ++i)
        for (int64_t c = 0; c < group; c += L) {
          const int64_t count = smaller(L, group - c);
          const T* at = p + i * stride_w + c;
          write(out + i * group + c, (count == L ? load(at) : load_part(at, count)) * scale);
        }
    }
    if (!weighed) return;
    for (int64_t i = 0; i < group; ++i) out[i] *= 2, out[line - 1 - i] *= 2;
  }
  MEDSEG_INLINE const A* row(int64_t y) const {
    if (reflect) y = mirror(y, h);
    if (y < 0 || y >= h) return zeros;
    if (kept) return ring + (y & mask) * pitch;
    if constexpr (sizeof(T) == sizeof(A)) return base + y * stride_h;
    return zeros;
  }
  // rows[k] = row y - radius + k
  MEDSEG_INLINE void around(int64_t y, int radius, const A** rows) {
    const int64_t last = smaller(y + radius, h - 1);
    if (kept) {
      if (next < y - radius) next = larger(0, y - radius);
      for (; next <= last; ++next) bring(next, ring + (next & mask) * pitch);
    }
    for (int k = 0; k <= 2 * radius; ++k) rows[k] = row(y - radius + k);
  }
};

template <class T>
MEDSEG_INLINE Rows<T> rows_of(const MdeCall& a, const Plan<Acc<T>>& plan, bool kept, int64_t n,
                              int64_t c, Acc<T>* mine) {
  const MdeShape& s = a.shape;
  const MdeStrides& t = a.source_strides;
  Rows<T> rows;
  rows.base = static_cast<const T*>(a.source) + n * t.n + c * t.c;
  rows.stride_h = t.h, rows.stride_w = t.w, rows.w = s.w, rows.h = s.h, rows.group = step_of(s);
  rows.reflect = s.reflect, rows.weighed = s.reflect && a.adjoint, rows.kept = kept;
  rows.ring = mine, rows.zeros = mine + slots(s.radius) * plan.pitch;
  rows.pitch = plan.pitch, rows.mask = slots(s.radius) - 1, rows.next = 0;
  return rows;
}

// Calls body(band, plane, begin, end) for the bands of this thread.
template <class Body>
MEDSEG_INLINE void for_each_band(const MdeShape& s, Body body) {
  const Bands bands = bands_of(s);
  const int64_t total = bands.planes * bands.each;
  const int64_t thread = thread_number(), threads = thread_count();
  for (int64_t b = total * thread / threads; b < total * (thread + 1) / threads; ++b) {
    const int64_t i = b % bands.each;
    body(b, b / bands.each, s.h * i / bands.each, s.h * (i + 1) / bands.each);
  }
}

}  // namespace
}  // namespace MEDSEG_ISA
}  // namespace medseg
