// Launches PyramidRoiAlign.
#pragma once

#include "common/launch.hpp"
#include "pyramid_roi_align/pyramid_roi_align.cuh"

namespace edge_mrcnn {

constexpr int kRoiAlignStageBytes = 28 << 10;  // of a block at most: two blocks then fit an SM of 64 KB (sm_75)
constexpr int kRoiAlignMaxOutput = 128;        // bins of a row, for which the stage has room

inline size_t pyramid_roi_align_workspace(PyramidRoiAlignArgs const& /*args*/) { return 0; }

//! Whether the kernels can take the sizes.
inline bool pyramid_roi_align_supports(PyramidRoiAlignArgs const& args) {
    return args.level_count >= 1 && args.level_count <= kMaxLevels && args.output_size >= 1 &&
           args.output_size <= kRoiAlignMaxOutput && args.sampling_ratio >= 0 && args.levels[0].channels >= 1;
}

inline int roi_align_ceil_div(int number, int by) { return (number + by - 1) / by; }

//! Size of the chunks, `most` or less, that divide a number as evenly as can be.
inline int roi_align_chunk(int number, int most) {
    return roi_align_ceil_div(number, roi_align_ceil_div(number, most));
}

//! Shared memory for a block's part of a linear output, from channels-last features.
inline int roi_align_stage_bytes(int groups, int rows, int output_size) {
    return groups * (8 * rows * output_size + 2) * static_cast<int>(sizeof(half));
}

//! Channels-last features: whole cells of 256 channels where the output allows it.
inline RoiAlignTile hwc8_tile(PyramidRoiAlignArgs const& args) {
    int const size = args.output_size;
    int groups = roi_align_chunk(roi_align_ceil_div(args.levels[0].channels, 8), kWarp);
    int rows = kRoiAlignHwc8Threads / groups;
    if (!args.pooled_hwc8) {
        // Fewer channels and all rows: then a block's part of the output is contiguous.
        while (groups > 4 && (groups * size > kRoiAlignHwc8Threads ||
                              roi_align_stage_bytes(groups, size, size) > kRoiAlignStageBytes))
            groups = (groups + 1) / 2;
        rows = kRoiAlignHwc8Threads / groups;
        while (rows > 1 && roi_align_stage_bytes(groups, rows, size) > kRoiAlignStageBytes)
            --rows;
    }
    return {8 * groups, roi_align_chunk(size, rows)};
}

//! Linear features.
inline RoiAlignTile linear_tile(PyramidRoiAlignArgs const& args) {
    int const channels = args.levels[0].channels;
    return {channels < kRoiAlignLinearChannels ? channels : kRoiAlignLinearChannels,
            roi_align_chunk(args.output_size, kRoiAlignLinearRows)};
}

inline cudaError_t launch_pyramid_roi_align(PyramidRoiAlignArgs args, DataType type, cudaStream_t stream) {
    bool const channels_last = args.levels[0].pixel_stride != 1, wide = type == DataType::kFloat32;
    if (!pyramid_roi_align_supports(args) || (wide && (channels_last || args.pooled_hwc8)))
        return cudaErrorInvalidValue;
    if (args.batch == 0 || args.rois_per_picture == 0) return cudaSuccess;
    args.tile = channels_last ? hwc8_tile(args) : linear_tile(args);
    int const size = args.output_size, rows = args.tile.bin_rows;
    dim3 const grid(static_cast<unsigned>(args.batch * args.rois_per_picture),
                    static_cast<unsigned>(roi_align_ceil_div(args.levels[0].channels, args.tile.channels)),
                    static_cast<unsigned>(roi_align_ceil_div(size, rows)));
    if (!channels_last) {
        auto const kernel = wide ? pyramid_roi_align_f32 : pyramid_roi_align_f16;
        size_t const shared = sizeof(RoiAlignBlock) + rows * kRoiAlignSlots * sizeof(float);
        return launch(kernel, grid, kRoiAlignLinearThreads, shared, stream, args);
    }
    int const groups = args.tile.channels / 8, threads = roi_align_ceil_div(groups * rows, kWarp) * kWarp;
    if (args.pooled_hwc8) {
        return launch(pyramid_roi_align_hwc8_f16, grid, threads, sizeof(RoiAlignBlock), stream, args);
    }
    size_t const shared = sizeof(RoiAlignBlock) + static_cast<size_t>(roi_align_stage_bytes(groups, rows, size));
    return launch(pyramid_roi_align_hwc8_to_linear_f16, grid, threads, shared, stream, args);
}

}  // namespace edge_mrcnn
