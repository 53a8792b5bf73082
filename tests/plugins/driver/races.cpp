// Finds data races: two accesses to a byte, at least one a store and not both atomic, by different threads and ordered
// by nothing. It is found in whatever order the threads happened to run.
//
// The kernels are compiled with -fsanitize=thread, which calls a function at each access to memory; ThreadSanitizer's
// own library, which knows of CPU threads, is not linked. What orders accesses:
//   - a barrier, all of a block: each barrier begins a new epoch;
//   - a warp operation, those of the lanes that take part: vector clocks within a warp;
//   - the end of a grid;
//   - between blocks, an atomic on an address that another block used after __threadfence.
// It does not see what memcpy copies, and of a byte's readers it remembers two, from different warps where it can.
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "scheduler.hpp"

namespace cuda_on_cpu {
namespace {

struct Access {
    uint32_t epoch = 0;  // 0: none yet
    uint32_t clock = 0;  // of its lane
    uint16_t thread = 0;
    bool atomic = false;
    void const* code = nullptr;  // where it was called from
};

//! What is known of a byte.
struct Byte {
    Access store, loads[2];
};

class Races : public Observer {
public:
    Races() {
        for (unsigned i = 0; i < kMaxThreads; ++i)
            seen_[i][i % kWarp] = 1;  // more than others have seen of it
    }

    void begin_grid() override {
        grid_start_ = epoch_ + 1;
        blocks_.clear();
        published_.clear();
    }

    void begin_block() override {
        ++epoch_;
        blocks_.push_back({epoch_, blockIdx});
        fenced_ = false;
        acquired_.clear();
    }

    void sync_block() override { ++epoch_; }

    void sync_warp(unsigned warp, unsigned mask) override {
        std::array<uint32_t, kWarp> seen{};
        auto* const lanes = &seen_[warp * kWarp];
        for (unsigned i = 0; i < kWarp; ++i) {
            for (unsigned j = 0; mask >> i & 1 && j < kWarp; ++j)
                seen[j] = std::max(seen[j], lanes[i][j]);
        }
        for (unsigned i = 0; i < kWarp; ++i) {
            if (!(mask >> i & 1)) continue;
            lanes[i] = seen;
            ++lanes[i][i];
        }
    }

    void fence() override { fenced_ = true; }

    void load(void const* p, size_t size, void const* code) { access(p, size, false, false, code); }
    void store(void const* p, size_t size, void const* code) { access(p, size, true, false, code); }

    void update(void const* p, size_t size, void const* code) {
        if (running_thread() >= 0) pass_on(p);
        access(p, size, true, true, code);
    }

private:
    static constexpr size_t kPage = 1024;
    using Page = std::array<Byte, kPage>;

    struct Block {
        uint32_t start;
        uint3 index;
    };

    void access(void const* p, size_t size, bool stores, bool atomic, void const* code) {
        int const thread = running_thread();
        if (thread < 0 || on_stack(p)) return;
        Access const now{epoch_, seen_[thread][thread % kWarp], uint16_t(thread), atomic, code};
        for (size_t i = 0; i < size; ++i) {
            Byte& byte = find(static_cast<char const*>(p) + i);
            check(byte.store, true, now, stores, p, size);
            if (stores) {
                for (Access const& load : byte.loads)
                    check(load, false, now, true, p, size);
                byte.store = now;
            } else {
                remember(byte.loads, now);
            }
        }
    }

    Byte& find(char const* p) {
        uintptr_t const number = reinterpret_cast<uintptr_t>(p) / kPage;
        if (number != last_number_) {
            std::unique_ptr<Page>& page = pages_[number];
            if (!page) page = std::make_unique<Page>();
            last_page_ = page.get();
            last_number_ = number;
        }
        return (*last_page_)[reinterpret_cast<uintptr_t>(p) % kPage];
    }

    void check(Access const& then, bool stored, Access const& now, bool stores, void const* p, size_t size) const {
        if (ordered(then, now, p) || (then.atomic && now.atomic)) return;
        uint3 const block = block_of(then).index;
        bool const same_block = then.epoch >= blocks_.back().start;
        std::string const where = " of block (" + std::to_string(block.x) + ", " + std::to_string(block.y) + ", " +
                                  std::to_string(block.z) + ")";
        fail("data race",
             {name_of_thread(now.thread) + (stores ? " writes " : " reads ") + std::to_string(size) + " bytes of " +
                  (in_shared_memory(p) ? "shared" : "global") + " memory at " + line_of(now.code),
              name_of_thread(then.thread) + (same_block ? "" : where) + (stored ? " wrote" : " read") + " there at " +
                  line_of(then.code) + ", and nothing orders the two"});
    }

