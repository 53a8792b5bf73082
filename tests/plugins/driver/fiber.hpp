// Executions with stacks of their own that hand the one CPU thread to each other.
#pragma once

#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "sanitizers.hpp"

namespace cuda_on_cpu {

//! Stacks side by side, each with a page below it that may not be touched.
class Stacks {
public:
    static constexpr size_t kBytes = 128 << 10;

    explicit Stacks(size_t count) : total_(count * (guard_ + kBytes)) {
        void* const memory = mmap(nullptr, total_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) perror("no room for the threads' stacks"), exit(1);
        start_ = static_cast<char*>(memory);
    }

    void* take() {
        char* const stack = start_ + taken_++ * (guard_ + kBytes) + guard_;
        if (mprotect(stack, kBytes, PROT_READ | PROT_WRITE) != 0) perror("no memory for a thread's stack"), exit(1);
        return stack;
    }

    bool contain(void const* p) const { return p >= start_ && p < start_ + total_; }

private:
    size_t guard_ = size_t(sysconf(_SC_PAGESIZE)), total_, taken_ = 0;
    char* start_;
};

//! Where an execution stands while another runs. swapcontext would do, but makes a system call each time: 240 ns
//! where this takes 10.
class Fiber {
public:
    //! That which runs now, on the stack that the system gave.
    Fiber() : entered_(true), stack_bytes_(0) {
        pthread_attr_t attributes;
        pthread_getattr_np(pthread_self(), &attributes);
        pthread_attr_getstack(&attributes, &stack_, &stack_bytes_);
        pthread_attr_destroy(&attributes);
    }

    //! One that will begin with `run`, which must call `begin` first and never return.
    Fiber(void* stack, void (*run)()) : entered_(false), stack_(stack), stack_bytes_(Stacks::kBytes) {
        getcontext(&entry_);
        entry_.uc_stack.ss_sp = stack_;
        entry_.uc_stack.ss_size = stack_bytes_;
        makecontext(&entry_, run, 0);
    }

    static void begin() {
        if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
    }

    //! Leaves this one, which must be the one that runs, until another switches to it.
    void switch_to(Fiber& next) {
        // The C library's own: the sanitizer's wrapper forgets the red zones on the stack that is left.
        static auto const jump =
            reinterpret_cast<void (*)(jmp_buf, int)>(dlsym(dlopen("libc.so.6", RTLD_LAZY), "_longjmp"));
        if (__sanitizer_start_switch_fiber) {
            __sanitizer_start_switch_fiber(&fake_stack_, next.stack_, next.stack_bytes_);
        }
        if (_setjmp(registers_) == 0) {
            if (next.entered_) jump(next.registers_, 1);
            next.entered_ = true;
            setcontext(&next.entry_);
        }
        if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
    }

private:
    jmp_buf registers_;
    ucontext_t entry_;
    bool entered_;
    void* stack_;
    size_t stack_bytes_;
    void* fake_stack_ = nullptr;
};

}  // namespace cuda_on_cpu
