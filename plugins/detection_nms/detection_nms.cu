#include "detection_nms/launch.hpp"
#include "kernels.hpp"

namespace edge_mrcnn {

std::size_t workspace_bytes(DetectionNmsArgs const& args) { return detection_nms_workspace(args); }

bool supports(DetectionNmsArgs const& args) { return detection_nms_supports(args); }

cudaError_t enqueue(DetectionNmsArgs const& args, DataType type, cudaStream_t stream) {
    return launch_detection_nms(args, type, stream);
}

}  // namespace edge_mrcnn
