// Runs CUDA kernels on a CPU, for the tests: what nvcc gives a kernel without any include. The kernel's source is
// compiled as it is, behind `-include cuda_on_cpu.hpp`, into two programs: one with AddressSanitizer and
// UndefinedBehaviorSanitizer, one that finds data races (driver/races.cpp).
//
// A block's threads are fibers of one CPU thread (driver/scheduler.cpp). One runs until it waits at a barrier or a warp
// operation, then another is drawn at random; the sanitized program also interrupts threads at random basic blocks and
// around atomics. Blocks run one after the other in random order. Shared memory is full of garbage (0xff: NaN, -1)
// before each block, and what the kernel does not have of it may not be touched.
//
// What cannot be seen: stores that become visible to others late or out of order, as a GPU's may (races.cpp asks for
// __threadfence between blocks, for nothing within one); blocks that wait for each other (they would wait for ever);
// threads that meet at one line's barrier in different rounds of a loop, if all do as many;
// an access that goes from one array into another of the same structure through a plain pointer; divergence that CUDA
// allows but that is slow; bank conflicts, occupancy, registers; how the GPU rounds expf and exp2f.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define EDGE_MRCNN_ON_CPU

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ const
// The one storage class that makes a variable within a function static and yet can follow `extern`, as dynamic shared
// memory is declared. There is one CPU thread, so there is one copy.
#define __shared__ thread_local

// ---- Vectors and indices --------------------------------------------------------------------------------------------

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define CUDA_ON_CPU_VECTORS(T, name)                                                   \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                 \
    struct name##3 { T x, y, z; };                                                     \
    struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                         \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                 \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

CUDA_ON_CPU_VECTORS(float, float)
CUDA_ON_CPU_VECTORS(int, int)
CUDA_ON_CPU_VECTORS(short, short)
CUDA_ON_CPU_VECTORS(unsigned short, ushort)
CUDA_ON_CPU_VECTORS(unsigned char, uchar)
#undef CUDA_ON_CPU_VECTORS
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// The scheduler sets them whenever it switches to a thread.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ---- Synchronisation ------------------------------------------------------------------------------------------------

namespace cuda_on_cpu {

//! A place in the kernel's source where threads wait, by which a report names it.
struct Site {
    char const* operation;
    char const* file;
    int line;
};

//! Waits for all threads of the block. Returns of how many the predicate was true.
int sync_block(Site site, bool predicate);

//! What a warp operation gives a lane: bit i of `ballot` is lane i's predicate, `value` is the source lane's.
struct WarpResult {
    unsigned ballot;
    uint64_t value;
};

//! Waits for the lanes of the mask.
WarpResult sync_warp(Site site, unsigned mask, bool predicate, uint64_t value, unsigned source_lane);

//! A place where another thread may be let in.
void interrupt();

//! Orders the thread's stores before what it does next, for the other blocks.
void fence();

inline unsigned lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % warpSize; }

template <typename T>
T shuffle(Site site, unsigned mask, T var, unsigned source_lane) {
    static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8, "CUDA shuffles numbers");
    uint64_t bits = 0;
    memcpy(&bits, &var, sizeof(T));
    bits = sync_warp(site, mask, false, bits, source_lane).value;
    memcpy(&var, &bits, sizeof(T));
    return var;
}

}  // namespace cuda_on_cpu

// The caller's place, as default arguments see it.
#define CUDA_ON_CPU_CALLER char const *file = __builtin_FILE(), int line = __builtin_LINE()
#define CUDA_ON_CPU_SITE \
    cuda_on_cpu::Site { __func__, file, line }

