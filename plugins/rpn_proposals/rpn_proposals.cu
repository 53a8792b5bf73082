#include "kernels.hpp"
#include "rpn_proposals/launch.hpp"

namespace edge_mrcnn {

std::size_t workspace_bytes(RpnProposalsArgs const& args) { return rpn_proposals_workspace(args); }

bool supports(RpnProposalsArgs const& args) { return rpn_proposals_supports(args); }

cudaError_t enqueue(RpnProposalsArgs const& args, DataType type, cudaStream_t stream) {
    return launch_rpn_proposals(args, type, stream);
}

}  // namespace edge_mrcnn
