// Greedy non-maximum suppression by one block.
#pragma once

#include "common/block.cuh"
#include "common/box.cuh"

namespace edge_mrcnn {

//! What `suppress` needs of shared memory.
struct SuppressScratch {
    float4 boxes[kWarp * kMaxWarps];  // each thread's candidate
    struct Kept {                     // what a warp keeps
        float4 boxes[kWarp];
        float areas[kWarp];
        uint lanes;
    } kept[2];
};

//! Of the warp's boxes those of lower lanes that overlap this lane's, as bits.
__device__ __forceinline__ uint find_overlaps(float4 const* boxes, float4 box, float area, IouThreshold threshold) {
    uint overlaps = 0;
#pragma unroll 4
    for (int lane = 0; lane < kWarp - 1; ++lane) {
        float4 const other = boxes[lane];
        bool const overlap = lane < lane_index() && threshold.exceeded_by(other, area_of(other), box, area);
        overlaps |= static_cast<uint>(overlap) << lane;
    }
    return overlaps;
}

//! Which of the warp's candidates stay: those that no lower lane that stays overlaps. Each round settles at least one
//! lane more than the last, mostly all. What two rounds agree on is the answer: only the greedy choice reproduces
//! itself.
__device__ __forceinline__ uint choose_greedily(uint overlaps, uint candidates) {
    uint kept = candidates, before;
    do {
        before = kept;
        kept = __ballot_sync(kAllLanes, (overlaps & before) == 0) & candidates;
    } while (kept != before);
    return kept;
}

//! The lowest `most` bits that are set.
__device__ __forceinline__ uint lowest_bits(uint bits, int most) {
    while (__popc(bits) > most)
        bits &= ~(0x80000000u >> __clz(static_cast<int>(bits)));
    return bits;
}

//! Number of lanes below this one.
__device__ __forceinline__ int rank_among(uint lanes) { return __popc(lanes & ((1u << lane_index()) - 1)); }

//! Greedy NMS over candidates, the best first, until `most` are kept; returns how many. Called by the whole block.
//!
//! `load(i, box)` gives candidate i's box, or false for one that is none. `kept_boxes` becomes the list of boxes kept.
//! `keep(lanes, i, rank)` is called by a whole warp with the candidates of its lanes: those in the mask `lanes` are
//! kept, this lane's as number `rank`. No warp is called before the one with better candidates is through.
//!
//! A thread has a candidate, whose box and fate stay in registers, so that a warp can choose among its own 32 without
//! waiting as soon as all before it have chosen. What it keeps goes to the others, past one barrier, and these drop
//! what overlaps it. Where there are more candidates than threads, the next ones are first held against all those kept.
template <typename Load, typename Keep>
__device__ inline int suppress(int count, float iou, int most, float4* kept_boxes, SuppressScratch& scratch, Load load,
                               Keep keep) {
    IouThreshold const threshold(iou);
    int const threads = static_cast<int>(blockDim.x);
    int total = 0;
    for (int first = 0; first < count && total < most; first += threads) {
        int const i = first + static_cast<int>(threadIdx.x);
        float4 box = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        bool gone = !(i < count && load(i, box));
        float const area = area_of(box);
        for (int k = 0; k < total; ++k) {
            if (threshold.exceeded_by(kept_boxes[k], area_of(kept_boxes[k]), box, area)) gone = true;
        }
        scratch.boxes[threadIdx.x] = box;
        __syncwarp();
        uint const overlaps = find_overlaps(scratch.boxes + warp_index() * kWarp, box, area, threshold);
        for (int warp = 0; warp < warp_count() && first + warp * kWarp < count && total < most; ++warp) {
            SuppressScratch::Kept& kept = scratch.kept[warp % 2];
            if (warp_index() == warp) {
                uint const candidates = __ballot_sync(kAllLanes, !gone);
                uint const lanes = lowest_bits(choose_greedily(overlaps, candidates), most - total);
                if (lanes >> lane_index() & 1) {
                    kept.boxes[rank_among(lanes)] = box;
                    kept.areas[rank_among(lanes)] = area;
                }
                if (lane_index() == 0) kept.lanes = lanes;
            }
            __syncthreads();
            uint const lanes = kept.lanes;
            int const number = __popc(lanes);
            if (warp_index() == warp) {
                int const rank = total + rank_among(lanes);
                if (lanes >> lane_index() & 1) kept_boxes[rank] = box;
                keep(lanes, i, rank);
            } else if (warp_index() > warp && !__all_sync(kAllLanes, gone)) {
#pragma unroll 4
                for (int k = 0; k < number; ++k) {
                    if (threshold.exceeded_by(kept.boxes[k], kept.areas[k], box, area)) gone = true;
                }
            }
            total += number;
        }
        __syncthreads();  // the list of boxes is complete
    }
    return total;
}

}  // namespace edge_mrcnn
