// How a workspace is divided, on the host (its size) and on the GPU (where the parts are).
#pragma once

#include "common/cuda.cuh"

namespace edge_mrcnn {

//! Bytes to which each part is aligned, as edge_mrcnn/gpu/launches.py has it.
constexpr uint64 kAlignment = 256;

//! Parts one after the other; `bytes` is the end of the last.
struct WorkspaceParts {
    uint64 bytes = 0;

    //! Offset of a new part of that many bytes.
    __host__ __device__ uint64 add(uint64 size) {
        uint64 const offset = bytes;
        bytes += (size + kAlignment - 1) / kAlignment * kAlignment;
        return offset;
    }
};

//! The part of a workspace at an offset.
template <typename T>
__device__ __forceinline__ T* part_of(void* workspace, uint64 offset) {
    return reinterpret_cast<T*>(static_cast<unsigned char*>(workspace) + offset);
}

}  // namespace edge_mrcnn
