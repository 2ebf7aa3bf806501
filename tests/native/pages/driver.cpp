// Threads take, fill, check and give back blocks of Pages at random, while the limit changes; built
// by test_sanitizers.py under sanitizers. Prints "0 failures" if no block was ever in two hands.
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "pages.h"

namespace {

medseg::Pages& pages = medseg::Pages::all();
std::atomic<int> failures{0};

uint32_t next(uint32_t& state) { return state = state * 1664525u + 1013904223u; }

void work(uint32_t seed) {
  uint32_t state = seed;
  std::vector<medseg::Block> held;
  for (int turn = 0; turn < 400; ++turn) {
    const size_t bytes = 1 + (next(state) >> 8) % (5u << 20);
    const auto block = pages.take(bytes);
    if (!block.at || block.bytes < bytes) {
      ++failures;
      return;
    }
    auto* words = static_cast<uint32_t*>(block.at);
    words[0] = words[(bytes - 1) / 4] = seed;
    held.push_back(block);
    if (turn % 50 == 0) pages.set_limit((next(state) >> 8) % (16u << 20));
    while (held.size() > 3) {
      const auto& oldest = held.front();
      if (static_cast<uint32_t*>(oldest.at)[0] != seed) ++failures;
      pages.give(oldest);
      held.erase(held.begin());
    }
  }
  for (const auto& block : held) pages.give(block);
}

}  // namespace

int main() {
  std::vector<std::thread> threads;
  for (uint32_t seed = 1; seed <= 4; ++seed) threads.emplace_back(work, seed);
  for (auto& thread : threads) thread.join();
  pages.set_limit(0);
  if (pages.held()) ++failures;
  std::printf("%d failures\n", failures.load());
  return failures.load() != 0;
}
