// Two kernels and a launcher: the second turns each row of the first's result around, through dynamic shared memory.
#pragma once

#include "common/cuda.cuh"

namespace edge_mrcnn {

constexpr int kRowThreads = 64;

struct TwoLaunchesArgs {
    Map map;
    float const* in;
    float* out;
    float* workspace;
    int rows, columns;
    float factors[3];
};

extern "C" __global__ void __launch_bounds__(kRowThreads) scale_rows(TwoLaunchesArgs args) {
    for (int x = int(threadIdx.x); x < args.columns; x += kRowThreads) {
        int const i = int(blockIdx.x) * args.columns + x;
        args.workspace[i] = args.in[i] * args.factors[x % 3];
    }
}

extern "C" __global__ void __launch_bounds__(kRowThreads) reverse_rows(TwoLaunchesArgs args) {
    extern __shared__ unsigned char two_launches_shared[];
    float* const row = reinterpret_cast<float*>(two_launches_shared);
    for (int x = int(threadIdx.x); x < args.columns; x += kRowThreads) {
        row[x] = args.workspace[int(blockIdx.x) * args.columns + x];
    }
    __syncthreads();
    for (int x = int(threadIdx.x); x < args.columns; x += kRowThreads) {
        args.out[int(blockIdx.x) * args.columns + x] = row[args.columns - 1 - x];
    }
}

}  // namespace edge_mrcnn
