// Pages of large results, kept when they are freed and handed out again: the kernel of the system
// zeroes every fresh page when it is first touched, which costs as much as writing a map does.
#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace medseg {

// Blocks are kept up to a limit of bytes in all, the oldest leave first. A lock that is taken is
// not waited for (a fork may have copied it taken): the call then goes past what is kept.
class Pages {
 public:
  struct Block {
    void* at;
    size_t bytes;
  };

  // At least `bytes`, aligned to a page, of any content; {nullptr, 0}: there is no memory.
  Block take(size_t bytes) {
    bytes = rounded(bytes);
    if (std::unique_lock lock(mutex_, std::try_to_lock); lock) {
      int best = -1;
      for (int i = 0; i < static_cast<int>(kept_.size()); ++i) {
        const size_t found = kept_[i].bytes;
        if (found >= bytes && found <= bytes + bytes / 4 &&
            (best < 0 || found <= kept_[best].bytes))
          best = i;
      }
      if (best >= 0) {
        const Block block = kept_[best];
        kept_.erase(kept_.begin() + best);
        held_ -= block.bytes;
        return block;
      }
    }
    return fresh(bytes);
  }

  void give(Block block) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || block.bytes > limit_) return release(block);
    while (held_ + block.bytes > limit_) drop_oldest();
    kept_.push_back(block);
    held_ += block.bytes;
  }

  void set_limit(size_t bytes) {
    std::unique_lock lock(mutex_);
    limit_ = bytes;
    while (held_ > limit_) drop_oldest();
  }

  size_t limit() const { return limit_; }
  size_t held() const { return held_; }

 private:
  static constexpr size_t kHuge = size_t{2} << 20, kGranule = size_t{64} << 10;

  static size_t rounded(size_t bytes) {
    const size_t unit = bytes < kHuge ? kGranule : kHuge;
    return (bytes + unit - 1) / unit * unit;
  }

  void drop_oldest() {
    held_ -= kept_.front().bytes;
    release(kept_.front());
    kept_.erase(kept_.begin());
  }

#if defined(__linux__)
  static Block fresh(size_t bytes) {
    const size_t slack = bytes < kHuge ? 0 : kHuge;
    void* found = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
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
