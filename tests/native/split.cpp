// Split attention of every radix, with and without groups, biases and a batch norm in front.
#include "driver.h"

using std::vector;

namespace {}  // namespace

void split_cases(const Case& at) {
  for (int radix : {1, 2, 3, 4})
    for (bool training : {false, true}) {
      if (training && at.size.n < 3) continue;  // one or two images have no variance worth a name
      agree(at, training ? "training split" : "split", radix,
            [&](int threads) { return run_split(at, radix, training, threads); });
    }
}
