// Runs a grid: block by block, the threads of a block as fibers. What cuda_on_cpu.hpp declares is defined here.
#include "scheduler.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>

#include "fiber.hpp"
#include "shared_memory.hpp"

namespace cuda_on_cpu {

std::vector<Launch> launches;
Observer* observer = nullptr;

namespace {

//! A CUDA thread. The fibers are reused by all blocks.
struct Thread {
    enum State { kReady, kAtBarrier, kInWarp, kEnded };

    explicit Thread(Fiber const& fiber) : fiber(fiber) {}

    Fiber fiber;
    unsigned number;  // in its block, x fastest
    uint3 index;
    State state;
    // What it brings to the operation at which it waits:
    Site site;
    unsigned mask, source_lane;
    bool predicate;
    uint64_t value;
    // What it takes away:
    WarpResult warp_result;
    int count;
};

struct Kernel {
    void* function;
    void (*call)(void* function, void const* args);
    void const* args;
};

std::mt19937 engine;
Stacks stacks(kMaxThreads);
Fiber host;  // runs the launchers and serves requests
SharedMemory shared;
Kernel kernel;
std::vector<std::unique_ptr<Thread>> threads;  // the first `thread_count` are the block's
unsigned thread_count, arrived, ended;
unsigned waiting[kMaxThreads / kWarp];  // lanes of each warp that wait for others of it
std::vector<Thread*> ready;
Thread* current = nullptr;  // null while the host runs
unsigned fuse, patience;    // basic blocks until the next interruption, most of them between two

unsigned below(size_t limit) { return unsigned(engine() % limit); }

// ---- Reports --------------------------------------------------------------------------------------------------------

std::string text(uint3 i) {
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

std::string place_of(Thread const& thread) {
    if (thread.state == Thread::kEnded) return "ended";
    if (thread.state == Thread::kReady) return "can run";
    char mask[32] = "";
    if (thread.state == Thread::kInWarp) snprintf(mask, sizeof mask, " with mask 0x%08x", thread.mask);
    return std::string("wait at ") + thread.site.operation + mask + ", " + thread.site.file + ":" +
           std::to_string(thread.site.line);
}

//! Reports an operation that the threads do not do together, with the places where they are.
[[noreturn]] void fail_together(std::string const& what) {
    std::map<std::string, std::vector<unsigned>> places;
    for (unsigned i = 0; i < thread_count; ++i)
        places[place_of(*threads[i])].push_back(i);
    std::vector<std::string> details;
    for (auto const& [place, those] : places) {
        details.push_back(std::to_string(those.size()) + " of " + std::to_string(thread_count) + " threads " + place +
                          "; the first is " + name_of_thread(those.front()));
    }
    fail(what, details);
}

bool same(Site const& a, Site const& b) {
    return a.line == b.line && strcmp(a.file, b.file) == 0 && strcmp(a.operation, b.operation) == 0;
}

// ---- Switching ------------------------------------------------------------------------------------------------------

//! Lets one run of those that can, drawn at random; the host where none can.
void run_another() {
    Thread* const left = current;
    if (ready.empty()) {
        current = nullptr;
        return left->fiber.switch_to(host);
    }
    std::swap(ready[below(ready.size())], ready.back());
    current = ready.back();
    ready.pop_back();
    threadIdx = current->index;
    fuse = 1 + below(patience);
    if (left != current) (left ? left->fiber : host).switch_to(current->fiber);
}

void make_ready(Thread& thread) {
    thread.state = Thread::kReady;
    ready.push_back(&thread);
}

void run_threads() {
    Fiber::begin();
    while (true) {
        kernel.call(kernel.function, kernel.args);
        current->state = Thread::kEnded;
        ++ended;
        run_another();
    }
}

void run_block() {
    while (threads.size() < thread_count) {
        threads.push_back(std::make_unique<Thread>(Fiber(stacks.take(), run_threads)));
    }
    arrived = ended = 0;
    memset(waiting, 0, sizeof waiting);
    for (unsigned i = 0; i < thread_count; ++i) {
        unsigned const row = i / blockDim.x;
        threads[i]->number = i;
        threads[i]->index = {i % blockDim.x, row % blockDim.y, row / blockDim.y};
        make_ready(*threads[i]);
    }
    patience = 1u << (3 + below(12));  // some blocks interrupt at almost every step, others hardly ever
    if (observer) observer->begin_block();
    run_another();
    if (ended != thread_count) fail_together("threads wait for others that never come");
}

void finish_barrier(Site const& site) {
    arrived = 0;
    int count = 0;
    for (unsigned i = 0; i < thread_count; ++i) {
        if (!same(threads[i]->site, site)) fail_together("threads meet at different barriers");
        count += threads[i]->predicate;
    }
    for (unsigned i = 0; i < thread_count; ++i) {
        threads[i]->count = count;
        make_ready(*threads[i]);
    }
    if (observer) observer->sync_block();
}

void finish_warp_operation(unsigned warp, unsigned lanes, Thread const& last) {
    std::unique_ptr<Thread>* const thread = &threads[warp * kWarp];
    unsigned ballot = 0;
    for (unsigned i = 0; i < kWarp; ++i) {
        if (!(lanes >> i & 1)) continue;
        if (thread[i]->mask != last.mask || !same(thread[i]->site, last.site)) {
            fail_together("lanes of a warp meet at different operations");
        }
        ballot |= unsigned(thread[i]->predicate) << i;
    }
    waiting[warp] &= ~lanes;
    for (unsigned i = 0; i < kWarp; ++i) {
        if (!(lanes >> i & 1)) continue;
        unsigned const source = thread[i]->source_lane;
        bool const defined = lanes >> source & 1;  // a lane that does not take part gives garbage
        thread[i]->warp_result = {ballot, defined ? thread[source]->value : ~uint64_t(0)};
        make_ready(*thread[i]);
    }
    if (observer) observer->sync_warp(warp, lanes);
}

}  // namespace

void seed_order(unsigned seed) { engine.seed(seed); }

int running_thread() { return current ? int(current->number) : -1; }

bool on_stack(void const* p) { return stacks.contain(p); }

bool in_shared_memory(void const* p) { return shared.contains(p); }

std::string name_of_thread(unsigned number) { return "thread " + text(threads[number]->index); }

void fail(std::string const& what, std::vector<std::string> const& details) {
    fprintf(stderr, "cuda_on_cpu: %s in %s, block %s\n", what.c_str(), launches.back().kernel.c_str(),
            text(blockIdx).c_str());
    for (std::string const& line : details)
        fprintf(stderr, "    %s\n", line.c_str());
    fflush(stderr);
    _exit(1);
}

void print_running_thread() {
    if (!current) return;
    fprintf(stderr, "cuda_on_cpu: in %s, block %s, thread %s\n", launches.back().kernel.c_str(), text(blockIdx).c_str(),
            text(threadIdx).c_str());
}

// ---- What kernels call ----------------------------------------------------------------------------------------------

void interrupt() {
    if (!current || ready.empty() || below(2)) return;
    make_ready(*current);
    run_another();
}

void fence() {
    if (observer) observer->fence();
    interrupt();
}

//! From Volta on CUDA lets a barrier pass that all threads reach but those that have ended. Here that is an error: a
//! barrier under a condition, which some threads skip before they end, looks the same and is undefined.
int sync_block(Site site, bool predicate) {
    Thread& self = *current;
    self.state = Thread::kAtBarrier;
    self.site = site;
    self.predicate = predicate;
    if (++arrived == thread_count) finish_barrier(site);
    run_another();
    return self.count;
}

//! Lanes that the block does not have need not come, as on a GPU. Those that have ended are missed: see `sync_block`.
WarpResult sync_warp(Site site, unsigned mask, bool predicate, uint64_t value, unsigned source_lane) {
    Thread& self = *current;
    self.state = Thread::kInWarp;
    self.site = site;
    self.mask = mask;
    self.predicate = predicate;
    self.value = value;
    self.source_lane = source_lane;
    unsigned const warp = self.number / kWarp, lane = self.number % kWarp;
    if (!(mask >> lane & 1)) fail_together("lane " + std::to_string(lane) + " is not in its own mask");
    unsigned const lanes = std::min(kWarp, thread_count - warp * kWarp);  // that the block has
    unsigned const needed = mask & (0xffffffffu >> (kWarp - lanes));
    waiting[warp] |= 1u << lane;
    if ((waiting[warp] & needed) == needed) finish_warp_operation(warp, needed, self);
    run_another();
    return self.warp_result;
}

cudaError_t run_grid(void* function, dim3 grid, dim3 block, size_t shared_bytes, void (*call)(void*, void const*),
                     void const* args) {
    uint64_t const blocks = uint64_t(grid.x) * grid.y * grid.z, size = uint64_t(block.x) * block.y * block.z;
    if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
    if (size == 0 || size > kMaxThreads || block.z > 64) return cudaErrorInvalidConfiguration;
    if (shared_bytes > kMaxSharedBytes) return cudaErrorInvalidValue;

    Dl_info symbol{};
    dladdr(function, &symbol);
    launches.push_back({symbol.dli_sname ? symbol.dli_sname : "a kernel without a name", grid, block, shared_bytes});
    kernel = {function, call, args};
    gridDim = grid;
    blockDim = block;
    thread_count = unsigned(size);
    shared.restrict_to(launches.back().kernel, shared_bytes);
    if (observer) observer->begin_grid();

    std::vector<unsigned> order(blocks);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), engine);
    for (unsigned i : order) {
        blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
        shared.fill_with_garbage();
        run_block();
    }
    return cudaSuccess;
}

}  // namespace cuda_on_cpu

//! Called by kernels at each basic block: threads are also interrupted where they wait for nothing.
extern "C" void __sanitizer_cov_trace_pc() {
    using namespace cuda_on_cpu;
    if (!current || --fuse > 0) return;
    fuse = 1 + below(patience);
    interrupt();
}
