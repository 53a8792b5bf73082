// Runs the kernels of one translation unit for executor.py: the scheduler behind cuda_on_cpu.hpp, and a loop that
// serves requests on standard input. Itself compiled without sanitizers; linked with them.
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "cuda_on_cpu.hpp"

extern "C" cuda_on_cpu::Op const cuda_on_cpu_op;  // in the translation unit of the kernels

extern "C" char const* __asan_default_options() {
    return "detect_leaks=0:detect_stack_use_after_return=0:redzone=1024:max_redzone=2048:print_legend=0";
}
extern "C" char const* __ubsan_default_options() { return "print_stacktrace=1"; }

namespace cuda_on_cpu {
namespace {

constexpr unsigned kMaxThreads = 1024, kWarp = 32;
constexpr size_t kStackBytes = 128 << 10, kMaxShared = 48 << 10;

// ---- Fibers ---------------------------------------------------------------------------------------------------------

// The C library's own: the sanitizer's wrapper forgets the red zones of the stack that is left.
auto const jump = reinterpret_cast<void (*)(jmp_buf, int)>(dlsym(dlopen("libc.so.6", RTLD_LAZY), "_longjmp"));

//! Where an execution stands while another runs, and on which stack. swapcontext would make a system call each time:
//! 240 ns instead of 10.
struct Context {
    jmp_buf registers;
    ucontext_t entry;
    bool entered = false;
    void* stack = nullptr;
    size_t stack_bytes = 0;
    void* fake_stack = nullptr;

    void switch_to(Context& next) {
        __sanitizer_start_switch_fiber(&fake_stack, next.stack, next.stack_bytes);
        if (_setjmp(registers) == 0) {
            if (next.entered) jump(next.registers, 1);
            next.entered = true;
            setcontext(&next.entry);
        }
        __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
    }

    //! Makes a stack with a page below it that may not be touched.
    void prepare(void (*run)()) {
        auto const page = size_t(sysconf(_SC_PAGESIZE));
        auto* const memory = static_cast<char*>(mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE,
                                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
            perror("no memory for a thread's stack");
            exit(1);
        }
        stack = memory + page;
        stack_bytes = kStackBytes;
        getcontext(&entry);
        entry.uc_stack.ss_sp = stack;
        entry.uc_stack.ss_size = stack_bytes;
        makecontext(&entry, run, 0);
    }
};

//! A CUDA thread.
struct Thread {
    enum State { kReady, kAtBarrier, kInWarp, kEnded };

