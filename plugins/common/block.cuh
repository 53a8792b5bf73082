// What the threads of a warp or a block do together. Every function here is called by all lanes of the warp; blocks are
// whole warps.
#pragma once

#include "common/cuda.cuh"

namespace edge_mrcnn {

constexpr int kMaxWarps = 32;
constexpr float kHighestFloat = 3.40282347e38f;

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ __forceinline__ int warp_count() { return static_cast<int>(blockDim.x) / kWarp; }

//! For each lane that is `mine` a place of its own in a list whose length, in shared or global memory, grows so: one
//! atomic a warp. The order is any.
__device__ __forceinline__ uint append_place(bool mine, uint* length) {
    uint const lanes = __ballot_sync(kAllLanes, mine);
    if (lanes == 0) return 0;
    uint first = 0;
    if (lane_index() == 0) first = atomicAdd(length, static_cast<uint>(__popc(lanes)));
    uint const before = lanes & ((1u << lane_index()) - 1);
    return __shfl_sync(kAllLanes, first, 0) + static_cast<uint>(__popc(before));
}

//! Calls `use(index, item)` for each item of a list, thread by thread of the block; lanes past the end get `none`, so
//! that `use` may call warp operations. Several loads are on their way at once.
template <typename T, typename Use>
__device__ __forceinline__ void for_each(T const* items, uint count, T none, Use use) {
    constexpr uint kAtOnce = 4;
    for (uint first = 0; first < count; first += kAtOnce * blockDim.x) {
        T item[kAtOnce];
#pragma unroll
        for (uint k = 0; k < kAtOnce; ++k) {
            uint const index = first + k * blockDim.x + threadIdx.x;
            item[k] = index < count ? items[index] : none;
        }
#pragma unroll
        for (uint k = 0; k < kAtOnce; ++k)
            use(first + k * blockDim.x + threadIdx.x, item[k]);
    }
}

//! Sum of `value` over this thread and those before it in the block. `totals` has room for `kMaxWarps`.
__device__ inline uint prefix_sum(uint value, uint* totals) {
    for (int step = 1; step < kWarp; step *= 2) {
        uint const before = __shfl_up_sync(kAllLanes, value, step);
        if (lane_index() >= step) value += before;
    }
    if (lane_index() == kWarp - 1) totals[warp_index()] = value;
    __syncthreads();
    for (int warp = 0; warp < warp_index(); ++warp)
        value += totals[warp];
    return value;
}

}  // namespace edge_mrcnn
