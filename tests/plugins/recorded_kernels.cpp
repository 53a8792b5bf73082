// In place of the library edge_mrcnn_kernels: nothing runs, and what would have been is kept for the test.
#include <cstdio>
#include <string>

#include "kernels.hpp"

namespace {

std::string recorded;

template <typename Args>
cudaError_t record(Args const& args, edge_mrcnn::DataType type) {
    recorded = type == edge_mrcnn::DataType::kFloat16 ? "float16 " : "float32 ";
    auto const* const bytes = reinterpret_cast<unsigned char const*>(&args);
    for (std::size_t i = 0; i < sizeof(Args); ++i) {
        char text[3];
        std::snprintf(text, sizeof(text), "%02x", bytes[i]);
        recorded += text;
    }
    return cudaSuccess;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) char const* recorded_args() { return recorded.c_str(); }

namespace edge_mrcnn {

std::size_t workspace_bytes(RpnProposalsArgs const& /*args*/) { return 0; }
std::size_t workspace_bytes(PyramidRoiAlignArgs const& /*args*/) { return 0; }
std::size_t workspace_bytes(DetectionNmsArgs const& /*args*/) { return 0; }

bool supports(RpnProposalsArgs const& /*args*/) { return true; }
bool supports(PyramidRoiAlignArgs const& /*args*/) { return true; }
bool supports(DetectionNmsArgs const& /*args*/) { return true; }

cudaError_t enqueue(RpnProposalsArgs const& args, DataType type, cudaStream_t /*stream*/) { return record(args, type); }
cudaError_t enqueue(PyramidRoiAlignArgs const& args, DataType type, cudaStream_t /*stream*/) {
    return record(args, type);
}
cudaError_t enqueue(DetectionNmsArgs const& args, DataType type, cudaStream_t /*stream*/) { return record(args, type); }

}  // namespace edge_mrcnn