    Context context;
    uint3 index;
    unsigned number;  // x runs fastest
    State state;
    Site site;  // where it waits
    // What it brings to the operation at which it waits, and what it takes away:
    unsigned mask, source_lane;
    bool predicate;
    uint64_t value;
    WarpResult warp_result;
    int count;
};

// ---- The block that runs --------------------------------------------------------------------------------------------

struct Grid {
    void* kernel;
    std::string name;
    void (*call)(void*, void const*);
    void const* args;
};

std::mt19937 engine;
std::vector<std::unique_ptr<Thread>> threads;  // reused by all blocks; the first `thread_count` belong to this one
unsigned thread_count, arrived, ended;
std::vector<Thread*> ready;
Thread* current;  // null while no kernel runs
Context host;
Grid const* grid;
unsigned waiting[kMaxThreads / kWarp];  // lanes of each warp that wait for others of it
int fuse;                               // basic blocks until the next interruption
unsigned patience;                      // most of them between two in this block

unsigned below(unsigned limit) { return engine() % limit; }

//! Lets a thread run that is drawn from those that can, or the host if there is none.
void run_another() {
    Context& from = current ? current->context : host;
    if (ready.empty()) {
        current = nullptr;
        return from.switch_to(host);
    }
    std::swap(ready[below(ready.size())], ready.back());
    Thread* const self = current;
    current = ready.back();
    ready.pop_back();
    fuse = 1 + below(patience);
    threadIdx = current->index;
    if (self != current) from.switch_to(current->context);
}

void make_ready(Thread* thread) {
    thread->state = Thread::kReady;
    ready.push_back(thread);
}

void run_threads() {
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
    while (true) {
        grid->call(grid->kernel, grid->args);
        current->state = Thread::kEnded;
        ++ended;
        run_another();
    }
}

// ---- Reports --------------------------------------------------------------------------------------------------------

std::string text(uint3 const& i) {
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

std::string text(Thread const& thread) {
    if (thread.state == Thread::kEnded) return "ended";
    if (thread.state == Thread::kReady) return "can run";
    char mask[32] = "";
    if (thread.state == Thread::kInWarp) snprintf(mask, sizeof mask, " with mask 0x%08x", thread.mask);
    return std::string("wait at ") + thread.site.operation + mask + ", " + thread.site.file + ":" +
           std::to_string(thread.site.line);
}

//! Ends the run. Says where the threads of the block are.
[[noreturn]] void fail(std::string const& what) {
    std::map<std::string, std::vector<Thread const*>> places;
    for (unsigned i = 0; i < thread_count; ++i)
        places[text(*threads[i])].push_back(threads[i].get());
    fprintf(stderr, "cuda_on_cpu: %s in %s, block %s\n", what.c_str(), grid->name.c_str(), text(blockIdx).c_str());
    for (auto const& [place, those] : places) {
        fprintf(stderr, "    %zu of %u threads %s; the first is thread %s\n", those.size(), thread_count, place.c_str(),
                text(those.front()->index).c_str());
    }
    fflush(stderr);
    _exit(1);
}

//! Adds to a sanitizer's report what was running.
void say_where() {
    if (!current) return;
    fprintf(stderr, "cuda_on_cpu: in %s, block %s, thread %s\n", grid->name.c_str(), text(blockIdx).c_str(),
            text(threadIdx).c_str());
}

bool same(Site const& a, Site const& b) {
    return a.line == b.line && !strcmp(a.file, b.file) && !strcmp(a.operation, b.operation);
}

}  // namespace

// ---- What the kernels call ------------------------------------------------------------------------------------------

void interrupt() {
    if (!current || ready.empty() || below(2)) return;
    make_ready(current);
    run_another();
}

//! From Volta on CUDA lets a barrier pass that all threads reach but those that have ended. Here that is an error: what
//! is in the kernel is as likely a barrier under a condition that some threads skip before they end, which is
//! undefined.
int sync_block(Site site, bool predicate) {
    Thread& self = *current;
    self.state = Thread::kAtBarrier;
    self.site = site;
    self.predicate = predicate;
    if (++arrived == thread_count) {
        int count = 0;
        for (unsigned i = 0; i < thread_count; ++i) {
            if (!same(threads[i]->site, site)) fail("threads meet at different barriers");
            count += threads[i]->predicate;
        }
        arrived = 0;
        for (unsigned i = 0; i < thread_count; ++i) {
            threads[i]->count = count;
            make_ready(threads[i].get());
        }
    }
    run_another();
    return self.count;
}

//! Lanes that the block does not have need not come, as on a GPU. Those that have ended must: see `sync_block`.
WarpResult sync_warp(Site site, unsigned mask, bool predicate, uint64_t value, unsigned source_lane) {
    Thread& self = *current;
    unsigned const warp = self.number / kWarp, lane = self.number % kWarp, first = warp * kWarp;
    unsigned const needed = thread_count - first >= kWarp ? mask : mask & ((1u << (thread_count - first)) - 1);
    self.state = Thread::kInWarp;
    self.site = site;
    self.mask = mask;
    self.predicate = predicate;
    self.value = value;
    self.source_lane = source_lane;
    if (!(mask >> lane & 1)) fail("lane " + std::to_string(lane) + " is not in its own mask");
    waiting[warp] |= 1u << lane;
    if ((waiting[warp] & needed) == needed) {
        unsigned ballot = 0;
        for (unsigned i = 0; i < kWarp; ++i) {
            if (!(needed >> i & 1)) continue;
            Thread const& other = *threads[first + i];
            if (other.mask != mask || !same(other.site, site)) fail("lanes of a warp meet at different operations");
            ballot |= unsigned(other.predicate) << i;
        }
        waiting[warp] &= ~needed;
        for (unsigned i = 0; i < kWarp; ++i) {
            if (!(needed >> i & 1)) continue;
            Thread& other = *threads[first + i];
            bool const defined = needed >> other.source_lane & 1;
            other.warp_result = {ballot, defined ? threads[first + other.source_lane]->value : ~uint64_t(0)};
            make_ready(&other);
        }
    }
    run_another();
    return self.warp_result;
}

// ---- Grids ----------------------------------------------------------------------------------------------------------

namespace {

struct Logged {
    std::string kernel;
    dim3 grid, block;
    size_t shared_bytes;
};
std::vector<Logged> launch_log;

//! The static shared memory of all kernels and the array for the dynamic: the program's thread-local variables.
struct SharedMemory {
    char* start = nullptr;
    size_t bytes = 0;
    char* dynamic = nullptr;

