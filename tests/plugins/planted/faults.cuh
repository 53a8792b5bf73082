// Kernels that are wrong, each in one way. test_executor.py sees each of them caught.
#pragma once

#include "common/cuda.cuh"

namespace edge_mrcnn {

struct FaultsArgs {
    int const* in;  // as many as threads
    int* out;       // the same
    int number;
};

extern "C" __global__ void write_beyond_array(FaultsArgs args) {
    args.out[threadIdx.x + 1] = 0;  // the last thread's lies behind
}

extern "C" __global__ void read_before_array(FaultsArgs args) { args.out[threadIdx.x] = args.in[int(threadIdx.x) - 1]; }

extern "C" __global__ void write_beyond_dynamic_shared(FaultsArgs args) {
    extern __shared__ unsigned char faults_shared[];
    int* const numbers = reinterpret_cast<int*>(faults_shared);
    numbers[threadIdx.x + 1] = int(threadIdx.x);
    __syncthreads();
    args.out[threadIdx.x] = numbers[threadIdx.x];
}

struct Row {
    int numbers[8];
};

__device__ void fill(int* numbers, int count) {
    for (int i = 0; i < count; ++i)
        numbers[i] = i;
}

extern "C" __global__ void write_beyond_static_shared(FaultsArgs args) {
    __shared__ Row row;
    row.numbers[threadIdx.x] = int(threadIdx.x);
    __syncthreads();
    args.out[threadIdx.x] = row.numbers[threadIdx.x];
}

extern "C" __global__ void write_beyond_static_shared_by_pointer(FaultsArgs args) {
    __shared__ Row row;
    if (threadIdx.x == 0) fill(row.numbers, args.number);
    __syncthreads();
    args.out[threadIdx.x] = row.numbers[threadIdx.x % 8];
}

extern "C" __global__ void write_beyond_local_array_after_barrier(FaultsArgs args) {
    int numbers[8];
    fill(numbers, 8);
    __syncthreads();
    fill(numbers, args.number);
    args.out[threadIdx.x] = numbers[threadIdx.x % 8];
}

// Right: each thread's neighbour's number, one further.
extern "C" __global__ void missing_barrier(FaultsArgs args) {
    __shared__ int numbers[256];
    numbers[threadIdx.x] = args.in[threadIdx.x];
    args.out[threadIdx.x] = numbers[(threadIdx.x + 1) % blockDim.x] + 1;
}

// Right: the sum of the numbers.
extern "C" __global__ void sum_without_atomic(FaultsArgs args) {
    if (threadIdx.x == 0) args.out[0] = 0;
    __syncthreads();
    args.out[0] += args.in[threadIdx.x];
}

// Nobody sees the sum before it is complete, but nothing says so.
extern "C" __global__ void atomic_and_plain_read(FaultsArgs args) {
    __shared__ int sum;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    atomicAdd(&sum, args.in[threadIdx.x]);
    if (threadIdx.x == 0) args.out[0] = sum;
}

// The barrier in the loop is passed before the tile is read to the end: one at the end of the loop is missing.
extern "C" __global__ void missing_second_barrier(FaultsArgs args) {
    __shared__ int tile[256];
    int sum = 0;
    for (int i = 0; i < 4; ++i) {
        tile[threadIdx.x] = args.in[threadIdx.x] * i;
        __syncthreads();
        sum += tile[blockDim.x - 1 - threadIdx.x];
    }
    args.out[threadIdx.x] = sum;
}

// All blocks write the same elements, each its own number.
extern "C" __global__ void blocks_share_output(FaultsArgs args) { args.out[threadIdx.x] = int(blockIdx.x); }

// Right with a __threadfence between the two: the last block sums up what the others wrote.
extern "C" __global__ void last_block_without_fence(FaultsArgs args) {
    __shared__ int is_last;
    if (threadIdx.x == 0) {
        args.out[1 + blockIdx.x] = 1;
        is_last = atomicAdd(args.out, 1) == args.number;
        for (uint i = 0; i < gridDim.x && is_last; ++i)
            args.out[1 + gridDim.x] = args.out[1 + i];
    }
}

// Right: within each warp, the numbers turned around.
extern "C" __global__ void missing_syncwarp(FaultsArgs args) {
    __shared__ int numbers[256];
    numbers[threadIdx.x] = args.in[threadIdx.x];
    args.out[threadIdx.x] = numbers[threadIdx.x ^ 31];
}

extern "C" __global__ void divergent_barrier(FaultsArgs args) {
    if (threadIdx.x < 16) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    args.out[threadIdx.x] = 0;
}

extern "C" __global__ void barrier_that_some_skip(FaultsArgs args) {
    if (threadIdx.x < 16) __syncthreads();
    args.out[threadIdx.x] = 0;
}

extern "C" __global__ void lanes_that_never_come(FaultsArgs args) {
    int number = 0;
    if (threadIdx.x % 2 == 0) number = __shfl_sync(kAllLanes, args.in[threadIdx.x], 0);
    __syncthreads();
    args.out[threadIdx.x] = number;
}

extern "C" __global__ void lane_outside_its_mask(FaultsArgs args) { args.out[threadIdx.x] = __any_sync(0xffff, 1); }

extern "C" __global__ void different_votes(FaultsArgs args) {
    args.out[threadIdx.x] = threadIdx.x % 2 ? __any_sync(kAllLanes, 1) : __all_sync(kAllLanes, 1);
}

// A lane that has left for the other mask's operation leaves this one's waiting.
extern "C" __global__ void masks_that_overlap(FaultsArgs args) {
    args.out[threadIdx.x] = int(__ballot_sync(threadIdx.x == 0 ? kAllLanes : ~1u, 1));
}

extern "C" __global__ void uninitialised_shared(FaultsArgs args) {
    __shared__ int numbers[32];
    extern __shared__ unsigned char faults_shared[];
    args.out[threadIdx.x] = threadIdx.x % 2 ? numbers[threadIdx.x % 32] : faults_shared[threadIdx.x];
}

// A shuffle from a lane that does not take part gives garbage.
extern "C" __global__ void shuffle_from_outside(FaultsArgs args) {
    if (threadIdx.x < 16) args.out[threadIdx.x] = __shfl_sync(0xffff, args.in[threadIdx.x], 16);
}

extern "C" __global__ void signed_overflow(FaultsArgs args) {
    args.out[threadIdx.x] = args.in[threadIdx.x] + args.number;
}

extern "C" __global__ void bad_shift(FaultsArgs args) { args.out[threadIdx.x] = args.in[threadIdx.x] << args.number; }

extern "C" __global__ void float_too_large_for_int(FaultsArgs args) {
    args.out[threadIdx.x] = int(float(args.number) * 2.0f);
}

extern "C" __global__ void misaligned_vector(FaultsArgs args) {
    int4 const four = *reinterpret_cast<int4 const*>(args.in + 1);
    args.out[threadIdx.x] = four.x;
}

extern "C" __global__ void endless_loop(FaultsArgs args) {
    while (*const_cast<int const volatile*>(args.out) != args.number) {
    }
}

extern "C" __global__ void endless_recursion(FaultsArgs args);
__device__ int deeper(FaultsArgs const& args, int depth) {
    int local[64];
    fill(local, 64);
    return depth < args.number ? local[depth % 64] + deeper(args, depth + 1) : depth;
}
extern "C" __global__ void endless_recursion(FaultsArgs args) { args.out[threadIdx.x] = deeper(args, 0); }

}  // namespace edge_mrcnn
