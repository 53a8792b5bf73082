#include "kernels.hpp"
#include "pyramid_roi_align/launch.hpp"

namespace edge_mrcnn {

std::size_t workspace_bytes(PyramidRoiAlignArgs const& args) { return pyramid_roi_align_workspace(args); }

bool supports(PyramidRoiAlignArgs const& args) { return pyramid_roi_align_supports(args); }

cudaError_t enqueue(PyramidRoiAlignArgs const& args, DataType type, cudaStream_t stream) {
    return launch_pyramid_roi_align(args, type, stream);
}

}  // namespace edge_mrcnn
