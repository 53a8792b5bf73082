#include "kernels.hpp"
#include "letterbox/launch.hpp"

namespace edge_mrcnn {

cudaError_t enqueue(LetterboxArgs const& args, cudaStream_t stream) { return launch_letterbox(args, stream); }

}  // namespace edge_mrcnn