    SharedMemory() {
        if (cuda_on_cpu_op.dynamic_shared) dynamic = reinterpret_cast<char*>(cuda_on_cpu_op.dynamic_shared());
        dl_iterate_phdr(
            [](dl_phdr_info* info, size_t, void* self) {
                for (int i = 0; i < info->dlpi_phnum; ++i) {
                    if (info->dlpi_phdr[i].p_type != PT_TLS || !info->dlpi_tls_data) continue;
                    static_cast<SharedMemory*>(self)->start = static_cast<char*>(info->dlpi_tls_data);
                    static_cast<SharedMemory*>(self)->bytes = info->dlpi_phdr[i].p_memsz;
                }
                return 1;  // stop: the program itself comes first
            },
            this);
    }

    //! Makes the dynamic shared memory that many bytes; what lies behind may not be touched.
    void resize(size_t dynamic_bytes) {
        if (!dynamic) return;
        __asan_unpoison_memory_region(dynamic, kMaxShared);
        __asan_poison_memory_region(dynamic + dynamic_bytes, kMaxShared - dynamic_bytes);
    }

    void fill_with_garbage(size_t dynamic_bytes) {
        if (!dynamic) return void(memset(start, 0xff, bytes));
        memset(start, 0xff, dynamic - start);
        memset(dynamic, 0xff, dynamic_bytes);
        memset(dynamic + kMaxShared, 0xff, start + bytes - dynamic - kMaxShared);
    }
};

void prepare_host() {
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &host.stack, &host.stack_bytes);
    pthread_attr_destroy(&attributes);
    host.entered = true;
}

void run_block() {
    while (threads.size() < thread_count) {
        threads.push_back(std::make_unique<Thread>());
        threads.back()->context.prepare(run_threads);
    }
    arrived = ended = 0;
    memset(waiting, 0, sizeof waiting);
    for (unsigned i = 0; i < thread_count; ++i) {
        unsigned const row = i / blockDim.x;
        threads[i]->index = {i % blockDim.x, row % blockDim.y, row / blockDim.y};
        threads[i]->number = i;
        make_ready(threads[i].get());
    }
    patience = 1u << (3 + below(12));  // from hardly a step at a time to hardly an interruption
    run_another();
    if (ended != thread_count) fail("threads wait for others that never come");
}

}  // namespace

cudaError_t run_grid(void* kernel, dim3 grid_dim, dim3 block, size_t shared_bytes, void (*call)(void*, void const*),
                     void const* args) {
    static SharedMemory shared;
    uint64_t const blocks = uint64_t(grid_dim.x) * grid_dim.y * grid_dim.z;
    thread_count = block.x * block.y * block.z;
    if (blocks == 0 || grid_dim.x > 0x7fffffffu || grid_dim.y > 65535 || grid_dim.z > 65535) {
        return cudaErrorInvalidConfiguration;
    }
    if (thread_count == 0 || thread_count > kMaxThreads || block.z > 64) return cudaErrorInvalidConfiguration;
    if (shared_bytes > kMaxShared) return cudaErrorInvalidValue;

    Dl_info symbol{};
    dladdr(kernel, &symbol);
    Grid const this_grid{kernel, symbol.dli_sname ? symbol.dli_sname : "a kernel without a name", call, args};
    grid = &this_grid;
    launch_log.push_back({this_grid.name, grid_dim, block, shared_bytes});
    gridDim = grid_dim;
    blockDim = block;
    shared.resize(shared_bytes);

    std::vector<unsigned> order(blocks);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), engine);
    for (unsigned i : order) {
        blockIdx = {i % grid_dim.x, i / grid_dim.x % grid_dim.y, i / grid_dim.x / grid_dim.y};
        shared.fill_with_garbage(shared_bytes);
        run_block();
    }
    return cudaSuccess;
}

