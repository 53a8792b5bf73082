// Sum of each block's numbers: warps by shuffles, their sums through static shared memory.
#pragma once

#include "common/cuda.cuh"

namespace edge_mrcnn {

struct CorrectReductionArgs {
    int const* values;
    int* sums;
    int count;
};

extern "C" __global__ void correct_reduction(CorrectReductionArgs args) {
    __shared__ int warp_sums[32];
    int const i = int(blockIdx.x * blockDim.x + threadIdx.x);
    int sum = i < args.count ? args.values[i] : 0;
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
        sum += __shfl_down_sync(kAllLanes, sum, offset);
    if (threadIdx.x % kWarp == 0) warp_sums[threadIdx.x / kWarp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        int total = 0;
        for (uint warp = 0; warp < blockDim.x / kWarp; ++warp)
            total += warp_sums[warp];
        args.sums[blockIdx.x] = total;
    }
}

}  // namespace edge_mrcnn
