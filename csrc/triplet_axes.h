// Which gate each pooled plane of triplet attention feeds, for both layouts and both modules.
#pragma once

namespace medseg {

// Fills in `gate` and `turned` of a shape whose memory axes are (c, h, w), or (h, w, c) with
// channels_last. Gate 0 pools over h, 1 over w, 2 over c; planes h x c and c x w are meant.
template <class Shape>
void set_gates(Shape* shape, bool channels_last) {
  const int order[2][3] = {{2, 0, 1}, {0, 1, 2}};
  for (int m = 0; m < 3; ++m) {
    const int gate = order[channels_last][m];
    shape->gate[m] = gate < shape->gates ? gate : -1;
    shape->turned[m] = m == (channels_last ? 0 : 2);
  }
}

}  // namespace medseg
