#pragma once

#include "planted/two_launches/two_launches.cuh"

namespace edge_mrcnn {

enum class PlantedType { kFloat32, kFloat16 };

inline size_t two_launches_workspace(TwoLaunchesArgs const& args) {
    return sizeof(float) * size_t(args.rows) * size_t(args.columns);
}

inline cudaError_t launch_two_launches(TwoLaunchesArgs args, PlantedType type, cudaStream_t stream) {
    if (type != PlantedType::kFloat32) return cudaErrorInvalidValue;
    dim3 const grid(unsigned(args.rows));
    if (cudaError_t error = launch(scale_rows, grid, kRowThreads, 0, stream, args)) return error;
    return launch(reverse_rows, grid, kRowThreads, sizeof(float) * size_t(args.columns), stream, args);
}

}  // namespace edge_mrcnn
