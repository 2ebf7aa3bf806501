// The part of libgomp's interface that the kernels use, on threads and barriers that
// ThreadSanitizer understands. libgomp itself is not built with it, so its barriers and its thread
// pool would be invisible and every use of them a false report; linked against this file instead,
// the kernels need no suppression. A construct that is missing here is a linker error.
//
// OPENMP_DROP=i leaves the i-th barrier of every parallel region out: the planted race, which shows
// that the check can fail and that the barrier is needed.
#include <pthread.h>

#include <cstdlib>
#include <thread>
#include <vector>

namespace {

struct Team {
  int size;
  pthread_barrier_t barrier;
};

struct Member {
  Team* team = nullptr;
  int number = 0, barriers = 0;
};
thread_local Member self;

const char* const setting = std::getenv("OPENMP_DROP");
const int dropped = setting ? std::atoi(setting) : -1;

}  // namespace

extern "C" {

int omp_get_thread_num() { return self.number; }
int omp_get_num_threads() { return self.team ? self.team->size : 1; }

void GOMP_barrier() {
  if (self.team && self.barriers++ != dropped) pthread_barrier_wait(&self.team->barrier);
}

// New threads for every region: its begin and end order what they do, nothing else does.
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  const Member outside = self;
  Team team{static_cast<int>(threads), {}};
  pthread_barrier_init(&team.barrier, nullptr, threads);
  const auto run = [&](int number) {
    self = {&team, number};
    body(data);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < team.size; ++i) others.emplace_back(run, i);
  run(0);
  for (std::thread& other : others) other.join();
  pthread_barrier_destroy(&team.barrier);
  self = outside;
}
}
