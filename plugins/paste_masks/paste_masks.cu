#include "kernels.hpp"
#include "paste_masks/launch.hpp"

namespace edge_mrcnn {

cudaError_t enqueue(PasteMasksArgs const& args, DataType type, cudaStream_t stream) {
    return launch_paste_masks(args, type, stream);
}

}  // namespace edge_mrcnn
