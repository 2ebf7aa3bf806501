// Runs CUDA kernels on one CPU thread: a fiber per thread of a block, block after block.
//
// What it proves beyond the numbers:
//  - a barrier or shuffle that not all threads of the block or warp reach throws, with the reason;
//  - shared memory is fresh and full of NaN in every block, so nothing unwritten is read unseen;
//  - threads can run in two orders (and blocks forwards or backwards): results that differ between
//    them betray a missing barrier or a race between blocks;
//  - limits of grids, blocks and shared memory, and the alignment of vector accesses, are checked.
#include <algorithm>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"

#if EMULATOR_ASSEMBLY
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");
#endif

namespace emulator {
namespace {

constexpr int kWarpSize = 32;
constexpr size_t kSharedLimit = 48 * 1024;

struct Thread {
  Fiber fiber;
  dim3 index;
  Wait waits = kReady;
  int detail = 0;         // which shuffle
  int parity = 0;         // two sets of slots: the next shuffle may start before all have read
  uint64_t slot[2] = {};  // this lane's value
};

struct Shared {
  const void* tag;
  std::unique_ptr<char[]> memory;
};

std::vector<std::unique_ptr<Thread>> threads;
std::vector<Shared> shared;
std::unique_ptr<char[]> dynamic;
size_t shared_bytes = 0;
int running = 0, size = 0;
bool shuffled = false;
long launches = 0;
std::string failure;

// Exactly as many bytes as asked for, so that a sanitizer sees the end; 0xff is NaN in any float.
std::unique_ptr<char[]> poisoned(size_t bytes) {
  shared_bytes += bytes;
  if (shared_bytes > kSharedLimit) fail("more than 48 KiB of shared memory in a block");
  std::unique_ptr<char[]> memory(new char[bytes]);
  std::memset(memory.get(), 0xff, bytes);
  return memory;
}

// 0 .. count - 1, ascending or in a fixed shuffle.
std::vector<int> shuffled_order(int count) {
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  uint32_t state = 12345;
  for (int i = count - 1; shuffled && i > 0; --i) {
    state = state * 1664525u + 1013904223u;
    std::swap(order[i], order[(state >> 8) % (i + 1)]);
  }
  return order;
}

// Lets the lanes of a warp pass that all wait at the same shuffle.
void release_warp(int first) {
  const Thread& leader = *threads[first];
  const int last = std::min(first + kWarpSize, size);
  bool together = leader.waits == kShuffle || leader.waits == kWarp;
  for (int i = first; i < last && together; ++i)
    together = threads[i]->waits == leader.waits && threads[i]->detail == leader.detail;
  for (int i = first; i < last && together; ++i) threads[i]->waits = kReady;
}

bool release_block() {
  for (int i = 0; i < size; ++i)
    if (threads[i]->waits != kBlock) return false;
  for (int i = 0; i < size; ++i) threads[i]->waits = kReady;
  return true;
}

[[noreturn]] void stuck() {
  int count[kDone + 1] = {};
  for (int i = 0; i < size; ++i) ++count[threads[i]->waits];
  throw std::runtime_error(
      "emulated block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) +
      ") hangs: " + std::to_string(count[kBlock]) + " threads at a block barrier, " +
      std::to_string(count[kShuffle] + count[kWarp]) + " at a warp's, " +
      std::to_string(count[kDone]) + " finished");
}

// Runs every thread of the warp that may run, once; how many of them ended, or -1 if none ran.
int step_warp(const std::vector<int>& lanes, int warp) {
  int ended = -1;
  for (int lane : lanes) {
    const int i = warp * kWarpSize + lane;
    if (i >= size || threads[i]->waits != kReady) continue;
    Thread& thread = *threads[i];
    running = i;
    threadIdx = thread.index;
    thread.waits = kDone;  // unless it suspends at a barrier
    thread.fiber.resume();
    if (!failure.empty()) throw std::runtime_error(std::exchange(failure, ""));
    ended = std::max(ended, 0) + (thread.waits == kDone);
  }
  return ended;
}

// A warp runs ahead of the others as far as the block's barriers let it: whoever relies on one that
// is not there reads too early or overwrites too early.
void run_block(const std::vector<int>& lanes, const std::vector<int>& warps,
               const std::function<void()>& body) {
  shared.clear();
  for (int i = 0; i < size; ++i) {
    threads[i]->waits = kReady;
    threads[i]->fiber.reset(&body);
  }
  for (int alive = size; alive > 0;) {
    bool progress = false;
    for (int warp : warps) {
      for (int ended; (ended = step_warp(lanes, warp)) >= 0; release_warp(warp * kWarpSize)) {
        alive -= ended;
        progress = true;
      }
    }
    progress |= alive > 0 && release_block();
    if (!progress) stuck();
  }
}

void shape_threads(const dim3& block) {
  size = static_cast<int>(block.x * block.y * block.z);
  while (static_cast<int>(threads.size()) < size) threads.push_back(std::make_unique<Thread>());
  for (int i = 0; i < size; ++i) {
    const unsigned u = static_cast<unsigned>(i);
    threads[i]->index = dim3(u % block.x, u / block.x % block.y, u / block.x / block.y);
  }
}

}  // namespace

cudaError_t run(const Launch& launch, const std::function<void()>& body) {
  const dim3 &g = launch.grid, &b = launch.block;
  if (g.x == 0 || g.x > 0x7fffffffu || g.y == 0 || g.y > 65535 || g.z == 0 || g.z > 65535 ||
      b.x * b.y * b.z == 0 || b.x * b.y * b.z > 1024 || launch.shared > kSharedLimit)
    return cudaErrorInvalidConfiguration;
  ++launches;
  gridDim = g;
  blockDim = b;
  shape_threads(b);
  const std::vector<int> lanes = shuffled_order(kWarpSize);
  const std::vector<int> warps = shuffled_order((size + kWarpSize - 1) / kWarpSize);
  const int64_t blocks = static_cast<int64_t>(g.x) * g.y * g.z;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t at = shuffled ? blocks - 1 - i : i;
    blockIdx = dim3(static_cast<unsigned>(at % g.x), static_cast<unsigned>(at / g.x % g.y),
                    static_cast<unsigned>(at / g.x / g.y));
    shared_bytes = 0;
    dynamic = poisoned(launch.shared);
    run_block(lanes, warps, body);
  }
  return cudaSuccess;
}

void wait(Wait what, int detail) {
  Thread& thread = *threads[running];
  thread.waits = what;
  thread.detail = detail;
  if (what == kShuffle) thread.parity ^= 1;
  thread.fiber.suspend();
}

void fail(const std::string& why) {
  failure = why;
  threads[running]->fiber.suspend();  // the scheduler throws, this thread goes no further
  std::abort();
}

int running_lane() { return running % kWarpSize; }

uint64_t* lane_slot(int lane) {
  const int other = running / kWarpSize * kWarpSize + lane;
  if (other >= size) fail("a shuffle with a lane that does not exist");
  return &threads[other]->slot[threads[running]->parity];
}

void* shared_memory(const void* tag, size_t bytes) {
  for (const Shared& s : shared)
    if (s.tag == tag) return s.memory.get();
  shared.push_back({tag, poisoned(bytes)});
  return shared.back().memory.get();
}

void* dynamic_shared_memory() { return dynamic.get(); }

}  // namespace emulator

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Whether threads run in a shuffled order, and blocks last to first.
EXPORTED void emulator_shuffle(int on) { emulator::shuffled = on != 0; }
EXPORTED long emulator_launches() { return emulator::launches; }
