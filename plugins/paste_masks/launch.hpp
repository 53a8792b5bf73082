// Launches paste_masks. No workspace is needed.
#pragma once

#include "common/launch.hpp"
#include "paste_masks/paste_masks.cuh"

namespace edge_mrcnn {

//! `type`: of the masks.
inline cudaError_t launch_paste_masks(PasteMasksArgs args, DataType type, cudaStream_t stream) {
    if (args.count > kPastePictures || args.mask_size < 1 || args.detections > 0xffff) return cudaErrorInvalidValue;
    int width = 0, height = 0;
    for (int i = 0; i < args.count; ++i) {
        width = args.pictures[i].width > width ? args.pictures[i].width : width;
        height = args.pictures[i].height > height ? args.pictures[i].height : height;
    }
    if (width == 0 || height == 0) return cudaSuccess;
    dim3 const grid(static_cast<unsigned>((width + kPasteTileWidth - 1) / kPasteTileWidth),
                    static_cast<unsigned>((height + kPasteTileHeight - 1) / kPasteTileHeight),
                    static_cast<unsigned>(args.count));
    auto const kernel = type == DataType::kFloat16 ? paste_masks_f16 : paste_masks_f32;
    return launch(kernel, grid, kPasteThreads, 0, stream, args);
}

}  // namespace edge_mrcnn
