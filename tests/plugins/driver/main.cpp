// Serves executor.py: allocates memory, runs kernels and the launcher of one op, reads memory back.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <istream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "sanitizers.hpp"
#include "scheduler.hpp"

extern "C" cuda_on_cpu::Op const cuda_on_cpu_op;  // in the translation unit of the kernels

extern "C" char const* __asan_default_options() {
    return "detect_leaks=0:detect_stack_use_after_return=0:redzone=1024:max_redzone=2048:print_legend=0";
}
extern "C" char const* __ubsan_default_options() { return "print_stacktrace=1"; }
// The two sanitizers are libraries of their own; each ends the program by itself.
extern "C" void __ubsan_on_report() { cuda_on_cpu::print_running_thread(); }

namespace cuda_on_cpu {
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
    if (content.empty()) poison(memory, 1);
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
    launches.clear();
    cudaError_t const error = cuda_on_cpu_op.launch(args.data(), dtype);
    if (error) return refuse("the launcher returned CUDA error " + std::to_string(error));
    std::ostringstream log;
    for (auto const& [kernel, grid_dim, block, shared_bytes] : launches) {
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

int main(int, char** arguments) {
    using namespace cuda_on_cpu;
    seed_order(unsigned(strtoul(arguments[1], nullptr, 10)));
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(print_running_thread);
    while (serve()) {
    }
}