inline void __syncthreads(CUDA_ON_CPU_CALLER) { cuda_on_cpu::sync_block(CUDA_ON_CPU_SITE, false); }
inline int __syncthreads_count(int predicate, CUDA_ON_CPU_CALLER) {
    return cuda_on_cpu::sync_block(CUDA_ON_CPU_SITE, predicate != 0);
}
inline int __syncthreads_or(int predicate, CUDA_ON_CPU_CALLER) {
    return cuda_on_cpu::sync_block(CUDA_ON_CPU_SITE, predicate != 0) != 0;
}
inline int __syncthreads_and(int predicate, CUDA_ON_CPU_CALLER) {
    return cuda_on_cpu::sync_block(CUDA_ON_CPU_SITE, predicate == 0) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_ON_CPU_CALLER) {
    cuda_on_cpu::sync_warp(CUDA_ON_CPU_SITE, mask, false, 0, 0);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_CALLER) {
    return cuda_on_cpu::sync_warp(CUDA_ON_CPU_SITE, mask, predicate != 0, 0, 0).ballot;
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_CALLER) {
    return cuda_on_cpu::sync_warp(CUDA_ON_CPU_SITE, mask, predicate != 0, 0, 0).ballot != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_CALLER) {
    return cuda_on_cpu::sync_warp(CUDA_ON_CPU_SITE, mask, predicate == 0, 0, 0).ballot == 0;
}

// A warp falls into segments of `width` lanes. A lane whose source lies outside keeps its own value.
template <typename T>
T __shfl_sync(unsigned mask, T var, int source_lane, int width = warpSize, CUDA_ON_CPU_CALLER) {
    unsigned const start = cuda_on_cpu::lane() & ~(width - 1u);
    return cuda_on_cpu::shuffle(CUDA_ON_CPU_SITE, mask, var, start | (source_lane & (width - 1u)));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T var, unsigned delta, int width = warpSize, CUDA_ON_CPU_CALLER) {
    unsigned const lane = cuda_on_cpu::lane(), place = lane & (width - 1u);
    return cuda_on_cpu::shuffle(CUDA_ON_CPU_SITE, mask, var, delta <= place ? lane - delta : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T var, unsigned delta, int width = warpSize, CUDA_ON_CPU_CALLER) {
    unsigned const lane = cuda_on_cpu::lane(), place = lane & (width - 1u);
    return cuda_on_cpu::shuffle(CUDA_ON_CPU_SITE, mask, var, delta < width - place ? lane + delta : lane);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T var, int lane_mask, int width = warpSize, CUDA_ON_CPU_CALLER) {
    unsigned const lane = cuda_on_cpu::lane(), source = lane ^ lane_mask;  // an earlier segment may be read
    return cuda_on_cpu::shuffle(CUDA_ON_CPU_SITE, mask, var, source <= (lane | (width - 1u)) ? source : lane);
}
#undef CUDA_ON_CPU_CALLER
#undef CUDA_ON_CPU_SITE

// ---- Atomics and memory ---------------------------------------------------------------------------------------------

namespace cuda_on_cpu {

template <typename T>
struct Same {
    using Type = T;  // not deduced: the argument is converted to the type that is pointed to, as in CUDA
};

template <typename T, typename F>
__forceinline__ T atomic_update(T* p, F update) {
    static_assert(std::is_integral_v<T> && sizeof(T) >= 4, "CUDA's atomics here are of 4 and 8 byte integers");
    interrupt();
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &old, update(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    interrupt();
    return old;
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_ATOMIC(name, expression)                                          \
    template <typename T>                                                             \
    __forceinline__ T name(T* p, typename cuda_on_cpu::Same<T>::Type x) {             \
        return cuda_on_cpu::atomic_update(p, [x](T old) -> T { return expression; }); \
    }
CUDA_ON_CPU_ATOMIC(atomicMin, old < x ? old : x)
CUDA_ON_CPU_ATOMIC(atomicMax, old > x ? old : x)
CUDA_ON_CPU_ATOMIC(atomicAnd, old& x)
CUDA_ON_CPU_ATOMIC(atomicOr, old | x)
CUDA_ON_CPU_ATOMIC(atomicXor, old ^ x)
CUDA_ON_CPU_ATOMIC(atomicExch, (void(old), x))
// Wraps around on the GPU, also where the type has a sign.
CUDA_ON_CPU_ATOMIC(atomicAdd, T(std::make_unsigned_t<T>(old) + std::make_unsigned_t<T>(x)))
CUDA_ON_CPU_ATOMIC(atomicSub, T(std::make_unsigned_t<T>(old) - std::make_unsigned_t<T>(x)))
#undef CUDA_ON_CPU_ATOMIC

template <typename T>
__forceinline__ T atomicCAS(T* p, typename cuda_on_cpu::Same<T>::Type compare, typename cuda_on_cpu::Same<T>::Type x) {
    return cuda_on_cpu::atomic_update(p, [=](T old) { return old == compare ? x : old; });
}

inline void __threadfence() { cuda_on_cpu::fence(); }
inline void __threadfence_block() { cuda_on_cpu::interrupt(); }

template <typename T>
T __ldg(T const* p) {
    return *p;
}

// ---- Arithmetic -----------------------------------------------------------------------------------------------------

namespace cuda_on_cpu {

template <typename To, typename From>
To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}

}  // namespace cuda_on_cpu

inline unsigned __float_as_uint(float x) { return cuda_on_cpu::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return cuda_on_cpu::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::bit_cast<float>(x); }
inline float __int_as_float(int x) { return cuda_on_cpu::bit_cast<float>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)(x)); }
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; ++bit)
        reversed |= (x >> bit & 1u) << (31 - bit);
    return reversed;
}

