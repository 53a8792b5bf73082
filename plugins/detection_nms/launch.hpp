// Launches DetectionNms.
#pragma once

#include "common/launch.hpp"
#include "detection_nms/detection_nms.cuh"

namespace edge_mrcnn {

//! Bytes of workspace; at the largest shapes and batch there is enough for all smaller ones.
inline size_t detection_nms_workspace(DetectionNmsArgs const& args) { return NmsWorkspace(args).bytes; }

//! Whether the kernels can take the sizes.
inline bool detection_nms_supports(DetectionNmsArgs const& args) {
    return args.classes >= 1 && args.detections >= 1 && args.proposals >= 0;
}

template <typename Kernel>
cudaError_t launch_nms_typed(DetectionNmsArgs const& args, Kernel scores, Kernel classes, Kernel best,
                             cudaStream_t stream) {
    unsigned const batch = static_cast<unsigned>(args.batch), foreground = static_cast<unsigned>(nms_foreground(args));
    unsigned const groups = static_cast<unsigned>((args.proposals + kNmsScoreProposals - 1) / kNmsScoreProposals);
    int const class_threads = nms_foreground(args) > kNmsManyClasses ? kNmsSmallClassThreads : kNmsLargeClassThreads;
    // Without proposals too: `scores` sets the lists' lengths to zero.
    cudaError_t status = launch(scores, dim3(groups > 0 ? groups : 1, batch), kNmsScoreThreads, 0, stream, args);
    if (status == cudaSuccess && foreground > 0) {
        status = launch(classes, dim3(foreground, batch), class_threads, 0, stream, args);
    }
    if (status == cudaSuccess) status = launch(best, dim3(batch), kNmsBestThreads, 0, stream, args);
    return status;
}

inline cudaError_t launch_detection_nms(DetectionNmsArgs args, DataType type, cudaStream_t stream) {
    if (args.batch == 0) return cudaSuccess;
    if (!detection_nms_supports(args)) return cudaErrorInvalidValue;
    if (type == DataType::kFloat16) {
        return launch_nms_typed(args, detection_nms_scores_f16, detection_nms_classes_f16, detection_nms_best_f16,
                                stream);
    }
    return launch_nms_typed(args, detection_nms_scores_f32, detection_nms_classes_f32, detection_nms_best_f32, stream);
}

}  // namespace edge_mrcnn
