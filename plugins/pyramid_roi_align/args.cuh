// The parameter of PyramidRoiAlign's kernels, readable by nvcc, NVRTC and host compilers.
#pragma once

#include "common/cuda.cuh"

namespace edge_mrcnn {

//! Which part of the output one block makes; blockIdx is (roi, chunk of channels, chunk of bin rows).
struct RoiAlignTile {
    int channels;  // of a chunk; with channels-last features a multiple of 8
    int bin_rows;  // of a chunk
};

struct PyramidRoiAlignArgs {
    float const* rois;                  // (batch, rois_per_picture, 4), xyxy in pixels of the canvas
    void* pooled;                       // (batch * rois_per_picture, channels, output_size, output_size)
    Map levels[kMaxLevels];             // all of one layout
    float inverse_strides[kMaxLevels];  // exact: strides are powers of two
    float level_areas[kMaxLevels - 1];  // square pixels from which a roi belongs to level 1, 2, ...
    int level_count, batch, rois_per_picture;
    int output_size, sampling_ratio, aligned;
    int pooled_hwc8;    // 1: pooled is kHWC8, 0: linear
    RoiAlignTile tile;  // set by the launcher
};

}  // namespace edge_mrcnn
