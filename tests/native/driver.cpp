// Calls every function of medseg::<isa>::kernels on buffers of exactly the size it may touch, over
// odd shapes, layouts, dtypes, kernel sizes and thread counts. Built by test_sanitizers.py with
// AddressSanitizer and UBSan, which stop it at the first access out of bounds.
//
// ThreadSanitizer is left out: it does not see the barriers of libgomp and reports every one of
// them as a race. Instead each case is compared with its run on one thread.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels.h"

namespace {

using medseg::TripletShape;
using std::vector;
const medseg::Kernels& kernels = medseg::MEDSEG_ISA::kernels;

int cases = 0, failures = 0;

// A buffer of its own, so that the sanitizer sees its first and last byte; filled with 0xff (NaN,
// or an index of -1), so that whatever is read before it was written shows.
struct Buffer {
  void* data;
  size_t bytes;
  explicit Buffer(size_t size) : data(nullptr), bytes(size) {
    if (posix_memalign(&data, 64, size ? size : 1)) std::abort();
    std::memset(data, 0xff, size);
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
};

size_t size_of(int dtype) {
  return dtype == medseg::kFloat64 ? 8 : dtype == medseg::kFloat32 ? 4 : 2;
}
size_t acc_size(int dtype) { return dtype == medseg::kFloat64 ? 8 : 4; }

float noise(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) / 8388608.f - 1.f;
}

// Values that every dtype holds exactly enough: multiples of 1/16 in [-1, 1).
void store(void* p, int dtype, int64_t i, float value) {
  value = std::floor(value * 16) / 16;
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t exponent = bits >> 23 & 0xff;
  const uint32_t half =
      (bits >> 16 & 0x8000) | (value == 0 ? 0 : (exponent - 112) << 10 | (bits >> 13 & 0x3ff));
  switch (dtype) {
    case medseg::kFloat32:
      static_cast<float*>(p)[i] = value;
      break;
    case medseg::kFloat64:
      static_cast<double*>(p)[i] = value;
      break;
    case medseg::kBFloat16:
      static_cast<uint16_t*>(p)[i] = static_cast<uint16_t>(bits >> 16);
      break;
    default:
      static_cast<uint16_t*>(p)[i] = static_cast<uint16_t>(half);
  }
}

double value_at(const void* p, int dtype, int64_t i) {
  if (dtype == medseg::kFloat32) return static_cast<const float*>(p)[i];
  if (dtype == medseg::kFloat64) return static_cast<const double*>(p)[i];
  const uint32_t h = static_cast<const uint16_t*>(p)[i];
  if (dtype == medseg::kBFloat16) {
    const uint32_t bits = h << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
  }
  const int exponent = static_cast<int>(h >> 10 & 31);
  const double mantissa = h & 0x3ff;
  double f = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  if (exponent == 31) f = mantissa > 0 ? NAN : INFINITY;
  return h & 0x8000 ? -f : f;
}

void fill(Buffer& b, int dtype, uint32_t seed) {
  const auto count = static_cast<int64_t>(b.bytes / size_of(dtype));
  for (int64_t i = 0; i < count; ++i) store(b.data, dtype, i, noise(seed));
}

// Everything a call wrote, as doubles.
void append(vector<double>& to, const Buffer& b, int dtype) {
  const auto count = static_cast<int64_t>(b.bytes / size_of(dtype));
  for (int64_t i = 0; i < count; ++i) to.push_back(value_at(b.data, dtype, i));
}

void compare(const char* what, const vector<double>& got, const vector<double>& one, int dtype) {
  ++cases;
  const double allowed = dtype == medseg::kFloat64 ? 1e-9 : dtype == medseg::kFloat32 ? 2e-3 : 6e-2;
  double largest = 1;
  for (double v : one) largest = std::fabs(v) > largest ? std::fabs(v) : largest;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::fabs(got[i] - one[i]) <= allowed * largest) continue;
    std::printf("%s: value %zu is %g, on one thread %g\n", what, i, got[i], one[i]);
    ++failures;
    return;
  }
}

struct Sizes {
  int64_t n, c, h, w;
};

int acc_of(int dtype) { return dtype == medseg::kFloat64 ? medseg::kFloat64 : medseg::kFloat32; }

// How x lies: gaps between planes and images, or one image for the whole batch (stride 0).
enum Layout { kDense, kGaps, kExpanded };

