// RpnProposals: the best boxes of a region proposal network, level by level, suppressed and merged.
//
// Must move: the logits twice (count, then collect) and 4 deltas of each candidate, a 32-byte sector each in the linear
// layout, one for all in kHWC8. 800x1344, 5 levels, 3 anchors: 269k logits and 4819 candidates, 2.8 MB in float32 and
// 1.2 MB in kHWC8: 1 us at 3 TB/s (H100), 12 to 27 us at 102 GB/s (Orin NX) as far as it is no longer in the L2 cache.
// What limits it otherwise: choosing, sorting and suppressing 1000 candidates are serial, each step waits for the last.
//
// Hence: all levels of all pictures go through each launch together, and what has few data but many steps is one block
// a level, whose steps are as few and short as could be had.
//   clear       the counters
//   histogram   of the logits' upper 12 bits, by all the GPU
//   collect     a list of those that are, or may be, among a level's best: from the front those above the bin in which
//               the last of the best lies, from the back those within it
//   level       a block a level: choose among those of that bin, sort, decode, suppress
//   merge       each box finds its row by counting, in each other level's sorted list, those before it
#pragma once

#include "common/box.cuh"
#include "common/select.cuh"
#include "common/suppress.cuh"
#include "common/workspace.cuh"
#include "rpn_proposals/args.cuh"

namespace edge_mrcnn {

constexpr int kRpnClearThreads = 256;
constexpr int kRpnScanThreads = 512;
constexpr int kRpnScanPixels = 4;  // of a thread
constexpr int kRpnLevelThreads = 1024;
constexpr int kRpnMergeThreads = 256;
constexpr int kRpnKeyShift = 64 - kDigitBits;  // of the digit that is counted first

//! What is counted for a level of a picture.
struct RpnCounters {
    uint histogram[kDigits];
    uint sure, border;  // lengths of the list's two parts
    uint kept;          // after suppression
    uint unused;
};

//! Anchors of a level.
__host__ __device__ inline int rpn_anchors(RpnProposalsArgs const& args, int level) {
    Map const& map = args.objectness[level];
    return map.channels * map.height * map.width;
}

__host__ __device__ inline int rpn_candidates(RpnProposalsArgs const& args, int level) {
    int const anchors = rpn_anchors(args, level);
    return anchors < args.pre_nms_top_n ? anchors : args.pre_nms_top_n;
}

//! The workspace, in parts; each has one slot after the other for level and picture.
struct RpnWorkspace {
    uint64 counters, lists, sorted, boxes, probabilities;  // offsets
    uint64 bytes;

    int anchors;     // of all levels: keys in a picture's lists
    int candidates;  // of a level, at most
    int kept;        // of a level, at most
    uint room;       // keys that can be sorted; up to kSharedKeys they are in shared memory

    __host__ __device__ explicit RpnWorkspace(RpnProposalsArgs const& args) : anchors(0), candidates(0) {
        for (int level = 0; level < args.levels; ++level) {
            anchors += rpn_anchors(args, level);
            int const here = rpn_candidates(args, level);
            candidates = here > candidates ? here : candidates;
        }
        kept = candidates < args.post_nms_top_n ? candidates : args.post_nms_top_n;
        room = candidates <= kSharedKeys ? kSharedKeys : padded_to_sort(static_cast<uint>(candidates));
        uint64 const slots = static_cast<uint64>(args.batch) * static_cast<uint64>(args.levels);
        WorkspaceParts parts;
        counters = parts.add(slots * sizeof(RpnCounters));
        lists = parts.add(static_cast<uint64>(args.batch) * static_cast<uint64>(anchors) * sizeof(uint64));
        sorted = parts.add(room > kSharedKeys ? slots * room * sizeof(uint64) : 0);
        boxes = parts.add(slots * static_cast<uint64>(kept) * sizeof(float4));
        probabilities = parts.add(slots * static_cast<uint64>(kept) * sizeof(float));
        bytes = parts.bytes;
    }
};

//! A level of a picture and its slots in the workspace.
struct RpnLevel {
    int level, picture;
    RpnCounters* counters;
    uint64* list;  // a key for each anchor, if need be
    int anchors;
    uint64* sorted;
    float4* boxes;  // after suppression, best first
    float* probabilities;

