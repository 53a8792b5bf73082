// Launches letterbox. No workspace is needed.
#pragma once

#include "common/launch.hpp"
#include "letterbox/letterbox.cuh"

namespace edge_mrcnn {

inline cudaError_t launch_letterbox(LetterboxArgs args, cudaStream_t stream) {
    if (args.count > kLetterboxPictures || args.canvas_width < 1 || args.canvas_height < 1)
        return cudaErrorInvalidValue;
    if (args.count == 0) return cudaSuccess;
    dim3 const grid(static_cast<unsigned>((args.canvas_width + kWarp - 1) / kWarp),
                    static_cast<unsigned>((args.canvas_height + kLetterboxRows - 1) / kLetterboxRows),
                    static_cast<unsigned>(args.count));
    return launch(letterbox, grid, kLetterboxThreads, 0, stream, args);
}

}  // namespace edge_mrcnn
