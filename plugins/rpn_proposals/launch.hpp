// Launches RpnProposals.
#pragma once

#include "common/launch.hpp"
#include "rpn_proposals/rpn_proposals.cuh"

namespace edge_mrcnn {

//! Bytes of workspace; at the largest shapes and batch there is enough for all smaller ones.
inline size_t rpn_proposals_workspace(RpnProposalsArgs const& args) { return RpnWorkspace(args).bytes; }

//! Whether the maps of a level fit each other and the first level's.
inline bool rpn_level_fits(RpnProposalsArgs const& args, int level) {
    Map const &objectness = args.objectness[level], &deltas = args.deltas[level];
    return objectness.channels == args.objectness[0].channels && deltas.channels == 4 * objectness.channels &&
           deltas.height == objectness.height && deltas.width == objectness.width;
}

//! Whether the kernels can take the sizes.
inline bool rpn_proposals_supports(RpnProposalsArgs const& args) {
    if (args.levels < 1 || args.levels > kMaxLevels) return false;
    for (int level = 0; level < args.levels; ++level) {
        if (!rpn_level_fits(args, level)) return false;
    }
    return args.pre_nms_top_n >= 1 && args.post_nms_top_n >= 1 &&
           args.levels * args.objectness[0].channels <= kRpnMaxCellAnchors;
}

inline unsigned rpn_blocks(int work, int of_a_block) {
    return static_cast<unsigned>((work + of_a_block - 1) / of_a_block);
}

template <typename Kernel>
cudaError_t launch_rpn_typed(RpnProposalsArgs const& args, Kernel histogram, Kernel collect, Kernel level,
                             cudaStream_t stream) {
    RpnWorkspace const parts(args);
    unsigned const levels = static_cast<unsigned>(args.levels), batch = static_cast<unsigned>(args.batch);
    int pixels = 0;
    for (int i = 0; i < args.levels; ++i) {
        int const here = args.objectness[i].height * args.objectness[i].width;
        pixels = here > pixels ? here : pixels;
    }
    int const counters = args.batch * args.levels * static_cast<int>(sizeof(RpnCounters) / sizeof(uint4));
    int const rows = args.levels * parts.kept > args.post_nms_top_n ? args.levels * parts.kept : args.post_nms_top_n;
    dim3 const clear_grid(rpn_blocks(counters, kRpnClearThreads));
    dim3 const scan_grid(rpn_blocks(pixels, kRpnScanThreads * kRpnScanPixels), levels, batch);
    dim3 const merge_grid(rpn_blocks(rows, kRpnMergeThreads), batch);

    cudaError_t status = launch(rpn_proposals_clear, clear_grid, kRpnClearThreads, 0, stream, args);
    if (status == cudaSuccess) status = launch(histogram, scan_grid, kRpnScanThreads, 0, stream, args);
    if (status == cudaSuccess) status = launch(collect, scan_grid, kRpnScanThreads, 0, stream, args);
    if (status == cudaSuccess) status = launch(level, dim3(levels, batch), kRpnLevelThreads, 0, stream, args);
    if (status == cudaSuccess) status = launch(rpn_proposals_merge, merge_grid, kRpnMergeThreads, 0, stream, args);
    return status;
}

inline cudaError_t launch_rpn_proposals(RpnProposalsArgs args, DataType type, cudaStream_t stream) {
    if (args.batch == 0) return cudaSuccess;
    if (!rpn_proposals_supports(args)) return cudaErrorInvalidValue;
    if (type == DataType::kFloat16) {
        return launch_rpn_typed(args, rpn_proposals_histogram_f16, rpn_proposals_collect_f16, rpn_proposals_level_f16,
                                stream);
    }
    return launch_rpn_typed(args, rpn_proposals_histogram_f32, rpn_proposals_collect_f32, rpn_proposals_level_f32,
                            stream);
}

}  // namespace edge_mrcnn