    __device__ RpnLevel(RpnProposalsArgs const& args, RpnWorkspace const& parts, int level, int picture)
        : level(level), picture(picture), anchors(rpn_anchors(args, level)) {
        long long const slot = static_cast<long long>(picture) * args.levels + level;
        long long before = static_cast<long long>(picture) * parts.anchors;
        for (int other = 0; other < level; ++other)
            before += rpn_anchors(args, other);
        counters = part_of<RpnCounters>(args.workspace, parts.counters) + slot;
        list = part_of<uint64>(args.workspace, parts.lists) + before;
        sorted = part_of<uint64>(args.workspace, parts.sorted) + slot * parts.room;
        boxes = part_of<float4>(args.workspace, parts.boxes) + slot * parts.kept;
        probabilities = part_of<float>(args.workspace, parts.probabilities) + slot * parts.kept;
    }
};

// ---- clear ----------------------------------------------------------------------------------------------------------
__device__ inline void rpn_clear(RpnProposalsArgs const& args) {
    RpnWorkspace const parts(args);
    uint const count = static_cast<uint>(args.batch * args.levels) * (sizeof(RpnCounters) / sizeof(uint4));
    uint const i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) part_of<uint4>(args.workspace, parts.counters)[i] = make_uint4(0, 0, 0, 0);
}

// ---- histogram and collect ------------------------------------------------------------------------------------------
//! Calls `use(key)` for the logits of the block's pixels, by all lanes; 0 is no candidate. Neighbouring lanes have
//! neighbouring pixels, so that reads are coalesced in the linear layout and share their sectors in kHWC8.
template <typename T, typename Use>
__device__ __forceinline__ void for_each_logit(Map const& map, int picture, Use use) {
    T const* const logits = static_cast<T const*>(map.data) + picture * map.picture_stride;
    int const pixels = map.height * map.width;
    int const first = static_cast<int>(blockIdx.x) * kRpnScanThreads * kRpnScanPixels + static_cast<int>(threadIdx.x);
    for (int anchor = 0; anchor < map.channels; ++anchor) {
        T const* const channel = logits + static_cast<long long>(anchor) * map.channel_stride;
        float logit[kRpnScanPixels];
#pragma unroll
        for (int k = 0; k < kRpnScanPixels; ++k) {
            int const pixel = first + k * kRpnScanThreads;
            logit[k] = pixel < pixels ? to_float(channel[static_cast<long long>(pixel) * map.pixel_stride]) : 0.0f;
        }
#pragma unroll
        for (int k = 0; k < kRpnScanPixels; ++k) {
            int const pixel = first + k * kRpnScanThreads;
            bool const candidate = pixel < pixels && logit[k] >= -kHighestFloat;  // NaN and minus infinity are none
            use(candidate ? make_key(logit[k], static_cast<uint>(pixel * map.channels + anchor)) : 0);
        }
    }
}

//! Whether the block has pixels of its level: the grid is as large as the largest level needs.
__device__ __forceinline__ bool rpn_has_pixels(Map const& map) {
    return static_cast<int>(blockIdx.x) * kRpnScanThreads * kRpnScanPixels < map.height * map.width;
}

template <typename T>
__device__ void rpn_histogram(RpnProposalsArgs const& args, uint* histogram) {
    int const level = static_cast<int>(blockIdx.y), picture = static_cast<int>(blockIdx.z);
    if (!rpn_has_pixels(args.objectness[level])) return;
    for (int digit = static_cast<int>(threadIdx.x); digit < kDigits; digit += kRpnScanThreads)
        histogram[digit] = 0;
    __syncthreads();
    for_each_logit<T>(args.objectness[level], picture,
                      [&](uint64 key) { count_digit(histogram, key != 0 ? digit_of(key, kRpnKeyShift) : -1); });
    __syncthreads();
    RpnLevel const here(args, RpnWorkspace(args), level, picture);
    for (int digit = static_cast<int>(threadIdx.x); digit < kDigits; digit += kRpnScanThreads) {
        if (histogram[digit] != 0) atomicAdd(here.counters->histogram + digit, histogram[digit]);
    }
}

template <typename T>
__device__ void rpn_collect(RpnProposalsArgs const& args, SelectScratch& scratch) {
    int const level = static_cast<int>(blockIdx.y), picture = static_cast<int>(blockIdx.z);
    if (!rpn_has_pixels(args.objectness[level])) return;
    RpnLevel const here(args, RpnWorkspace(args), level, picture);
    // If there are not more than wanted the cut is at digit 0, which no candidate's key has: all are above it.
    Cut const cut = find_cut(here.counters->histogram, static_cast<uint>(args.pre_nms_top_n), scratch);
    for_each_logit<T>(args.objectness[level], picture, [&](uint64 key) {
        int const digit = digit_of(key, kRpnKeyShift);
        bool const sure = digit > cut.digit, border = key != 0 && digit == cut.digit;
        uint const front = append_place(sure, &here.counters->sure);
        if (sure) here.list[front] = key;
        uint const back = append_place(border, &here.counters->border);
        if (border) here.list[here.anchors - 1 - static_cast<int>(back)] = key;
    });
}

