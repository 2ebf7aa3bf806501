// Fibers: one stack per CUDA thread, all on the processor's one real thread.
//
// A fiber runs until it suspends itself; the scheduler resumes whom it likes. On x86-64 a switch is
// a dozen instructions, elsewhere it goes through ucontext. AddressSanitizer is told of each
// switch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <vector>

#if defined(__x86_64__) && defined(__ELF__)
#define EMULATOR_ASSEMBLY 1
#else
#define EMULATOR_ASSEMBLY 0
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

#if EMULATOR_ASSEMBLY
// Saves the callee-saved registers on the stack of the one and restores those of the other.
extern "C" void emulator_switch(void** from, void* to);
#endif

class Fiber {
 public:
  static constexpr size_t kStack = 256 * 1024;

  Fiber() : stack_(static_cast<char*>(std::aligned_alloc(64, kStack))) {}
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() { std::free(stack_); }

  // The next resume() starts `body`, which must not return to a fiber that has been reset.
  void reset(const std::function<void()>* body) {
    body_ = body;
#if EMULATOR_ASSEMBLY
    // What emulator_switch pops: six registers, then the address to return to. A function expects
    // its stack 8 bytes off 16, as after a call.
    auto* top = reinterpret_cast<void**>(stack_ + kStack - 8);
    *--top = reinterpret_cast<void*>(&Fiber::enter);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    own_ = top;
#else
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack_;
    own_.uc_stack.ss_size = kStack;
    own_.uc_link = nullptr;
    makecontext(&own_, &Fiber::enter, 0);
#endif
  }

  // From the scheduler: runs the fiber until it suspends or its body ends.
  void resume() {
    running() = this;
    begin_switch(&main_fake_, stack_, kStack);
#if EMULATOR_ASSEMBLY
    emulator_switch(&main_, own_);
#else
    swapcontext(&main_, &own_);
#endif
    end_switch(main_fake_, nullptr, nullptr);
  }

  // From inside the fiber: back to the scheduler.
  void suspend() {
    begin_switch(&own_fake_, main_stack_, main_size_);
#if EMULATOR_ASSEMBLY
    emulator_switch(&own_, main_);
#else
    swapcontext(&own_, &main_);
#endif
    end_switch(own_fake_, &main_stack_, &main_size_);
  }

 private:
  static Fiber*& running() {
    static Fiber* fiber = nullptr;
    return fiber;
  }

  static void enter() {
    Fiber* const self = running();
    self->end_switch(nullptr, &self->main_stack_, &self->main_size_);
    (*self->body_)();
    self->suspend();
    std::abort();  // a finished fiber is never resumed
  }

#if defined(__SANITIZE_ADDRESS__)
  static void begin_switch(void** fake, const void* stack, size_t size) {
    __sanitizer_start_switch_fiber(fake, stack, size);
  }
  static void end_switch(void* fake, const void** stack, size_t* size) {
    __sanitizer_finish_switch_fiber(fake, stack, size);
  }
#else
  static void begin_switch(void**, const void*, size_t) {}
  static void end_switch(void*, const void**, size_t*) {}
#endif

  char* stack_;
  const std::function<void()>* body_ = nullptr;
  const void* main_stack_ = nullptr;
  size_t main_size_ = 0;
  void *main_fake_ = nullptr, *own_fake_ = nullptr;
#if EMULATOR_ASSEMBLY
  void *own_ = nullptr, *main_ = nullptr;
#else
  ucontext_t own_, main_;
#endif
};

}  // namespace emulator