// ---- Requests -------------------------------------------------------------------------------------------------------

namespace {

using Bytes = std::vector<char>;

void reply(void const* data, size_t bytes) {
    printf("ok %zu\n", bytes);
    fwrite(data, 1, bytes, stdout);
}

void reply(std::string const& words) { reply(words.data(), words.size()); }

void refuse(std::string const& why) { printf("error %s\n", why.c_str()); }

//! `allocate`, content: an address of memory of exactly that size, aligned as cudaMalloc aligns.
void allocate(std::istream&, Bytes const& content) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, content.empty() ? 1 : content.size()) != 0) return refuse("no memory");
    if (content.empty()) __asan_poison_memory_region(memory, 1);
    memcpy(memory, content.data(), content.size());
    reply(std::to_string(reinterpret_cast<uintptr_t>(memory)));
}

//! `read ADDRESS BYTES`: the content.
void read(std::istream& words, Bytes const&) {
    uintptr_t address;
    size_t bytes;
    words >> address >> bytes;
    reply(reinterpret_cast<void*>(address), bytes);
}

//! `run KERNEL GRID_X GRID_Y GRID_Z BLOCK SHARED_BYTES`, args.
void run(std::istream& words, Bytes const& args) {
    std::string name;
    dim3 grid_dim, block;
    size_t shared_bytes;
    words >> name >> grid_dim.x >> grid_dim.y >> grid_dim.z >> block.x >> shared_bytes;
    void* const kernel = dlsym(nullptr, name.c_str());
    if (!kernel) return refuse("there is no kernel " + name);
    cudaError_t const error = run_grid(kernel, grid_dim, block, shared_bytes, cuda_on_cpu_op.call, args.data());
    if (error) return refuse("launch of " + name + ": CUDA error " + std::to_string(error));
    reply("");
}

//! `launch DTYPE`, args: runs the launcher; the launches as lines `KERNEL GRID_X GRID_Y GRID_Z BLOCK SHARED_BYTES`.
void launch(std::istream& words, Bytes const& args) {
    int dtype;
    words >> dtype;
    if (!cuda_on_cpu_op.launch) return refuse("the op has no launch.hpp");
    launch_log.clear();
    cudaError_t const error = cuda_on_cpu_op.launch(args.data(), dtype);
    if (error) return refuse("the launcher returned CUDA error " + std::to_string(error));
    std::ostringstream log;
    for (auto const& [kernel, grid_dim, block, shared_bytes] : launch_log) {
        log << kernel << ' ' << grid_dim.x << ' ' << grid_dim.y << ' ' << grid_dim.z << ' ' << block.x << ' '
            << shared_bytes << '\n';
    }
    reply(log.str());
}

//! `workspace`, args: bytes that the launcher wants.
void workspace(std::istream&, Bytes const& args) {
    if (!cuda_on_cpu_op.workspace) return refuse("the op has no function for the workspace");
    reply(std::to_string(cuda_on_cpu_op.workspace(args.data())));
}

//! Answers a request, a line `COMMAND BYTES WORDS...` and as many bytes, with `ok BYTES` and the bytes, or `error WHY`.
bool serve() {
    static std::map<std::string, void (*)(std::istream&, Bytes const&)> const commands{
        {"allocate", allocate}, {"read", read}, {"run", run}, {"launch", launch}, {"workspace", workspace}};
    char line[1024];
    if (!fgets(line, sizeof line, stdin)) return false;
    std::istringstream words(line);
    std::string command;
    size_t bytes = 0;
    words >> command >> bytes;
    Bytes content(bytes);
    if (fread(content.data(), 1, bytes, stdin) != bytes) return false;
    commands.at(command)(words, content);
    fflush(stdout);
    return true;
}

}  // namespace
}  // namespace cuda_on_cpu

//! Called by the kernels' code at each basic block: threads are also interrupted where they wait for nothing.
extern "C" void __sanitizer_cov_trace_pc() {
    using namespace cuda_on_cpu;
    if (!current || --fuse > 0) return;
    fuse = 1 + below(patience);
    interrupt();
}

int main(int, char** arguments) {
    using namespace cuda_on_cpu;
    engine.seed(strtoul(arguments[1], nullptr, 10));
    prepare_host();
    __sanitizer_set_death_callback(say_where);
    while (serve()) {
    }
}