// Rounded once, never contracted (the tests compile with -ffp-contract=off).
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline int __float2int_rn(float x) { return int(rintf(x)); }

// Of a signed and an unsigned integer the common type is the unsigned one, as CUDA's overloads have it.
template <typename A, typename B, typename = std::enable_if_t<std::is_integral_v<A> && std::is_integral_v<B>>>
constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(a) < T(b) ? T(a) : T(b);
}
template <typename A, typename B, typename = std::enable_if_t<std::is_integral_v<A> && std::is_integral_v<B>>>
constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(a) > T(b) ? T(a) : T(b);
}
// Of a number and a NaN the C library's fminf and fmaxf give the number, as CUDA's do.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

//! binary16 to float, exactly.
inline float half_bits_to_float(unsigned short bits) {
    unsigned const sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude << 13) * 0x1p112f));  // rebias by 127 - 15
}

//! float to binary16, ties to even; NaN becomes 0x7fff, as cvt.rn.f16.f32 makes it.
inline unsigned short float_to_half_bits(float x) {
    unsigned const bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more is infinite
    if (magnitude < 0x38800000u) {                        // below 2^-14: a sum with 0.5 rounds to multiples of 2^-24
        return sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u);
    }
    return sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
}

// ---- Host side ------------------------------------------------------------------------------------------------------

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

namespace cuda_on_cpu {

//! Runs a grid. `call(kernel, args)` calls the kernel as one thread.
cudaError_t run_grid(void* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*call)(void*, void const*),
                     void const* args);

template <typename Args>
void call(void* kernel, void const* args) {
    reinterpret_cast<void (*)(Args)>(kernel)(*static_cast<Args const*>(args));
}

//! What the driver may call of an op's translation unit, which executor.py writes. Null: the op has none.
struct Op {
    size_t args_bytes;
    void (*call)(void* kernel, void const* args);
    size_t (*workspace)(void const* args);
    cudaError_t (*launch)(void const* args, int dtype);
    unsigned char* (*dynamic_shared)();
};

template <typename Args>
size_t workspace_of(size_t (*function)(Args), void const* args) {
    return function(*static_cast<std::decay_t<Args> const*>(args));
}
template <typename Args>
cudaError_t launch_with(cudaError_t (*function)(Args, cudaStream_t), void const* args, int) {
    return function(*static_cast<std::decay_t<Args> const*>(args), nullptr);
}
template <typename Args, typename DataType>
cudaError_t launch_with(cudaError_t (*function)(Args, DataType, cudaStream_t), void const* args, int dtype) {
    return function(*static_cast<std::decay_t<Args> const*>(args), static_cast<DataType>(dtype), nullptr);
}

}  // namespace cuda_on_cpu

namespace edge_mrcnn {

//! plugins/common/launch.hpp's launch for the CPU: runs the kernel at once and writes it in the launch log.
template <typename Args>
cudaError_t launch(void (*kernel)(Args), dim3 grid, int block, size_t shared_bytes, cudaStream_t, Args const& args) {
    return cuda_on_cpu::run_grid(reinterpret_cast<void*>(kernel), grid, dim3(unsigned(block)), shared_bytes,
                                 cuda_on_cpu::call<Args>, &args);
}

}  // namespace edge_mrcnn
