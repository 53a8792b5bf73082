// Greedy non-maximum suppression by one block.
#pragma once

#include "common/block.cuh"
#include "common/box.cuh"

namespace edge_mrcnn {

constexpr int kMaxCandidates = 1 << 16;  // of one suppression: of a level, of a class

//! 32 candidates in a row.
struct SuppressTile {
    float4 boxes[kWarp];
    float areas[kWarp];
    uint overlaps[kWarp];  // bit i of word j: i < j, and the two overlap
};

//! What `suppress` needs of shared memory.
struct SuppressScratch {
    SuppressTile tiles[2];
    uint removed[kMaxCandidates / kWarp];  // a bit for each candidate
};

//! Goes before `suppress`: a thread calls `is_candidate(i)` for each i below `count`, and what is none counts as
//! removed. Called by the whole block.
template <typename Test>
__device__ __forceinline__ void mark_candidates(int count, SuppressScratch& scratch, Test is_candidate) {
    for (int first = warp_index() * kWarp; first < count; first += static_cast<int>(blockDim.x)) {
        int const i = first + lane_index();
        uint const candidates = __ballot_sync(kAllLanes, i < count && is_candidate(i));
        if (lane_index() == 0) scratch.removed[first / kWarp] = ~candidates;
    }
}

//! Loads a tile and finds which of its boxes overlap: a warp takes one box after the other, a lane an earlier one.
__device__ __forceinline__ void load_tile(float4 const* boxes, int first, int count, IouThreshold const& threshold,
                                          SuppressTile& tile) {
    int const lane = lane_index();
    float4 const box = first + lane < count ? boxes[first + lane] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float const area = area_of(box);
    if (warp_index() == 0) {
        tile.boxes[lane] = box;
        tile.areas[lane] = area;
    }
    for (int j = warp_index(); j < kWarp && first + j < count; j += warp_count()) {
        float4 const later = boxes[first + j];
        bool const overlap = lane < j && threshold.exceeded_by(box, area, later, area_of(later));
        uint const word = __ballot_sync(kAllLanes, overlap);
        if (lane == 0) tile.overlaps[j] = word;
    }
}

//! Which of a tile's `candidates` stay: those that no earlier one that stays overlaps. Lane j has the earlier boxes
//! that overlap j. Each round settles at least one more than the last, mostly all: what two rounds agree on is the
//! answer, because only the greedy choice reproduces itself.
__device__ __forceinline__ uint choose_greedily(uint overlaps, uint candidates) {
    uint kept = candidates, before;
    do {
        before = kept;
        kept = __ballot_sync(kAllLanes, (overlaps & before) == 0) & candidates;
    } while (kept != before);
    return kept;
}

//! Marks as removed what lies behind the tile and overlaps one of its boxes in `kept`.
__device__ __forceinline__ void remove_overlapping(float4 const* boxes, int first, int count, uint kept,
                                                   SuppressTile const& tile, IouThreshold const& threshold,
                                                   uint* removed) {
    for (first += warp_index() * kWarp; first < count; first += static_cast<int>(blockDim.x)) {
        uint const word = removed[first / kWarp];
        bool gone = word >> lane_index() & 1;
        if (!gone) {
            float4 const box = boxes[first + lane_index()];
            float const area = area_of(box);
            for (uint left = kept; left != 0 && !gone; left &= left - 1) {
                int const i = __ffs(static_cast<int>(left)) - 1;
                gone = threshold.exceeded_by(tile.boxes[i], tile.areas[i], box, area);
            }
        }
        uint const now = __ballot_sync(kAllLanes, gone);
        if (lane_index() == 0) removed[first / kWarp] = now;
    }
}

//! Greedy NMS over boxes sorted best first, of those that `mark_candidates` has left, until `most` are kept; returns
//! how many. `store(kept, index, rank)` is called for all boxes in turn, 32 at a time, by the lanes of one warp: the
//! last, which has the least to compare. Called by the whole block.
template <typename Store>
__device__ inline int suppress(float4 const* boxes, int count, float iou, int most, SuppressScratch& scratch,
                               Store store) {
    IouThreshold const threshold(iou);
    int total = 0;
    SuppressTile* tile = &scratch.tiles[0];
    SuppressTile* next = &scratch.tiles[1];
    load_tile(boxes, 0, count, threshold, *tile);
    for (int first = 0; first < count && total < most; first += kWarp) {
        __syncthreads();  // the tile is loaded, and who of it was removed is known
        uint const valid = first + lane_index() < count ? tile->overlaps[lane_index()] : 0;
        uint kept = choose_greedily(valid, ~scratch.removed[first / kWarp]);
        while (total + __popc(kept) > most)
            kept &= ~(0x80000000u >> __clz(static_cast<int>(kept)));
        if (warp_index() == warp_count() - 1) {
            uint const before = kept & ((1u << lane_index()) - 1);
            store((kept >> lane_index() & 1) != 0, first + lane_index(), total + __popc(before));
        }
        total += __popc(kept);
        remove_overlapping(boxes, first + kWarp, count, kept, *tile, threshold, scratch.removed);
        load_tile(boxes, first + kWarp, count, threshold, *next);
        SuppressTile* const done = tile;
        tile = next;
        next = done;
    }
    return total;
}

}  // namespace edge_mrcnn
