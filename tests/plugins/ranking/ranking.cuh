// Choosing, sorting and suppressing on their own, by one block each.
#pragma once

#include "common/select.cuh"
#include "common/suppress.cuh"
#include "rpn_proposals/rpn_proposals.cuh"

namespace edge_mrcnn {

struct RankingArgs {
    uint64 const* keys;   // (count,); those of `known` bits upwards agree with `least`
    float4 const* boxes;  // (count,), best first; those without area are no candidates
    uint64* sorted;       // (room,), or used in shared memory and then copied
    float4* kept_boxes;   // (want,)
    int* kept;            // (want,)
    uint* number;         // of keys or boxes in the result
    float* probabilities;
    uint64 least;
    float threshold;
    int count, want, room, known;
};

constexpr int kRankThreads = 256;

//! Sorts what may be among the best `want` keys.
extern "C" __global__ void __launch_bounds__(kRankThreads) rank_keys(RankingArgs args) {
    __shared__ SelectScratch scratch;
    uint const count = static_cast<uint>(args.count), room = static_cast<uint>(args.room);
    uint64* const keys = args.room <= kSharedKeys ? scratch.keys : args.sorted;
    uint64 least = 0;
    if (count > room) {
        least = find_least(args.keys, count, static_cast<uint>(args.want), room, args.known, args.least, scratch);
    }
    if (threadIdx.x == 0) scratch.length = 0;
    __syncthreads();
    append_keys(args.keys, count, least, keys, &scratch.length);
    __syncthreads();
    sort_descending(keys, scratch.length);
    if (threadIdx.x == 0) *args.number = scratch.length;
    for (uint i = threadIdx.x; i < scratch.length; i += kRankThreads)
        args.sorted[i] = keys[i];
}

struct KeepIndices {
    int* kept;

    __device__ void operator()(uint lanes, int i, int rank) const {
        if (lanes >> lane_index() & 1) kept[rank] = i;
    }
};

//! Greedy NMS; the launch decides how many threads take part.
extern "C" __global__ void __launch_bounds__(kWarp* kMaxWarps) suppress_boxes(RankingArgs args) {
    __shared__ SuppressScratch scratch;
    auto const load = [&](int i, float4& box) {
        box = args.boxes[i];
        return !is_padding(box);
    };
    int const total =
        suppress(args.count, args.threshold, args.want, args.kept_boxes, scratch, load, KeepIndices{args.kept});
    if (threadIdx.x == 0) *args.number = static_cast<uint>(total);
}

//! Lists the probabilities of what is kept: all but key 0, of keys in any order.
extern "C" __global__ void __launch_bounds__(kWarp) keep_probabilities(RankingArgs args) {
    __shared__ float least;
    if (threadIdx.x == 0) least = 1.0f;
    __syncwarp();
    RpnKeep const keep{args.keys, args.probabilities, least};
    int total = 0;
    for (int first = 0; first < args.count; first += kWarp) {
        int const i = first + lane_index();
        uint const lanes = __ballot_sync(kAllLanes, i < args.count && args.keys[i] != 0);
        keep(lanes, i, total + rank_among(lanes));
        total += __popc(lanes);
        __syncwarp();
    }
}

}  // namespace edge_mrcnn