// ---- level ----------------------------------------------------------------------------------------------------------
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

//! Puts the level's best keys into `keys`, sorted; returns how many there are.
__device__ inline int rpn_choose(RpnProposalsArgs const& args, RpnLevel const& here, uint64* keys, uint room,
                                 SelectScratch& scratch) {
    uint const wanted = static_cast<uint>(rpn_candidates(args, here.level));
    uint const sure = here.counters->sure, border = here.counters->border;
    uint64 const* const border_keys = here.list + here.anchors - border;
    uint64 least = 0;
    if (sure + border > room) {
        uint64 const bin = border_keys[0] >> kRpnKeyShift << kRpnKeyShift;
        least = find_least(border_keys, border, wanted - sure, room - sure, kRpnKeyShift, bin, scratch);
    }
    if (threadIdx.x == 0) scratch.length = 0;
    __syncthreads();
    append_keys(here.list, sure, 0, keys, &scratch.length);
    append_keys(border_keys, border, least, keys, &scratch.length);
    __syncthreads();
    uint const length = scratch.length;
    sort_descending(keys, length);
    return static_cast<int>(min(length, wanted));
}

//! Decodes the box of a level's anchor; false where it is no candidate.
template <typename T>
__device__ __forceinline__ bool rpn_decode(RpnProposalsArgs const& args, RpnLevel const& here, uint index,
                                           float4& box) {
    Map const& map = args.deltas[here.level];
    int const anchors = args.objectness[here.level].channels;
    int const pixel = static_cast<int>(index) / anchors, anchor = static_cast<int>(index) % anchors;
    int const y = pixel / map.width, x = pixel % map.width;
    float const* const cell = args.cell_anchors + 4 * (here.level * anchors + anchor);
    float const dx = static_cast<float>(x) * args.stride_x[here.level];
    float const dy = static_cast<float>(y) * args.stride_y[here.level];
    float4 const reference =
        make_float4(__fadd_rn(dx, cell[0]), __fadd_rn(dy, cell[1]), __fadd_rn(dx, cell[2]), __fadd_rn(dy, cell[3]));
    T const* const delta = static_cast<T const*>(map.data) + here.picture * map.picture_stride +
                           static_cast<long long>(pixel) * map.pixel_stride +
                           static_cast<long long>(4 * anchor) * map.channel_stride;
    long long const next = map.channel_stride;
    float4 const deltas =
        make_float4(to_float(delta[0]), to_float(delta[next]), to_float(delta[2 * next]), to_float(delta[3 * next]));
    float2 const content = make_float2(args.image_hw[2 * here.picture + 1], args.image_hw[2 * here.picture]);
    return decode_candidate(args.coder, reference, deltas, content, box);
}

//! Lists the probabilities of what suppression leaves. `merge` needs that they never rise, and expf may be off by a
//! last bit: one that rises is lowered to the one before, which cannot be far, because sigmoid rises with the logit.
struct RpnKeep {
    uint64 const* keys;
    float* probabilities;
    float& least;  // in shared memory: of the better ones

    __device__ void operator()(uint lanes, int i, int rank) const {
        bool const kept = lanes >> lane_index() & 1;
        float probability = least;
        if (kept) probability = fminf(probability, sigmoid(number_of(keys[i])));
        for (int step = 1; step < kWarp; step *= 2) {
            probability = fminf(probability, __shfl_up_sync(kAllLanes, probability, step));
        }
        if (kept) probabilities[rank] = probability;
        if (lane_index() == kWarp - 1) least = probability;
    }
};

struct RpnScratch {
    SelectScratch select;
    SuppressScratch suppress;
    float least;
};

