// How the threads of one call share the images of a batch.
#pragma once
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "simd.h"

namespace medseg {
namespace MEDSEG_ISA {

#if defined(_OPENMP)
MEDSEG_INLINE int64_t thread_number() { return omp_get_thread_num(); }
MEDSEG_INLINE int64_t thread_count() { return omp_get_num_threads(); }
#else
MEDSEG_INLINE int64_t thread_number() { return 0; }
MEDSEG_INLINE int64_t thread_count() { return 1; }
#endif

struct Range {
  int64_t begin, end;
};

// One thread's place: image `image`, which `parts` threads share, this one being number `part`;
// `slot` numbers the images in flight.
struct Place {
  bool active;
  int64_t image, slot, part, parts;

  MEDSEG_INLINE Range of(int64_t count) const {
    return {count * part / parts, count * (part + 1) / parts};
  }
  // Only threads that share an image have to wait for each other.
  MEDSEG_INLINE void wait() const {
    if (parts > 1) {
#pragma omp barrier
    }
  }
};

// Calls body(place) for one group of images after another: as many images at once as there are
// threads, and where images are fewer, several threads an image. Threads without work still call
// it, inactive, to meet the barriers. To be called by every thread of a parallel region. Only the
// last group can have several threads an image, so a body ends without a barrier of its own.
template <class Body>
MEDSEG_INLINE void for_each_image(int64_t images, Body body) {
  const int64_t thread = thread_number(), threads = thread_count();
  for (int64_t base = 0; base < images;) {
    const int64_t group = smaller(images - base, threads), parts = threads / group;
    const int64_t slot = thread / parts;
    if (parts > 1 && base > 0) {  // a slot may still be in use by the thread that had it alone
#pragma omp barrier
    }
    body(Place{slot < group, base + slot, slot, thread % parts, parts});
    base += group;
  }
}

}  // namespace MEDSEG_ISA
}  // namespace medseg
