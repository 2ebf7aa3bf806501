// The attention gate's middle under the sanitizers: both gradients, and either of them missing.
#include "driver.h"

using std::vector;

namespace {

// option 0: both gradients, 1: of the sum alone, 2: of the product alone.
vector<double> run_gate(const Case& at, int option, int threads) {
  const auto [dtype, z, last, layout] = at;
  const int64_t count = z.n * z.c * z.h * z.w;
  const size_t volume = count * size_of(dtype);
  Buffer a(volume), b(volume), c(volume), total(volume), product(volume);
  Buffer grad_total(volume), grad_product(volume), grad_a(volume), grad_b(volume), grad_c(volume);
  uint32_t seed = 1;
  for (Buffer* x : {&a, &b, &c, &grad_total, &grad_product}) fill(*x, dtype, seed++);
  kernels->gate_forward(dtype, {count, threads, a.data, b.data, c.data, total.data, product.data});
  kernels->gate_backward(dtype, {count, threads, option == 2 ? nullptr : grad_total.data,
                                 option == 1 ? nullptr : grad_product.data, a.data, b.data, c.data,
                                 grad_a.data, grad_b.data, grad_c.data});
  vector<double> found;
  for (const Buffer* x : {&total, &product, &grad_a, &grad_b, &grad_c}) append(found, *x, dtype);
  return found;
}

}  // namespace

void gate_cases(const Case& at) {
  if (at.channels_last || at.layout != kDense) return;  // flat memory is all it sees
  for (int option : {0, 1, 2})
    agree(at, "gate", option, [&](int threads) { return run_gate(at, option, threads); });
}
