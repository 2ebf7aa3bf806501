// Pages of large results, kept when they are freed and handed out again: the kernel of the system
// zeroes every fresh page when it is first touched, which costs as much as writing a map does.
#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace medseg {

struct Block {
  void* at;
  size_t bytes;
};

// Blocks are kept up to a limit of bytes in all; the oldest leave first, the newest come first.
// There is one for the process, which is never destroyed: tensors may outlive everything else.
class Pages {
 public:
  static Pages& all() {
    static Pages* only = new Pages;
    return *only;
  }

  // At least `bytes`, aligned to a page, of any content; {nullptr, 0}: there is no memory.
  Block take(size_t bytes) {
    bytes = (bytes + kGranule - 1) / kGranule * kGranule;
    {
      const std::lock_guard lock(mutex_);
      size_t best = kept_.size();
      for (size_t i = 0; i < kept_.size(); ++i) {
        const size_t found = kept_[i].bytes;
        if (found >= bytes && found <= bytes + bytes / 4 &&
            (best == kept_.size() || found <= kept_[best].bytes))
          best = i;
      }
      if (best < kept_.size()) {
        const Block block = kept_[best];
        kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(best));
        held_ -= block.bytes;
        return block;
      }
    }
    Block block = fresh(bytes);
    if (!block.at) {  // what is kept may be what is missing
      const std::lock_guard lock(mutex_);
      shrink(0);
      block = fresh(bytes);
    }
    return block;
  }

  void give(Block block) noexcept {
    const std::lock_guard lock(mutex_);
    if (block.bytes > limit_ || kept_.size() == kMost) return release(block);
    shrink(limit_ - block.bytes);
    kept_.push_back(block);  // never grows: kMost of them were reserved
    held_ += block.bytes;
  }

  void set_limit(size_t bytes) {
    const std::lock_guard lock(mutex_);
    limit_ = bytes;
    shrink(bytes);
  }

  // Bytes that are kept and in no use.
  size_t held() {
    const std::lock_guard lock(mutex_);
    return held_;
  }

 private:
  static constexpr size_t kHuge = size_t{2} << 20, kGranule = size_t{64} << 10, kMost = 4096;

  // A fork while another thread holds the lock would leave the child with one nobody gives back.
  Pages() {
    kept_.reserve(kMost);
#if defined(__linux__)
    pthread_atfork([] { all().mutex_.lock(); }, [] { all().mutex_.unlock(); },
                   [] { all().mutex_.unlock(); });
#endif
  }

  void shrink(size_t bytes) {
    while (held_ > bytes) {
      held_ -= kept_.front().bytes;
      release(kept_.front());
      kept_.erase(kept_.begin());
    }
  }

#if defined(__linux__)
  static Block fresh(size_t bytes) {
    const size_t slack = bytes < kHuge ? 0 : kHuge;
    void* found =
        mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) return {nullptr, 0};
    if (!slack) return {found, bytes};
    const uintptr_t start = reinterpret_cast<uintptr_t>(found);
    const uintptr_t aligned = (start + kHuge - 1) / kHuge * kHuge;
    if (aligned > start) munmap(found, aligned - start);
    if (start + slack > aligned)
      munmap(reinterpret_cast<void*>(aligned + bytes), start + slack - aligned);
    void* at = reinterpret_cast<void*>(aligned);
    madvise(at, bytes, MADV_HUGEPAGE);  // a hint: a machine without huge pages ignores it
    return {at, bytes};
  }
  static void release(Block block) { munmap(block.at, block.bytes); }
#else
  static Block fresh(size_t) { return {nullptr, 0}; }
  static void release(Block) {}
#endif

  std::mutex mutex_;
  std::vector<Block> kept_;  // oldest first
  size_t held_ = 0, limit_ = 0;
};

}  // namespace medseg
