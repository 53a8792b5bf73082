// What the parts of the driver know of each other.
#pragma once

#include <string>
#include <vector>

#include "../cuda_on_cpu.hpp"

namespace cuda_on_cpu {

constexpr unsigned kMaxThreads = 1024, kWarp = 32;
constexpr size_t kMaxSharedBytes = 48 << 10;

//! Seeds the order of threads and blocks.
void seed_order(unsigned seed);

//! Number of the thread that runs in its block, x fastest; -1 while none does.
int running_thread();

//! Whether the address lies on the stack of a thread.
bool on_stack(void const* p);

bool in_shared_memory(void const* p);

//! Prints what is wrong, in which kernel and block, then the lines of details; ends the program.
[[noreturn]] void fail(std::string const& what, std::vector<std::string> const& details);

//! "thread (x, y, z)".
std::string name_of_thread(unsigned number);

//! Prints which thread runs, to add to a sanitizer's report.
void print_running_thread();

struct Launch {
    std::string kernel;
    dim3 grid, block;
    size_t shared_bytes;
};

//! All launches, also those that are under way.
extern std::vector<Launch> launches;

//! Is told of all that orders the accesses of threads.
struct Observer {
    virtual ~Observer() = default;
    virtual void begin_grid() = 0;
    virtual void begin_block() = 0;
    virtual void sync_block() = 0;
    virtual void sync_warp(unsigned warp, unsigned mask) = 0;
    virtual void fence() = 0;
};

//! Null where nobody observes.
extern Observer* observer;

}  // namespace cuda_on_cpu
