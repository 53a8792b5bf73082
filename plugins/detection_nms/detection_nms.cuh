// DetectionNms: scores, boxes, suppression within each class, and the best detections of each picture.
//
// Must move: proposals and class logits once, and 4 deltas, a 32-byte sector, of each candidate. 1000 proposals, 91
// classes: 380 kB in float32, and as much again to write the scores and to read them: below 1 us at 3 TB/s (H100), 11
// us at 102 GB/s (Orin NX), mostly from and to the L2 cache. What limits it otherwise: three launches of little work
// wait for each other, and within them the steps of sorting and suppressing. Hence:
//   scores      probabilities, class by class: 8 proposals to a warp, so that what it writes of a class is a sector
//   classes     a block a class: collect the candidates, sort, decode, suppress; most classes have none and end at once
//   best        a block a picture: choose among what the classes keep, sort, write
#pragma once

#include "common/box.cuh"
#include "common/select.cuh"
#include "common/suppress.cuh"
#include "common/workspace.cuh"
#include "detection_nms/args.cuh"

namespace edge_mrcnn {

constexpr int kNmsScoreThreads = 128;
constexpr int kNmsWarpProposals = 8;  // a warp's
constexpr int kNmsScoreProposals = kNmsScoreThreads / kWarp * kNmsWarpProposals;
constexpr int kNmsManyClasses = 8;           // with more foreground classes, few candidates are expected in each
constexpr int kNmsSmallClassThreads = 256;   // of a block then
constexpr int kNmsLargeClassThreads = 1024;  // and else
constexpr int kNmsBestThreads = 512;
constexpr float kNmsNoScore = -1.0f;
constexpr int kScoreBits = 63;                      // of a score's key that vary:
constexpr uint64 kScoreLeast = 1ull << kScoreBits;  // the uppermost is set, because scores are not negative

__host__ __device__ inline int nms_foreground(DetectionNmsArgs const& args) { return args.classes - 1; }

__host__ __device__ inline uint nms_room(int keys) {
    return keys <= kSharedKeys ? kSharedKeys : padded_to_sort(static_cast<uint>(keys));
}

//! The workspace, in parts. Slots are picture by picture, those of classes class by class within.
struct NmsWorkspace {
    uint64 bytes;
    uint64 lengths, scores, sorted, boxes, kept, chosen;  // offsets
    int pitch;                   // proposals from one class' scores to the next, so that they begin with a sector
    int most;                    // detections of a class
    uint class_room, best_room;  // keys to be sorted; up to kSharedKeys they are in shared memory

    __host__ __device__ explicit NmsWorkspace(DetectionNmsArgs const& args) {
        most = args.detections < args.proposals ? args.detections : args.proposals;
        pitch = (args.proposals + kNmsWarpProposals - 1) / kNmsWarpProposals * kNmsWarpProposals;
        class_room = nms_room(args.proposals);
        best_room = nms_room(args.detections);
        uint64 const batch = static_cast<uint64>(args.batch);
        uint64 const slots = batch * static_cast<uint64>(nms_foreground(args));
        WorkspaceParts parts;
        lengths = parts.add(batch * sizeof(uint));
        scores = parts.add(slots * static_cast<uint64>(pitch) * sizeof(float));
        sorted = parts.add(class_room > kSharedKeys ? slots * class_room * sizeof(uint64) : 0);
        boxes = parts.add(slots * static_cast<uint64>(most) * sizeof(float4));
        kept = parts.add(slots * static_cast<uint64>(most) * sizeof(uint64));
        chosen = parts.add(best_room > kSharedKeys ? batch * best_room * sizeof(uint64) : 0);
        bytes = parts.bytes;
    }
};

__device__ __forceinline__ float4 nms_proposal(DetectionNmsArgs const& args, int row) {
    return reinterpret_cast<float4 const*>(args.proposal_boxes)[row];
}

//! Decodes the box of a picture's proposal for a foreground class; false where it is no candidate.
template <typename T>
__device__ __forceinline__ bool nms_decode(DetectionNmsArgs const& args, int picture, int proposal, int foreground,
                                           float4& box) {
    int const row = picture * args.proposals + proposal;
    long long const first = args.class_agnostic
                                ? 4ll * row
                                : 4 * (static_cast<long long>(row) * args.classes + foreground + args.first_class);
    T const* const delta = static_cast<T const*>(args.box_deltas) + first;
    float4 const deltas = make_float4(to_float(delta[0]), to_float(delta[1]), to_float(delta[2]), to_float(delta[3]));
    float2 const content = make_float2(args.image_hw[2 * picture + 1], args.image_hw[2 * picture]);
    return decode_candidate(args.coder, nms_proposal(args, row), deltas, content, box);
}

// ---- scores ---------------------------------------------------------------------------------------------------------
//! Softmax of 8 proposals by a warp, 4 lanes to a proposal. A NaN makes the sum NaN and with it all probabilities; an
//! infinite logit does too.
template <typename T>
__device__ void nms_scores(DetectionNmsArgs const& args) {
    constexpr int kLanes = kWarp / kNmsWarpProposals;
    NmsWorkspace const parts(args);
    int const picture = static_cast<int>(blockIdx.y);
    if (blockIdx.x == 0 && threadIdx.x == 0) part_of<uint>(args.workspace, parts.lengths)[picture] = 0;
    int const warp = static_cast<int>(blockIdx.x) * (kNmsScoreThreads / kWarp) + warp_index();
    int const proposal = warp * kNmsWarpProposals + lane_index() % kNmsWarpProposals;
    int const part = lane_index() / kNmsWarpProposals;
    bool const exists = proposal < args.proposals;
    int const row = picture * args.proposals + (exists ? proposal : 0);
    T const* const logits = static_cast<T const*>(args.class_logits) + static_cast<long long>(row) * args.classes;
    int const classes = exists ? args.classes : 0;

    float highest = -kHighestFloat;
#pragma unroll 4
    for (int k = part; k < classes; k += kLanes)
        highest = fmaxf(highest, to_float(logits[k]));
    for (int step = kNmsWarpProposals; step < kWarp; step *= 2)
        highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, step));
    float sum = 0.0f;