// taps 1: no bias, 3: a residual, 5: no grad_x; pool 2: with and without a gradient of the sum.
vector<double> run_eca(int dtype, Sizes z, bool last, Layout layout, int taps, int pool,
                       int threads) {
  const int64_t hw = z.h * z.w, plane = last ? 1 : hw + (layout == kGaps ? 3 : 0);
  const int64_t image = last ? z.c * hw : (z.c - 1) * plane + hw;
  const int64_t stride = layout == kExpanded ? 0 : image + (layout == kGaps ? 5 : 0);
  const medseg::EcaShape shape{z.n, z.c, hw, z.w, stride, plane, last, taps, threads, pool};
  const bool adds = taps == 3, sums = pool == 2 && taps != 1;
  medseg::EcaShape gated = shape;  // the sum, which is dense, or x
  if (adds) gated.stride_n = z.c * hw, gated.stride_c = last ? 1 : hw;
  const int64_t pitch = last ? z.c + 2 : hw + 2, step = (last ? hw : z.c) * pitch;
  const size_t acc = acc_size(dtype), volume = z.n * z.c * hw * size_of(dtype);
  const size_t pooled_volume = z.n * z.c * (z.h / pool) * (z.w / pool) * size_of(dtype);
  Buffer x(((z.n - 1) * stride + image) * size_of(dtype)), grad_out(pooled_volume);
  Buffer weight(taps * acc), bias(acc), out(pooled_volume), pooled(z.n * z.c * acc);
  Buffer gate(z.n * z.c * acc), grad_x(volume), residual(volume), summed(volume);
  Buffer grad_summed(sums ? (z.n * step - 2) * size_of(dtype) : 0);
  Buffer grad_weight(taps * acc), grad_bias(acc), scratch(kernels.eca_scratch(dtype, shape));
  uint32_t seed = 1;
  for (Buffer* b : {&x, &grad_out, &residual, &grad_summed}) fill(*b, dtype, seed++);
  for (Buffer* b : {&weight, &bias}) fill(*b, acc_of(dtype), seed++);
  kernels.eca_forward(dtype, {shape, x.data, adds ? residual.data : nullptr, weight.data,
                              taps == 1 ? nullptr : bias.data, out.data,
                              adds ? summed.data : nullptr, pooled.data, gate.data, scratch.data});
  std::memset(scratch.data, 0xff, scratch.bytes);
  kernels.eca_backward(
      dtype, {gated, adds ? summed.data : x.data, grad_out.data, sums ? grad_summed.data : nullptr,
              step, pitch, weight.data, pooled.data, gate.data, taps == 5 ? nullptr : grad_x.data,
              grad_weight.data, grad_bias.data, scratch.data});
  vector<double> found;
  append(found, out, dtype);
  if (adds) append(found, summed, dtype);
  if (taps != 5) append(found, grad_x, dtype);
  for (const Buffer* b : {&pooled, &gate, &grad_weight, &grad_bias})
    append(found, *b, acc_of(dtype));
  return found;
}

