// What every kernel stands on: 16-bit floats, vectors of channels, a few functions. No header is included, so that
// NVRTC compiles the kernels without CUDA's headers, nvcc with them, and the tests run the same text on a CPU.
#pragma once

namespace edge_mrcnn {

using uint = unsigned int;
using uint64 = unsigned long long;

constexpr int kMaxLevels = 5;  // of the feature pyramid, as edge_mrcnn/ops.py has it
constexpr int kWarp = 32;
constexpr uint kAllLanes = 0xffffffffu;

//! IEEE 754 binary16, as TensorRT's kHALF and NumPy's float16 lay it out. Only converted, never computed with.
struct alignas(2) half {
    unsigned short bits;
};

#if defined(__CUDACC__)
__device__ __forceinline__ float to_float(half x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

__device__ __forceinline__ half to_half(float x) {
    half y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
#elif defined(EDGE_MRCNN_ON_CPU)
// On a CPU the header that runs the kernels gives `half_bits_to_float` and `float_to_half_bits`.
inline float to_float(half x) { return half_bits_to_float(x.bits); }
inline half to_half(float x) { return half{float_to_half_bits(x)}; }
#endif

#if defined(__CUDACC__) || defined(EDGE_MRCNN_ON_CPU)  // a host compiler sees the kernels' parameters alone
__device__ __forceinline__ float to_float(float x) { return x; }

//! Rounds to the nearest `T`, ties to even.
template <typename T>
__device__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ half from_float<half>(float x) {
    return to_half(x);
}
#endif

//! Where a map of one picture lies: element (c, y, x) is `data[c * channel_stride + (y * width + x) * pixel_stride]`.
//! TensorRT's kLINEAR has strides (H * W, 1); kHWC8 has (1, C rounded up to 8).
struct Map {
    void const* data;  // of the first picture
    int channels, height, width;
    int channel_stride, pixel_stride;
    long long picture_stride;  // elements from one picture to the next
};

}  // namespace edge_mrcnn