#pragma unroll 4
    for (int k = part; k < classes; k += kLanes)
        sum += expf(to_float(logits[k]) - highest);
    for (int step = kNmsWarpProposals; step < kWarp; step *= 2)
        sum += __shfl_xor_sync(kAllLanes, sum, step);

    bool const usable = exists && !is_padding(nms_proposal(args, row));
    int const foreground = exists ? nms_foreground(args) : 0;
    long long const first = static_cast<long long>(picture) * nms_foreground(args) * parts.pitch + proposal;
    float* const scores = part_of<float>(args.workspace, parts.scores) + first;
#pragma unroll 4
    for (int k = part; k < foreground; k += kLanes) {
        float const score = expf(to_float(logits[k + args.first_class]) - highest) / sum;
        scores[static_cast<long long>(k) * parts.pitch] = usable && score > args.score_threshold ? score : kNmsNoScore;
    }
}

// ---- classes --------------------------------------------------------------------------------------------------------
//! Moves the keys of what suppression leaves to the front.
struct NmsKeep {
    uint64* keys;

    __device__ void operator()(uint lanes, int i, int rank) const {
        bool const kept = lanes >> lane_index() & 1;
        uint64 const key = kept ? keys[i] : 0;
        __syncwarp();
        if (kept) keys[rank] = key;
    }
};

//! Puts the keys of a class' candidates into `keys`, sorted; returns how many there are.
__device__ inline int nms_choose(float const* scores, int proposals, uint64* keys, SelectScratch& scratch) {
    if (threadIdx.x == 0) scratch.length = 0;
    __syncthreads();
    for_each(scores, static_cast<uint>(proposals), kNmsNoScore, [&](uint proposal, float score) {
        uint const place = append_place(score >= 0.0f, &scratch.length);
        if (score >= 0.0f) keys[place] = make_key(score, proposal);
    });
    __syncthreads();
    uint const length = scratch.length;
    if (length > 0) sort_descending(keys, length);
    return static_cast<int>(length);
}

struct NmsScratch {
    SelectScratch select;
    SuppressScratch suppress;
    uint place;
};

