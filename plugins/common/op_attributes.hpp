// What several ops check of their attributes and make of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "common/attributes.hpp"
#include "common/box_coder.cuh"
#include "common/cuda.cuh"

namespace edge_mrcnn {

//! Checks the strides of a pyramid, one for each level.
inline void require_strides(std::vector<int32_t> const& strides) {
    require(strides.size() <= kMaxLevels, "strides must be of at most " + std::to_string(kMaxLevels) + " levels");
    for (int32_t const stride : strides)
        require(stride > 0, "strides must be positive");
}

inline BoxCoder make_coder(std::vector<float> const& box_weights, float bbox_xform_clip, float min_size) {
    require(box_weights.size() == 4, "box_weights must be 4 numbers");
    BoxCoder coder{};
    std::copy(box_weights.begin(), box_weights.end(), coder.weights);
    coder.clip = bbox_xform_clip;
    coder.min_size = min_size;
    return coder;
}

}  // namespace edge_mrcnn
