// How a launcher starts a kernel. Launchers (plugins/<op>/launch.hpp) are host code that knows nothing of TensorRT; the
// tests run the same text on a CPU, where another header gives everything below but `DataType`.
#pragma once

#if !defined(EDGE_MRCNN_ON_CPU)
#include <cuda_runtime_api.h>
#endif

#include <cstddef>

namespace edge_mrcnn {

//! Type of an op's feature tensors.
enum class DataType { kFloat32, kFloat16 };

#if !defined(EDGE_MRCNN_ON_CPU)
//! Puts a kernel whose one parameter is `args` on the stream; `shared` is its dynamic shared memory in bytes.
template <typename Args>
cudaError_t launch(void (*kernel)(Args), dim3 grid, int block, std::size_t shared, cudaStream_t stream,
                   Args const& args) {
    void* parameters[] = {const_cast<Args*>(&args)};
    return cudaLaunchKernel(reinterpret_cast<void const*>(kernel), grid, dim3(static_cast<unsigned>(block)), parameters,
                            shared, stream);
}
#endif

}  // namespace edge_mrcnn