template <typename T>
__device__ void nms_classes(DetectionNmsArgs const& args, NmsScratch& scratch) {
    NmsWorkspace const parts(args);
    int const foreground = static_cast<int>(blockIdx.x), picture = static_cast<int>(blockIdx.y);
    long long const first_slot = static_cast<long long>(picture) * nms_foreground(args), slot = first_slot + foreground;
    uint64* const keys = parts.class_room > kSharedKeys
                             ? part_of<uint64>(args.workspace, parts.sorted) + slot * parts.class_room
                             : scratch.select.keys;
    float const* const scores = part_of<float>(args.workspace, parts.scores) + slot * parts.pitch;
    int const count = nms_choose(scores, args.proposals, keys, scratch.select);
    if (count == 0) return;

    auto const load = [&](int i, float4& box) {
        return nms_decode<T>(args, picture, static_cast<int>(index_of(keys[i])), foreground, box);
    };
    float4* const boxes = part_of<float4>(args.workspace, parts.boxes) + slot * parts.most;
    uint const kept = static_cast<uint>(
        suppress(count, args.nms_threshold, args.detections, boxes, scratch.suppress, load, NmsKeep{keys}));

    uint64* const list = part_of<uint64>(args.workspace, parts.kept) + first_slot * parts.most;
    if (threadIdx.x == 0) scratch.place = atomicAdd(part_of<uint>(args.workspace, parts.lengths) + picture, kept);
    __syncthreads();
    for (uint i = threadIdx.x; i < kept; i += blockDim.x) {
        uint const index = index_of(keys[i]) * static_cast<uint>(nms_foreground(args)) + static_cast<uint>(foreground);
        list[scratch.place + i] = make_key(number_of(keys[i]), index);
    }
}

// ---- best -----------------------------------------------------------------------------------------------------------
//! Writes a row of a picture's detections: of a key by proposal and class, or zeros for key 0. The box is decoded once
//! more, which gives the same numbers and needs no memory between the kernels.
template <typename T>
__device__ __forceinline__ void nms_write(DetectionNmsArgs const& args, int picture, int rank, uint64 key) {
    float4 box = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float score = 0.0f;
    int label = 0;
    if (key != 0) {
        int const proposal = static_cast<int>(index_of(key)) / nms_foreground(args);
        int const foreground = static_cast<int>(index_of(key)) % nms_foreground(args);
        nms_decode<T>(args, picture, proposal, foreground, box);
        score = number_of(key);
        label = foreground + args.first_class;
    }
    long long const row = static_cast<long long>(picture) * args.detections + rank;
    reinterpret_cast<float4*>(args.boxes)[row] = box;
    args.scores[row] = score;
    args.labels[row] = label;
}

template <typename T>
__device__ void nms_best(DetectionNmsArgs const& args, SelectScratch& scratch) {
    NmsWorkspace const parts(args);
    int const picture = static_cast<int>(blockIdx.x);
    uint64 const* const list = part_of<uint64>(args.workspace, parts.kept) +
                               static_cast<long long>(picture) * nms_foreground(args) * parts.most;
    uint64* const keys = parts.best_room > kSharedKeys ? part_of<uint64>(args.workspace, parts.chosen) +
                                                             static_cast<long long>(picture) * parts.best_room
                                                       : scratch.keys;
    uint const most = static_cast<uint>(args.detections);
    uint const length = part_of<uint>(args.workspace, parts.lengths)[picture];
    uint64 least = 0;
    if (length > parts.best_room) {
        least = find_least(list, length, most, parts.best_room, kScoreBits, kScoreLeast, scratch);
    }
    if (threadIdx.x == 0) scratch.length = 0;
    __syncthreads();
    append_keys(list, length, least, keys, &scratch.length);
    __syncthreads();
    uint const number = min(scratch.length, most);
    sort_descending(keys, scratch.length);
    if (threadIdx.x == 0) args.num_detections[picture] = static_cast<int>(number);
    for (uint i = threadIdx.x; i < most; i += kNmsBestThreads) {
        nms_write<T>(args, picture, static_cast<int>(i), i < number ? keys[i] : 0);
    }
}

// ---- kernels --------------------------------------------------------------------------------------------------------
#define EDGE_MRCNN_NMS_KERNELS(T, suffix)                                                                              \
    extern "C" __global__ void __launch_bounds__(kNmsScoreThreads)                                                     \
        detection_nms_scores_##suffix(DetectionNmsArgs args) {                                                         \
        nms_scores<T>(args);                                                                                           \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(kNmsLargeClassThreads, 1)                                             \
        detection_nms_classes_##suffix(DetectionNmsArgs args) {                                                        \
        __shared__ NmsScratch scratch;                                                                                 \
        nms_classes<T>(args, scratch);                                                                                 \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(kNmsBestThreads) detection_nms_best_##suffix(DetectionNmsArgs args) { \
        __shared__ SelectScratch scratch;                                                                              \
        nms_best<T>(args, scratch);                                                                                    \
    }

EDGE_MRCNN_NMS_KERNELS(float, f32)
EDGE_MRCNN_NMS_KERNELS(half, f16)
#undef EDGE_MRCNN_NMS_KERNELS

}  // namespace edge_mrcnn
