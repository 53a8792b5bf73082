// The shared memory of all kernels: the program's thread-local variables, of which cuda_on_cpu.hpp makes it.
#pragma once

#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "sanitizers.hpp"
#include "scheduler.hpp"

extern "C" cuda_on_cpu::Op const cuda_on_cpu_op;

namespace cuda_on_cpu {

class SharedMemory {
public:
    SharedMemory() {
        dl_iterate_phdr(
            [](dl_phdr_info* info, size_t, void* self) {
                static_cast<SharedMemory*>(self)->find(*info);
                return 1;  // no more: the program itself comes first
            },
            this);
        if (cuda_on_cpu_op.dynamic_shared) dynamic_ = reinterpret_cast<char*>(cuda_on_cpu_op.dynamic_shared());
        read_symbols();
    }

    bool contains(void const* p) const { return p >= start_ && p < start_ + bytes_; }

    //! Leaves accessible what the kernel's variables take, and the dynamic memory as far as the launch asks for it.
    void restrict_to(std::string const& kernel, size_t dynamic_bytes) {
        std::string const prefix = "_ZZ" + std::to_string(kernel.size()) + kernel + "E";  // of its local variables
        accessible_.clear();
        for (Variable const& variable : variables_) {
            if (variable.name.compare(0, prefix.size(), prefix) == 0) {
                accessible_.push_back({start_ + variable.offset, variable.bytes});
            }
        }
        if (dynamic_) accessible_.push_back({dynamic_, dynamic_bytes});
        poison(start_, bytes_);
        for (auto const& [p, bytes] : accessible_)
            unpoison(p, bytes);
    }

    //! Sets all bits: NaN, -1.
    void fill_with_garbage() const {
        for (auto const& [p, bytes] : accessible_)
            memset(p, 0xff, bytes);
    }

private:
    struct Variable {
        std::string name;  // as mangled
        size_t offset, bytes;
    };

    void find(dl_phdr_info const& info) {
        for (int i = 0; i < info.dlpi_phnum; ++i) {
            if (info.dlpi_phdr[i].p_type != PT_TLS || !info.dlpi_tls_data) continue;
            start_ = static_cast<char*>(info.dlpi_tls_data);
            bytes_ = info.dlpi_phdr[i].p_memsz;
        }
    }

    //! Finds the variables in the program's symbol table.
    void read_symbols() {
        std::ifstream file("/proc/self/exe", std::ios::binary);
        std::vector<char> const program{std::istreambuf_iterator<char>(file), {}};
        auto const* const header = reinterpret_cast<ElfW(Ehdr) const*>(program.data());
        auto const* const sections = reinterpret_cast<ElfW(Shdr) const*>(program.data() + header->e_shoff);
        for (int i = 0; i < header->e_shnum; ++i) {
            if (sections[i].sh_type != SHT_SYMTAB) continue;
            auto const* const symbols = reinterpret_cast<ElfW(Sym) const*>(program.data() + sections[i].sh_offset);
            char const* const names = program.data() + sections[sections[i].sh_link].sh_offset;
            for (size_t j = 0; j < sections[i].sh_size / sizeof *symbols; ++j) {
                if ((symbols[j].st_info & 0xf) != STT_TLS) continue;
                variables_.push_back({names + symbols[j].st_name, symbols[j].st_value, symbols[j].st_size});
            }
        }
    }

    char* start_ = nullptr;
    size_t bytes_ = 0;
    char* dynamic_ = nullptr;
    std::vector<Variable> variables_;
    std::vector<std::pair<char*, size_t>> accessible_;
};

}  // namespace cuda_on_cpu
