// Working memory of one call of the CPU kernels, aligned to 64.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace medseg {

// Each thread keeps a moderate one for its next call.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    const size_t wanted = static_cast<size_t>(bytes) + 64;
    if (kept_bytes < wanted) {
      kept.reset(), kept_bytes = 0;
      kept.reset(new char[wanted]);
      kept_bytes = wanted;
    }
  }
  ~Scratch() {
    if (kept_bytes > kMost) kept.reset(), kept_bytes = 0;
  }
  operator void*() const {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(kept.get()) + 63) & ~63ull);
  }

 private:
  static constexpr size_t kMost = size_t{16} << 20;
  static inline thread_local std::unique_ptr<char[]> kept;
  static inline thread_local size_t kept_bytes = 0;
};

}  // namespace medseg
