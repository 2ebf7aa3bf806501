// What the cases of every op share: buffers of exact size, values, and the comparison of a run on
// many threads with one on a single thread.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels.h"

struct Sizes {
  int64_t n, c, h, w;
};

// How x lies: gaps between planes and images, or one image for the whole batch (stride 0).
enum Layout { kDense, kGaps, kExpanded };

struct Case {
  int dtype;
  Sizes size;
  bool channels_last;
  Layout layout;
};

// The functions under test, of the instruction set that the command line named.
extern const medseg::Kernels* kernels;

// One function per op, in <op>.cpp; driver.cpp lists them and calls each with every case.
void eca_cases(const Case& at);
void mde_cases(const Case& at);
void gate_cases(const Case& at);
void triplet_cases(const Case& at);
void split_cases(const Case& at);

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

size_t size_of(int dtype);
int acc_of(int dtype);
size_t acc_size(int dtype);

// Values that every dtype holds exactly enough: multiples of 1/16 in [-1, 1).
void fill(Buffer& b, int dtype, uint32_t seed);
void store(void* p, int dtype, int64_t i, float value);

// Everything a call wrote, as doubles.
void append(std::vector<double>& to, const Buffer& b, int dtype);

void compare(const char* what, const std::vector<double>& got, const std::vector<double>& expected,
             int dtype);

// The next thread count, which changes from comparison to comparison.
int next_threads();
// "op dtype (n,c,h,w) ... on threads", for compare.
const char* name_of(const Case& at, const char* op, int option, int threads);

// Compares run(threads) with run(1); `option` is what the op varies besides, for the message.
template <class Run>
void agree(const Case& at, const char* op, int option, Run run) {
  const int threads = next_threads();
  const std::vector<double> one = run(1);
  compare(name_of(at, op, option, threads), run(threads), one, at.dtype);
}
