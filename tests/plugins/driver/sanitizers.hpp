// Of the sanitizers' interface what the driver calls. It is linked with AddressSanitizer in one program (kernels
// checked for memory errors) and without in the other (kernels checked for races): there these functions are null.
#pragma once

#include <cstddef>

#pragma weak __sanitizer_start_switch_fiber
#pragma weak __sanitizer_finish_switch_fiber
#pragma weak __sanitizer_set_death_callback
#pragma weak __asan_poison_memory_region
#pragma weak __asan_unpoison_memory_region

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

namespace cuda_on_cpu {

//! Makes an access to the memory an error, or right again.
inline void poison(void const* start, size_t bytes) {
    if (__asan_poison_memory_region) __asan_poison_memory_region(start, bytes);
}
inline void unpoison(void const* start, size_t bytes) {
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(start, bytes);
}

}  // namespace cuda_on_cpu
