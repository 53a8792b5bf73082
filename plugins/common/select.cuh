// The best of a list, and their order. What is ranked is a 64-bit key: a number's bits in the upper half, so that a
// greater number is a greater key, and ~index in the lower. No two keys are equal, the lower of two equal numbers'
// indices wins, and lists may be written in any order without making a result depend on it. 0 is no key.
#pragma once

#include "common/block.cuh"

namespace edge_mrcnn {

constexpr int kDigitBits = 12;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kSharedKeys = kDigits / 2;  // fill the histogram's place

//! Key of a number that is not NaN; 0 and -0 are equal.
__device__ __forceinline__ uint64 make_key(float number, uint index) {
    uint const bits = number == 0.0f ? 0 : __float_as_uint(number);
    uint const ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<uint64>(ordered) << 32 | ~index;
}

__device__ __forceinline__ float number_of(uint64 key) {
    uint const ordered = static_cast<uint>(key >> 32);
    return __uint_as_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}

__device__ __forceinline__ uint index_of(uint64 key) { return ~static_cast<uint>(key); }

//! The digit whose lowest bit is `shift`.
__device__ __forceinline__ int digit_of(uint64 key, int shift) {
    return static_cast<int>(key >> shift) & (kDigits - 1);
}

//! Where keys counted by a digit divide: those with a greater digit are among the best, those with `digit` may be.
struct Cut {
    int digit;
    uint above, within;  // number of keys of either kind
};

//! What the functions below need of shared memory. The keys take the histogram's place when it has served.
struct SelectScratch {
    union {
        uint histogram[kDigits];
        uint64 keys[kSharedKeys];
    };
    uint totals[kMaxWarps];
    Cut cut;
    uint length;
};

//! Counts a digit from each lane; -1 is none. Where all are equal, as in a flat picture, one atomic serves all.
__device__ __forceinline__ void count_digit(uint* histogram, int digit) {
    int const first = __shfl_sync(kAllLanes, digit, 0);
    if (__all_sync(kAllLanes, digit == first)) {
        if (lane_index() == 0 && first >= 0) atomicAdd(histogram + first, static_cast<uint>(kWarp));
    } else if (digit >= 0) {
        atomicAdd(histogram + digit, 1u);
    }
}

//! Finds the digit that the `want`-th best key has. Where there are fewer keys, digit 0 with nothing in it.
//! Called by the whole block; the number of threads divides `kDigits`. The histogram may be changed at once.
__device__ inline Cut find_cut(uint const* histogram, uint want, SelectScratch& scratch) {
    int const run = kDigits / static_cast<int>(blockDim.x);
    int const top = kDigits - static_cast<int>(threadIdx.x) * run;  // a thread has the digits below it
    uint own = 0;
#pragma unroll 4
    for (int digit = top - run; digit < top; ++digit)
        own += histogram[digit];
    uint above = prefix_sum(own, scratch.totals);
    if (threadIdx.x == blockDim.x - 1 && above < want) scratch.cut = {0, above, 0};
    above -= own;
    if (above < want && want <= above + own) {
        int digit = top - 1;
        while (above + histogram[digit] < want)
            above += histogram[digit--];
        scratch.cut = {digit, above, histogram[digit]};
    }
    __syncthreads();
    return scratch.cut;
}

//! Least key of a part of the list that holds its best `want` keys and not more than `room` keys. The keys agree in the
//! bits from `known` on upwards with `least`, whose others are 0. Called by the whole block.
//! A radix select, most significant digit first, that ends as soon as what is left need not be divided.
__device__ inline uint64 find_least(uint64 const* keys, uint count, uint want, uint room, int known, uint64 least,
                                    SelectScratch& scratch) {
    for (uint within = count; within > room;) {
        int const shift = max(known - kDigitBits, 0);
        for (uint i = threadIdx.x; i < kDigits; i += blockDim.x)
            scratch.histogram[i] = 0;
        __syncthreads();
        for_each(keys, count, uint64{0}, [&](uint, uint64 key) {
            count_digit(scratch.histogram, (key ^ least) >> known == 0 ? digit_of(key, shift) : -1);
        });
        __syncthreads();
        Cut const cut = find_cut(scratch.histogram, want, scratch);
        least |= static_cast<uint64>(cut.digit) << shift;
        known = shift;
        want -= cut.above;
        room -= cut.above;
        within = cut.within;
    }
    return least;
}

//! Appends the keys that are not below `least`, in any order. Called by the whole block.
__device__ __forceinline__ void append_keys(uint64 const* keys, uint count, uint64 least, uint64* list, uint* length) {
    for_each(keys, count, uint64{0}, [&](uint, uint64 key) {
        bool const mine = key != 0 && key >= least;
        uint const place = append_place(mine, length);
        if (mine) list[place] = key;
    });
}

//! Number of keys that sorting `count` keys needs room for.
__host__ __device__ constexpr uint padded_to_sort(uint count) {
    uint padded = 1;
    while (padded < count)
        padded *= 2;
    return padded;
}

//! Sorts keys in shared or global memory, the greatest first, by a bitonic network; called by the whole block.
//! While pairs lie within 64 keys, a warp has those 64 to itself, and no other need wait.
__device__ inline void sort_descending(uint64* keys, uint count) {
    uint const padded = padded_to_sort(count);
    for (uint i = count + threadIdx.x; i < padded; i += blockDim.x)
        keys[i] = 0;
    __syncthreads();
    for (uint size = 2; size <= padded; size *= 2) {
        for (uint stride = size / 2; stride > 0; stride /= 2) {
            if (size > 2 * kWarp && stride >= kWarp) {
                __syncthreads();
            } else {
                __syncwarp();
            }
            for (uint pair = threadIdx.x; pair < padded / 2; pair += blockDim.x) {
                uint const low = 2 * pair - (pair & (stride - 1)), high = low + stride;
                uint64 const a = keys[low], b = keys[high];
                if ((a < b) == ((low & size) == 0)) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
        }
    }
    __syncthreads();
}

}  // namespace edge_mrcnn
