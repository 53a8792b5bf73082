// The kernels for host code, without TensorRT: the library edge_mrcnn_kernels. What each is given is in its args.cuh.
#pragma once

#include <cstddef>

#include "common/launch.hpp"
#include "detection_nms/args.cuh"
#include "letterbox/args.cuh"
#include "paste_masks/args.cuh"
#include "pyramid_roi_align/args.cuh"
#include "rpn_proposals/args.cuh"

namespace edge_mrcnn {

//! Bytes of workspace, aligned to 256, that `enqueue` needs; at the largest shapes there is enough for all smaller
//! ones.
std::size_t workspace_bytes(RpnProposalsArgs const& args);
std::size_t workspace_bytes(PyramidRoiAlignArgs const& args);
std::size_t workspace_bytes(DetectionNmsArgs const& args);

//! Whether the kernels can take the sizes.
bool supports(RpnProposalsArgs const& args);
bool supports(PyramidRoiAlignArgs const& args);
bool supports(DetectionNmsArgs const& args);

//! Puts an op's kernels on the stream; cudaErrorInvalidValue where it does not support the sizes.
cudaError_t enqueue(RpnProposalsArgs const& args, DataType type, cudaStream_t stream);
cudaError_t enqueue(PyramidRoiAlignArgs const& args, DataType type, cudaStream_t stream);
cudaError_t enqueue(DetectionNmsArgs const& args, DataType type, cudaStream_t stream);

//! The two around the engine, which need no workspace.
cudaError_t enqueue(LetterboxArgs const& args, cudaStream_t stream);
cudaError_t enqueue(PasteMasksArgs const& args, DataType type, cudaStream_t stream);

}  // namespace edge_mrcnn
