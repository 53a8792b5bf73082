// Boxes (x1, y1, x2, y2) as float4, in pixels. Products that go into a sum are rounded on their own, so that the
// compiler does not contract them into an FMA: results then equal torchvision's and the function bodies' but for exp.
#pragma once

#include "common/box_coder.cuh"
#include "common/cuda.cuh"

namespace edge_mrcnn {

//! False for NaN and the infinities, whose difference with themselves is NaN.
__device__ __forceinline__ bool is_finite(float x) { return x - x == 0.0f; }

__device__ __forceinline__ bool is_finite(float4 box) {
    return is_finite(box.x) && is_finite(box.y) && is_finite(box.z) && is_finite(box.w);
}

//! Whether a box has no area; one with a NaN has none.
__device__ __forceinline__ bool is_padding(float4 box) { return !(box.z > box.x && box.w > box.y); }

__device__ __forceinline__ float area_of(float4 box) { return __fmul_rn(box.z - box.x, box.w - box.y); }

//! The box's extent along one axis.
struct Side {
    float low, high;
};

__device__ __forceinline__ Side decode_side(Side reference, float shift, float scale) {
    float const size = reference.high - reference.low;
    float const centre = __fadd_rn(__fmul_rn(shift, size), __fadd_rn(reference.low, __fmul_rn(0.5f, size)));
    float const half_size = __fmul_rn(__fmul_rn(expf(scale), size), 0.5f);
    return {__fadd_rn(centre, -half_size), __fadd_rn(centre, half_size)};
}

//! Decodes a candidate, clips it to the content (width, height) and says whether it is one: all numbers were finite and
//! no side is below the least.
//! Source: torchvision models/detection/_utils.py `BoxCoder.decode_single`; ops/boxes.py `clip_boxes_to_image`,
//! `remove_small_boxes`.
__device__ inline bool decode_candidate(BoxCoder const& coder, float4 reference, float4 deltas, float2 content,
                                        float4& box) {
    float const scale_x = fminf(__fdiv_rn(deltas.z, coder.weights[2]), coder.clip);
    float const scale_y = fminf(__fdiv_rn(deltas.w, coder.weights[3]), coder.clip);
    Side const x = decode_side({reference.x, reference.z}, __fdiv_rn(deltas.x, coder.weights[0]), scale_x);
    Side const y = decode_side({reference.y, reference.w}, __fdiv_rn(deltas.y, coder.weights[1]), scale_y);
    float4 const decoded = make_float4(x.low, y.low, x.high, y.high);
    box = make_float4(fminf(fmaxf(x.low, 0.0f), content.x), fminf(fmaxf(y.low, 0.0f), content.y),
                      fminf(fmaxf(x.high, 0.0f), content.x), fminf(fmaxf(y.high, 0.0f), content.y));
    bool const large = box.z - box.x >= coder.min_size && box.w - box.y >= coder.min_size;
    return large && is_finite(deltas) && is_finite(decoded);  // fminf and fmaxf hide a NaN
}

//! Area that two boxes share; not positive where they share none.
__device__ __forceinline__ float intersection(float4 a, float4 b) {
    float const width = fminf(a.z, b.z) - fmaxf(a.x, b.x);
    float const height = fminf(a.w, b.w) - fmaxf(a.y, b.y);
    return __fmul_rn(fmaxf(width, 0.0f), height);
}

//! Intersection over union, of boxes that share an area.
__device__ __forceinline__ float iou(float inter, float area_a, float area_b) {
    return __fdiv_rn(inter, __fadd_rn(__fadd_rn(area_a, area_b), -inter));
}

}  // namespace edge_mrcnn