    bool ordered(Access const& then, Access const& now, void const* p) const {
        if (then.epoch < grid_start_) return true;
        if (then.epoch < blocks_.back().start) return in_shared_memory(p) || acquired_.count(block_of(then).start);
        if (then.epoch < epoch_ || then.thread == now.thread) return true;
        return then.thread / kWarp == now.thread / kWarp && seen_[now.thread][then.thread % kWarp] >= then.clock;
    }

    Block const& block_of(Access const& access) const {
        auto const later = std::upper_bound(blocks_.begin(), blocks_.end(), access.epoch,
                                            [](uint32_t epoch, Block const& block) { return epoch < block.start; });
        return later[-1];
    }

    void remember(Access (&loads)[2], Access const& now) const {
        auto const worth = [&](Access const& load) {  // of keeping it
            if (load.epoch < blocks_.back().start) return 0;
            if (load.thread == now.thread) return -1;
            return load.epoch < epoch_ ? 1 : load.thread / kWarp == now.thread / kWarp ? 2 : 3;
        };
        loads[worth(loads[1]) < worth(loads[0])] = now;
    }

    //! Blocks that used an atomic after a fence are seen by those that use it later.
    void pass_on(void const* p) {
        std::set<uint32_t>& published = published_[p];
        acquired_.insert(published.begin(), published.end());
        if (!fenced_) return;
        published.insert(acquired_.begin(), acquired_.end());
        published.insert(blocks_.back().start);
    }

    static std::string line_of(void const* code) {
        Dl_info info{};
        dladdr(code, &info);
        char program[4096] = "", command[4200], line[4096];
        if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) return "an unknown line";
        auto const offset = static_cast<char const*>(code) - static_cast<char const*>(info.dli_fbase) - 1;
        snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx", program, size_t(offset));
        std::string found = "an unknown line";
        if (FILE* const pipe = popen(command, "r")) {
            // The innermost of the functions inlined there comes first; what the header does, its caller did.
            while (fgets(line, sizeof line, pipe)) {
                found = std::string(line, strcspn(line, "\n "));
                if (found.find("cuda_on_cpu.hpp") == std::string::npos) break;
            }
            pclose(pipe);
        }
        return found;
    }

    uint32_t epoch_ = 0, grid_start_ = 1;
    std::vector<Block> blocks_;  // of this grid, so far
    // By thread: up to which clock it has seen each lane of its warp; its own clock among them.
    std::vector<std::array<uint32_t, kWarp>> seen_{kMaxThreads};
    bool fenced_ = false;                                  // whether a thread of this block has called __threadfence
    std::map<void const*, std::set<uint32_t>> published_;  // blocks, by their start
    std::set<uint32_t> acquired_;
    std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
    uintptr_t last_number_ = 0;
    Page* last_page_ = nullptr;
};

Races races;

}  // namespace
}  // namespace cuda_on_cpu

// ---- What code compiled with -fsanitize=thread calls ----------------------------------------------------------------

#define CALLER __builtin_return_address(0)

extern "C" {

void __tsan_init() { cuda_on_cpu::observer = &cuda_on_cpu::races; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

void __tsan_read_range(void* p, size_t size) { cuda_on_cpu::races.load(p, size, CALLER); }
void __tsan_write_range(void* p, size_t size) { cuda_on_cpu::races.store(p, size, CALLER); }

#define ACCESSES(size)                                                                      \
    void __tsan_read##size(void* p) { cuda_on_cpu::races.load(p, size, CALLER); }           \
    void __tsan_write##size(void* p) { cuda_on_cpu::races.store(p, size, CALLER); }         \
    void __tsan_unaligned_read##size(void* p) { cuda_on_cpu::races.load(p, size, CALLER); } \
    void __tsan_unaligned_write##size(void* p) { cuda_on_cpu::races.store(p, size, CALLER); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

// cuda_on_cpu.hpp makes each atomic of a load and an exchange that follows at once: the exchange counts.
#define ATOMICS(bits, T)                                                                                 \
    T __tsan_atomic##bits##_load(T const volatile* p, int) { return *p; }                                \
    int __tsan_atomic##bits##_compare_exchange_strong(T volatile* p, T* expected, T desired, int, int) { \
        cuda_on_cpu::races.update(const_cast<T*>(p), sizeof(T), CALLER);                                 \
        T const old = *p;                                                                                \
        bool const equal = old == *expected;                                                             \
        *(equal ? const_cast<T*>(p) : expected) = equal ? desired : old;                                 \
        return equal;                                                                                    \
    }
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
}
