// Kernels that are right and between them use all that cuda_on_cpu.hpp gives.
#pragma once

#include "common/cuda.cuh"

namespace edge_mrcnn {

struct CorrectArgs {
    int const* in;
    int* out;
    int count;
};

// Sum of each block's numbers: within warps by shuffles, then of the warps. The last warp may not be full.
extern "C" __global__ void __launch_bounds__(1024) block_sum(CorrectArgs args) {
    __shared__ int warp_sums[32];
    int const i = int(blockIdx.x * blockDim.x + threadIdx.x);
    uint const lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    int sum = i < args.count ? __ldg(args.in + i) : 0;
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        int const other = __shfl_down_sync(kAllLanes, sum, offset);
        if (threadIdx.x + uint(offset) < blockDim.x && lane + uint(offset) < kWarp) sum += other;
    }
    if (lane == 0) warp_sums[warp] = sum;
    __syncthreads();
    uint const warps = (blockDim.x + kWarp - 1) / kWarp;
    for (uint step = 1; step < kWarp; step *= 2) {
        bool const adds = threadIdx.x % (2 * step) == 0 && threadIdx.x + step < warps;
        if (adds) warp_sums[threadIdx.x] += warp_sums[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x == 0) args.out[blockIdx.x] = warp_sums[0];
}

// Running sum of the block's numbers, by shuffles within warps and dynamic shared memory between them.
extern "C" __global__ void __launch_bounds__(1024) block_scan(CorrectArgs args) {
    extern __shared__ unsigned char correct_shared[];
    int* const warp_sums = reinterpret_cast<int*>(correct_shared);  // one number per warp
    uint const lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    int sum = args.in[threadIdx.x];
    for (uint delta = 1; delta < kWarp; delta *= 2) {
        int const other = __shfl_up_sync(kAllLanes, sum, delta);
        if (lane >= delta) sum += other;
    }
    if (lane == kWarp - 1 || threadIdx.x == blockDim.x - 1) warp_sums[warp] = sum;
    __syncthreads();
    int before = 0;
    for (uint i = 0; i < warp; ++i)
        before += warp_sums[i];
    args.out[threadIdx.x] = before + sum;
}

// The even numbers of the block first, each kind in its order: ballots and population counts.
extern "C" __global__ void __launch_bounds__(1024) partition_even(CorrectArgs args) {
    extern __shared__ unsigned char correct_shared[];
    int* const evens_of_warp = reinterpret_cast<int*>(correct_shared);
    uint const lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    int const number = args.in[threadIdx.x];
    uint const evens = __ballot_sync(kAllLanes, number % 2 == 0);
    if (lane == 0) evens_of_warp[warp] = __popc(evens);
    int const total = __syncthreads_count(number % 2 == 0);
    int before = __popc(evens & ((1u << lane) - 1));
    for (uint i = 0; i < warp; ++i)
        before += evens_of_warp[i];
    args.out[number % 2 == 0 ? before : total + int(threadIdx.x) - before] = number;
}

// Histogram of 8 bins in shared memory, then in global memory; the number of them, the lowest and the highest number.
extern "C" __global__ void count_with_atomics(CorrectArgs args) {
    __shared__ int bins[8];
    if (threadIdx.x < 8) bins[threadIdx.x] = 0;
    __syncthreads();
    int const i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < args.count) {
        atomicAdd(&bins[args.in[i] & 7], 1);
        atomicAdd(args.out + 8, 1);
        atomicMin(args.out + 9, args.in[i]);
        atomicMax(args.out + 10, args.in[i]);
        atomicOr(reinterpret_cast<uint*>(args.out + 11), 1u << (args.in[i] & 7));
        atomicAdd(reinterpret_cast<uint64*>(args.out + 12), 1ull << 31);
    }
    __syncthreads();
    if (threadIdx.x < 8) atomicAdd(args.out + threadIdx.x, bins[threadIdx.x]);
}

// Each thread takes a ticket; the last block to finish (by a counter at out[0]) writes how many there were.
extern "C" __global__ void last_block(CorrectArgs args) {
    __shared__ int is_last;
    atomicExch(args.out + 2 + blockIdx.x * blockDim.x + threadIdx.x, 1);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(args.out, 1) == int(gridDim.x) - 1;
    __syncthreads();
    if (!is_last) return;
    int found = 0;
    for (uint i = threadIdx.x; i < gridDim.x * blockDim.x; i += blockDim.x)
        found += args.out[2 + i];
    atomicAdd(args.out + 1, found);
}

// Each thread writes where it is: a grid and a block of three dimensions.
extern "C" __global__ void write_indices(CorrectArgs args) {
    uint const block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    args.out[block * blockDim.x + threadIdx.x] =
        int(blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z + 1000 * threadIdx.x);
}

// Warp operations under branches that whole warps take, halves of warps with masks of their own, segments of 8 lanes.
extern "C" __global__ void nested_warp_operations(CorrectArgs args) {
    uint const lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    int number = args.in[threadIdx.x];
    if (warp % 2 == 0) {
        if (__any_sync(kAllLanes, number < 0))
            number = -1;
        else
            number = __shfl_xor_sync(kAllLanes, number, 1);
        if (lane < 16) {
            number += __shfl_sync(0x0000ffffu, number, 15);
        } else {
            number += __shfl_sync(0xffff0000u, number, 16);
        }
        __syncwarp();
    } else {
        number = __all_sync(kAllLanes, number >= 0) ? __shfl_sync(kAllLanes, number, 3, 8) : -2;
        number += __shfl_up_sync(kAllLanes, number, 1, 8) + __shfl_down_sync(kAllLanes, number, 1, 8);
    }
    int const any_negative = __syncthreads_or(number < 0), all_small = __syncthreads_and(number < 1000);
    args.out[threadIdx.x] = number * 4 + any_negative * 2 + all_small;
}

// Each number's bits, read as a float, rounded to binary16; and the lower half of the bits, read as binary16, as a
// float.
extern "C" __global__ void convert_halves(CorrectArgs args) {
    int const i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= args.count) return;
    args.out[2 * i] = to_half(__int_as_float(args.in[i])).bits;
    args.out[2 * i + 1] = __float_as_int(to_float(half{static_cast<unsigned short>(args.in[i] & 0xffff)}));
}

// What the functions of one thread give for each number.
extern "C" __global__ void call_functions(CorrectArgs args) {
    int const x = args.in[threadIdx.x];
    float const f = __int_as_float(x), nan = __uint_as_float(0x7fc00000u);
    int* const out = args.out + 16 * threadIdx.x;
    out[0] = __popc(uint(x));
    out[1] = __ffs(x);
    out[2] = __clz(x);
    out[3] = int(__brev(uint(x)));
    out[4] = min(x, 7);
    out[5] = max(x, 7);
    out[6] = int(max(x, 7u));  // as unsigned numbers
    out[7] = __float_as_int(fminf(f, nan));
    out[8] = __float_as_int(fmaxf(nan, f));
    out[9] = __float_as_int(min(f, 0.5f));
    out[10] = __float_as_int(__fadd_rn(__fmul_rn(f, f), __fdiv_rn(f, 3.0f)));
    out[11] = __float_as_int(floorf(f));
    out[12] = __popcll(uint64(uint(x)) << 20);
    int4 const four = make_int4(x, 1, 2, 3);
    out[13] = four.x ^ four.w;
    out[14] = int(__float_as_uint(f) >> 1);
    out[15] = __clzll(1ll << (x & 31));
}

}  // namespace edge_mrcnn
