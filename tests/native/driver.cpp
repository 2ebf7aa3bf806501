// Calls every function of medseg::<isa>::kernels on buffers of exactly the size it may touch, over
// odd shapes, layouts, dtypes, kernel sizes and thread counts, and compares each run with one on a
// single thread. Built by test_sanitizers.py under AddressSanitizer and UBSan, and under
// ThreadSanitizer with openmp.cpp in the place of libgomp.
//
// usage: driver ISA [OP]
#include "driver.h"

#include <cmath>
#include <cstdio>

using std::vector;

const medseg::Kernels* kernels = nullptr;

namespace {

struct Op {
  const char* name;
  void (*cases)(const Case&);
};
const Op kOps[] = {{"eca", eca_cases},
                   {"gate", gate_cases},
                   {"mde", mde_cases},
                   {"triplet", triplet_cases},
                   {"split", split_cases}};

int comparisons = 0, failures = 0;

float noise(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) / 8388608.f - 1.f;
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

const medseg::Kernels* kernels_of(const char* isa) {
#if defined(__x86_64__)
  if (!std::strcmp(isa, "avx512")) return &medseg::avx512::kernels;
  if (!std::strcmp(isa, "avx2")) return &medseg::avx2::kernels;
#endif
  return std::strcmp(isa, "baseline") ? nullptr : &medseg::baseline::kernels;
}

void sweep(const Op& op) {
  const Sizes sizes[] = {{1, 1, 1, 2},  {1, 1, 9, 1},  {2, 7, 5, 19}, {1, 3, 1, 37}, {3, 2, 4, 1},
                         {5, 17, 2, 3}, {1, 33, 9, 5}, {2, 1, 13, 8}, {1, 2, 5, 70}};
  for (int dtype = 0; dtype < 4; ++dtype)
    for (const Sizes& z : sizes)
      for (bool last : {false, true}) {
        op.cases({dtype, z, last, kDense});
        op.cases({dtype, z, last, last ? kGaps : kExpanded});
        if (!last) op.cases({dtype, z, last, kGaps});
      }
}

}  // namespace

size_t size_of(int dtype) {
  return dtype == medseg::kFloat64 ? 8 : dtype == medseg::kFloat32 ? 4 : 2;
}
int acc_of(int dtype) { return dtype == medseg::kFloat64 ? medseg::kFloat64 : medseg::kFloat32; }
size_t acc_size(int dtype) { return size_of(acc_of(dtype)); }

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

void fill(Buffer& b, int dtype, uint32_t seed) {
  const auto count = static_cast<int64_t>(b.bytes / size_of(dtype));
  for (int64_t i = 0; i < count; ++i) store(b.data, dtype, i, noise(seed));
}

void append(vector<double>& to, const Buffer& b, int dtype) {
  const auto count = static_cast<int64_t>(b.bytes / size_of(dtype));
  for (int64_t i = 0; i < count; ++i) to.push_back(value_at(b.data, dtype, i));
}

void compare(const char* what, const vector<double>& got, const vector<double>& expected,
             int dtype) {
  ++comparisons;
  const double allowed = dtype == medseg::kFloat64 ? 1e-9 : dtype == medseg::kFloat32 ? 2e-3 : 6e-2;
  double largest = 1;
  for (double v : expected) largest = std::fabs(v) > largest ? std::fabs(v) : largest;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::fabs(got[i] - expected[i]) <= allowed * largest) continue;
    std::printf("%s: value %zu is %g, expected %g\n", what, i, got[i], expected[i]);
    ++failures;
    return;
  }
}

int next_threads() {
  const int counts[] = {2, 3, 5, 7, 16};
  return counts[comparisons % 5];
}

const char* name_of(const Case& at, const char* op, int option, int threads) {
  static char name[160];
  std::snprintf(name, sizeof name, "%s %d (%d,%d,%d,%d) last %d layout %d option %d on %d", op,
                at.dtype, int(at.size.n), int(at.size.c), int(at.size.h), int(at.size.w),
                at.channels_last, at.layout, option, threads);
  return name;
}

int main(int argc, char** argv) {
  kernels = argc > 1 ? kernels_of(argv[1]) : nullptr;
  if (!kernels) {
    std::printf("usage: driver ISA [OP]\n");
    return 2;
  }
  for (const Op& op : kOps)
    if (argc < 3 || !std::strcmp(argv[2], op.name)) sweep(op);
  std::printf("%s: %d comparisons, %d failures\n", kernels->isa, comparisons, failures);
  return failures || !comparisons;
}