template <typename T>
__device__ void rpn_level(RpnProposalsArgs const& args, RpnScratch& scratch) {
    RpnWorkspace const parts(args);
    RpnLevel const here(args, parts, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y));
    uint64* const keys = parts.room > kSharedKeys ? here.sorted : scratch.select.keys;
    if (threadIdx.x == 0) scratch.least = 1.0f;
    int const count = rpn_choose(args, here, keys, parts.room, scratch.select);
    auto const load = [&](int i, float4& box) {
        return sigmoid(number_of(keys[i])) >= args.score_threshold && rpn_decode<T>(args, here, index_of(keys[i]), box);
    };
    int const kept = suppress(count, args.nms_threshold, parts.kept, here.boxes, scratch.suppress, load,
                              RpnKeep{keys, here.probabilities, scratch.least});
    if (threadIdx.x == 0) here.counters->kept = static_cast<uint>(kept);
}

// ---- merge ----------------------------------------------------------------------------------------------------------
//! Row of a level's box among all levels': its rank and, of each other level, the number of boxes before it. Of equal
//! probabilities the lower level's comes first. The searches go on side by side, because each step waits for memory.
__device__ inline uint rpn_row(RpnProposalsArgs const& args, RpnWorkspace const& parts, int picture, int level,
                               uint rank, float probability) {
    uint found[kMaxLevels], length[kMaxLevels];
    float const* list[kMaxLevels];
#pragma unroll
    for (int other = 0; other < kMaxLevels; ++other) {
        bool const searched = other < args.levels && other != level;
        RpnLevel const there(args, parts, searched ? other : level, picture);
        list[other] = there.probabilities;
        length[other] = searched ? there.counters->kept : 0;
        found[other] = 0;
    }
    for (uint step = padded_to_sort(static_cast<uint>(parts.kept) + 1) / 2; step > 0; step /= 2) {
#pragma unroll
        for (int other = 0; other < kMaxLevels; ++other) {
            if (found[other] + step > length[other]) continue;
            float const last = list[other][found[other] + step - 1];
            if (last > probability || (last == probability && other < level)) found[other] += step;
        }
    }
    uint row = rank;
#pragma unroll
    for (int other = 0; other < kMaxLevels; ++other)
        row += found[other];
    return row;
}

__device__ inline void rpn_merge(RpnProposalsArgs const& args) {
    RpnWorkspace const parts(args);
    int const picture = static_cast<int>(blockIdx.y);
    uint const rows = static_cast<uint>(args.post_nms_top_n), i = blockIdx.x * blockDim.x + threadIdx.x;
    float4* const proposals = reinterpret_cast<float4*>(args.proposals) + static_cast<long long>(picture) * rows;
    uint total = 0;
    for (int level = 0; level < args.levels; ++level)
        total += RpnLevel(args, parts, level, picture).counters->kept;
    if (i < rows && i >= total) proposals[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

    int const level = static_cast<int>(i) / parts.kept;
    uint const rank = i - static_cast<uint>(level * parts.kept);
    if (level >= args.levels) return;
    RpnLevel const here(args, parts, level, picture);
    if (rank >= here.counters->kept) return;
    uint const row = rpn_row(args, parts, picture, level, rank, here.probabilities[rank]);
    if (row < rows) proposals[row] = here.boxes[rank];
}

// ---- kernels --------------------------------------------------------------------------------------------------------
extern "C" __global__ void __launch_bounds__(kRpnClearThreads) rpn_proposals_clear(RpnProposalsArgs args) {
    rpn_clear(args);
}

extern "C" __global__ void __launch_bounds__(kRpnMergeThreads) rpn_proposals_merge(RpnProposalsArgs args) {
    rpn_merge(args);
}

#define EDGE_MRCNN_RPN_KERNELS(T, suffix)                             \
    extern "C" __global__ void __launch_bounds__(kRpnScanThreads)     \
        rpn_proposals_histogram_##suffix(RpnProposalsArgs args) {     \
        __shared__ uint histogram[kDigits];                           \
        rpn_histogram<T>(args, histogram);                            \
    }                                                                 \
    extern "C" __global__ void __launch_bounds__(kRpnScanThreads)     \
        rpn_proposals_collect_##suffix(RpnProposalsArgs args) {       \
        __shared__ SelectScratch scratch;                             \
        rpn_collect<T>(args, scratch);                                \
    }                                                                 \
    extern "C" __global__ void __launch_bounds__(kRpnLevelThreads, 1) \
        rpn_proposals_level_##suffix(RpnProposalsArgs args) {         \
        __shared__ RpnScratch scratch;                                \
        rpn_level<T>(args, scratch);                                  \
    }

EDGE_MRCNN_RPN_KERNELS(float, f32)
EDGE_MRCNN_RPN_KERNELS(half, f16)
#undef EDGE_MRCNN_RPN_KERNELS

}  // namespace edge_mrcnn