vector<double> run_triplet(int dtype, Sizes z, bool last, Layout layout, int k, int gates,
                           bool training, int index_bytes, int threads) {
  const int64_t a[3] = {last ? z.h : z.c, last ? z.w : z.h, last ? z.c : z.w};
  const int64_t row = a[2] + (layout == kGaps ? 3 : 0), slab = a[1] * row;
  const int64_t image = (a[0] - 1) * slab + (a[1] - 1) * row + a[2];
  const int64_t stride = layout == kExpanded ? 0 : image + (layout == kGaps ? 5 : 0);
  TripletShape shape{
      z.n,     {a[0], a[1], a[2]}, stride, slab, row, {2, 0, 1}, {false, false, true}, gates, k,
      threads, training,           1e-5};
  if (last)
    shape = {
        z.n,     {a[0], a[1], a[2]}, stride, slab, row, {0, 1, 2}, {true, false, false}, gates, k,
        threads, training,           1e-5};
  for (int& gate : shape.gate) gate = gate < gates ? gate : -1;
  const size_t acc = acc_size(dtype), volume = z.n * a[0] * a[1] * a[2] * size_of(dtype);
  const size_t positions = z.n * (a[1] * a[2] + a[0] * a[2] + a[0] * a[1]);
  Buffer x(((z.n - 1) * stride + image) * size_of(dtype)), grad_out(volume), out(volume);
  Buffer taps(gates * 2 * k * k * acc), gamma(gates * acc), beta(gates * acc), mean(gates * acc);
  Buffer var(gates * acc), stats(3 * gates * acc), planes(2 * positions * acc);
  Buffer index(positions * index_bytes), grad_x(volume), grad_taps(taps.bytes);
  Buffer grad_gamma(gamma.bytes), grad_beta(beta.bytes), plain(volume);
  Buffer forward(kernels.triplet_scratch(dtype, shape, false));
  Buffer backward(kernels.triplet_scratch(dtype, shape, true));
  uint32_t seed = 1;
  for (Buffer* b : {&x, &grad_out}) fill(*b, dtype, seed++);
  for (Buffer* b : {&taps, &gamma, &beta, &mean}) fill(*b, acc_of(dtype), seed++);
  for (int g = 0; g < gates; ++g) store(var.data, acc_of(dtype), g, 0.75f);
  for (bool keep : {false, true}) {
    std::memset(forward.data, 0xff, forward.bytes);
    kernels.triplet_forward(dtype,
                            {shape, x.data, taps.data, gamma.data, beta.data, mean.data, var.data,
                             keep ? out.data : plain.data, stats.data, keep ? planes.data : nullptr,
                             keep ? index.data : nullptr, index_bytes, forward.data});
  }
  kernels.triplet_backward(dtype, {shape, x.data, grad_out.data, taps.data, gamma.data, beta.data,
                                   stats.data, planes.data, index.data, index_bytes, grad_x.data,
                                   grad_taps.data, grad_gamma.data, grad_beta.data, backward.data});
  vector<double> found, other;
  append(found, out, dtype);
  append(other, plain, dtype);
  compare("triplet with and without kept planes", found, other, dtype);
  append(found, grad_x, dtype);
  for (const Buffer* b : {&stats, &planes, &grad_taps, &grad_gamma, &grad_beta})
    append(found, *b, acc_of(dtype));
  return found;
}

// Every case on one thread and on one other count, which changes from case to case.
void sweep(int dtype, const Sizes& z, bool last, Layout layout) {
  const int counts[] = {2, 3, 5, 7, 16};
  char what[160];
  const auto name = [&](const char* op, int k, int threads) {
    std::snprintf(what, sizeof what, "%s %d (%d,%d,%d,%d) last %d layout %d k %d on %d", op, dtype,
                  int(z.n), int(z.c), int(z.h), int(z.w), last, layout, k, threads);
    return what;
  };
  for (int pool : {1, 2}) {
    if (pool == 2 && (z.h == 1 || z.w == 1)) continue;
    for (int taps : {1, 3, 5, 21}) {
      const int threads = counts[cases % 5];
      const auto one = run_eca(dtype, z, last, layout, taps, pool, 1);
      compare(name(pool == 2 ? "pooled eca" : "eca", taps, threads),
              run_eca(dtype, z, last, layout, taps, pool, threads), one, dtype);
    }
  }
  for (int k : {1, 3, 5, 7, 41}) {
    if (k == 41 && (dtype != medseg::kFloat32 || layout != kDense || z.n > 1)) continue;
    const int threads = counts[cases % 5], gates = k % 4 == 1 ? 2 : 3, index_bytes = k == 3 ? 4 : 2;
    const bool training = z.n * z.h * z.w * z.c > 40 && k != 5;
    const auto run = [&](int count) {
      return run_triplet(dtype, z, last, layout, k, gates, training, index_bytes, count);
    };
    const auto one = run(1);
    compare(name("triplet", k, threads), run(threads), one, dtype);
  }
}

}  // namespace

int main() {
  const Sizes sizes[] = {{1, 1, 1, 2},  {1, 1, 9, 1},  {2, 7, 5, 19}, {1, 3, 1, 37}, {3, 2, 4, 1},
                         {5, 17, 2, 3}, {1, 33, 9, 5}, {2, 1, 13, 8}, {1, 2, 5, 70}};
  for (int dtype = 0; dtype < 4; ++dtype)
    for (const Sizes& z : sizes)
      for (bool last : {false, true}) {
        sweep(dtype, z, last, kDense);
        sweep(dtype, z, last, last ? kGaps : kExpanded);
        if (!last) sweep(dtype, z, last, kGaps);
      }
  std::printf("%s: %d comparisons, %d failures\n", kernels.isa, cases, failures);
  return failures != 0;
}
