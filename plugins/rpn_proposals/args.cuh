// The parameter of RpnProposals' kernels, readable by nvcc, NVRTC and host compilers.
#pragma once

#include "common/box_coder.cuh"
#include "common/cuda.cuh"

namespace edge_mrcnn {

constexpr int kRpnMaxCellAnchors = 128;  // over all levels

struct RpnProposalsArgs {
    float const* image_hw;  // (batch, 2)
    Map objectness[kMaxLevels];
    Map deltas[kMaxLevels];
    float* proposals;  // (batch, post_nms_top_n, 4)
    void* workspace;
    float cell_anchors[4 * kRpnMaxCellAnchors];
    float stride_y[kMaxLevels], stride_x[kMaxLevels];  // pixels, whole numbers
    BoxCoder coder;
    float nms_threshold, score_threshold;
    int levels, batch;
    int pre_nms_top_n, post_nms_top_n;
};

}  // namespace edge_mrcnn
