// Greedy non-maximum suppression by one block.
#pragma once

#include "common/block.cuh"
#include "common/box.cuh"

namespace edge_mrcnn {

//! What `suppress` needs of shared memory.
struct SuppressScratch {
    float4 boxes[kWarp * kMaxWarps];  // each thread's candidate
    struct Kept {                     // what a warp keeps; boxes past the last are empty
        float4 boxes[kWarp];
        float areas[kWarp];
        uint lanes;
    } kept[2];
};

//! A thread's candidate, in registers.
struct Candidate {
    float4 box;
    float area;
    float bound;  // an intersection up to it is too small to matter
    bool gone;

    //! The union is at least as large as either box, so that most pairs need no division: what the intersection exceeds
    //! is a part of this box, less a thousandth, which is more than rounding amounts to.
    __device__ Candidate(float4 box, bool gone, float threshold)
        : box(box), area(area_of(box)), bound(0.999f * threshold * area), gone(false) {
        if (gone) drop();
    }

    __device__ __forceinline__ void drop() {
        gone = true;
        bound = kHighestFloat;
    }
};

//! Calls `use(k, intersection)` for those of `number` boxes whose intersection with the candidate exceeds its bound,
//! except where `wanted(k)` is false. Four at a time, so that their loads and sums overlap and one branch serves all.
template <typename Wanted, typename Use>
__device__ __forceinline__ void for_each_close(float4 const* boxes, int number, Candidate const& candidate,
                                               Wanted wanted, Use use) {
    constexpr int kAtOnce = 4;
    for (int first = 0; first < number; first += kAtOnce) {
        float shared[kAtOnce];
        bool close = false;
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            shared[k] = wanted(first + k) ? intersection(boxes[first + k], candidate.box) : 0.0f;
            close |= shared[k] > candidate.bound;
        }
        if (!close) continue;
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            if (shared[k] > candidate.bound) use(first + k, shared[k]);
        }
    }
}

//! Those of the warp's candidates in lower lanes that overlap this lane's, as bits.
__device__ __forceinline__ uint find_overlaps(float4 const* boxes, Candidate const& candidate, float threshold) {
    uint overlaps = 0;
    for_each_close(
        boxes, kWarp, candidate, [](int lane) { return lane < lane_index(); },
        [&](int lane, float inter) {
            if (iou(inter, area_of(boxes[lane]), candidate.area) > threshold) overlaps |= 1u << lane;
        });
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

//! Hands over the candidates of the mask `lanes`, packed.
__device__ __forceinline__ void publish(uint lanes, Candidate const& candidate, SuppressScratch::Kept& kept) {
    bool const mine = lanes >> lane_index() & 1;
    int const rank = rank_among(lanes), place = mine ? rank : __popc(lanes) + lane_index() - rank;
    kept.boxes[place] = mine ? candidate.box : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    kept.areas[place] = candidate.area;
    if (lane_index() == 0) kept.lanes = lanes;
}

//! Drops the candidate if one of the boxes overlaps it.
template <typename Wanted, typename Area>
__device__ __forceinline__ void drop_overlapped(float4 const* boxes, int number, Wanted wanted, Area area,
                                                float threshold, Candidate& candidate) {
    for_each_close(boxes, number, candidate, wanted, [&](int k, float inter) {
        if (iou(inter, area(k), candidate.area) > threshold) candidate.drop();
    });
}

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
__device__ inline int suppress(int count, float threshold, int most, float4* kept_boxes, SuppressScratch& scratch,
                               Load load, Keep keep) {
    int total = 0;
    for (int first = 0; first < count && total < most; first += static_cast<int>(blockDim.x)) {
        int const i = first + static_cast<int>(threadIdx.x);
        float4 box = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        bool const there = i < count && load(i, box);
        Candidate candidate(box, !there, threshold);
        drop_overlapped(
            kept_boxes, total, [&](int k) { return k < total; }, [&](int k) { return area_of(kept_boxes[k]); },
            threshold, candidate);
        scratch.boxes[threadIdx.x] = box;
        __syncwarp();
        uint const overlaps = find_overlaps(scratch.boxes + warp_index() * kWarp, candidate, threshold);
        for (int warp = 0; warp < warp_count() && first + warp * kWarp < count && total < most; ++warp) {
            SuppressScratch::Kept& kept = scratch.kept[warp % 2];
            if (warp_index() == warp) {
                uint const candidates = __ballot_sync(kAllLanes, !candidate.gone);
                publish(lowest_bits(choose_greedily(overlaps, candidates), most - total), candidate, kept);
            }
            __syncthreads();
            uint const lanes = kept.lanes;
            if (warp_index() == warp) {
                int const rank = total + rank_among(lanes);
                if (lanes >> lane_index() & 1) kept_boxes[rank] = box;
                keep(lanes, i, rank);
            } else if (warp_index() > warp && !__all_sync(kAllLanes, candidate.gone)) {
                drop_overlapped(
                    kept.boxes, __popc(lanes), [](int) { return true; }, [&](int k) { return kept.areas[k]; },
                    threshold, candidate);
            }
            total += __popc(lanes);
        }
        __syncthreads();  // the list of boxes is complete
    }
    return total;
}

}  // namespace edge_mrcnn
