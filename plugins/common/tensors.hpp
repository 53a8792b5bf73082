// Inputs and outputs of an op: the table that edge_mrcnn/ops.py has as `TensorSpec`, and what follows from it for every
// op alike: number of levels, types, layouts, strides.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "common/attributes.hpp"
#include "common/cuda.cuh"
#include "common/launch.hpp"

namespace edge_mrcnn {

enum class Dtype {
    kFloat32,
    kInt32,
    kFeatures,  // float32 or float16, the same for all tensors of a node so marked
};

//! As `TensorSpec` of edge_mrcnn/ops.py; a tensor `per_level` stands for one of each pyramid level.
struct TensorSpec {
    char const* name;
    Dtype dtype;
    int32_t rank;
    bool per_level = false;
};

//! A tensor as TensorRT describes it, in whichever phase; `dims` are the largest there can be while an engine is built.
struct Tensor {
    void const* data = nullptr;
    trt::Dims dims{};
    trt::DataType type = trt::DataType::kFLOAT;
    trt::TensorFormat format = trt::TensorFormat::kLINEAR;

    //! Length of a dimension.
    int size(int32_t dim) const {
        require(dim < dims.nbDims && dims.d[dim] >= 0 && dims.d[dim] <= std::numeric_limits<int>::max(),
                "a dimension is unknown or too large");
        return static_cast<int>(dims.d[dim]);
    }

    template <typename T>
    T const* as() const {
        return static_cast<T const*>(data);
    }

    //! For an output.
    template <typename T>
    T* as_mutable() const {
        return static_cast<T*>(const_cast<void*>(data));
    }
};

//! Where the maps `(B, C, H, W)` of a batch lie.
inline Map map_of(Tensor const& tensor) {
    int const channels = tensor.size(1), height = tensor.size(2), width = tensor.size(3);
    int64_t const pixels = int64_t{height} * width;
    require(pixels <= std::numeric_limits<int>::max(), "a feature map is too large");
    if (tensor.format == trt::TensorFormat::kLINEAR) {
        return {tensor.data, channels, height, width, static_cast<int>(pixels), 1, channels * pixels};
    }
    int const padded = (channels + 7) / 8 * 8;
    return {tensor.data, channels, height, width, 1, padded, padded * pixels};
}

//! The table of an op's inputs or outputs, in the order of the node's; levels repeat a tensor in place.
template <typename Specs>
TensorSpec const& spec_at(Specs const& specs, int32_t levels, int32_t position) {
    for (auto const& spec : specs) {
        int32_t const count = spec.per_level ? levels : 1;
        if (position < count) return spec;
        position -= count;
    }
    throw std::invalid_argument("there is no tensor of that number");
}

//! Number of inputs of a node with that many pyramid levels.
template <typename Op>
int32_t count_inputs(int32_t levels) {
    int32_t count = 0;
    for (auto const& spec : Op::kInputs)
        count += spec.per_level ? levels : 1;
    return count;
}

//! Number of pyramid levels of a node with that many inputs.
template <typename Op>
int32_t levels_of(int32_t inputs) {
    for (int32_t levels = 1; levels <= kMaxLevels; ++levels) {
        if (count_inputs<Op>(levels) == inputs) return levels;
    }
    throw std::invalid_argument("cannot have " + std::to_string(inputs) + " inputs");
}

//! Position of the first input whose type is open.
template <typename Op>
int32_t first_feature(int32_t levels) {
    int32_t position = 0;
    while (spec_at(Op::kInputs, levels, position).dtype != Dtype::kFeatures)
        ++position;
    return position;
}

inline trt::DataType type_of(TensorSpec const& spec, trt::DataType features) {
    if (spec.dtype == Dtype::kFeatures) return features;
    return spec.dtype == Dtype::kInt32 ? trt::DataType::kINT32 : trt::DataType::kFLOAT;
}

//! float32 and float16, and float16 maps also with their channels last.
inline bool is_feature_format(trt::DataType type, trt::TensorFormat format, int32_t rank) {
    if (format == trt::TensorFormat::kLINEAR) return type == trt::DataType::kFLOAT || type == trt::DataType::kHALF;
    return rank == 4 && format == trt::TensorFormat::kHWC8 && type == trt::DataType::kHALF;
}

//! Whether a tensor may have the type and layout that TensorRT proposes, given those of the tensors before it.
//! Feature inputs share both; a feature output shares the type and chooses its layout alone.
template <typename Op>
bool supports_format(int32_t position, trt::DynamicPluginTensorDesc const* tensors, int32_t inputs) {
    int32_t const levels = levels_of<Op>(inputs);
    bool const is_input = position < inputs;
    auto const& spec = is_input ? spec_at(Op::kInputs, levels, position) : spec_at(Op::kOutputs, 1, position - inputs);
    auto const& desc = tensors[position].desc;
    if (spec.dtype != Dtype::kFeatures) {
        return desc.type == type_of(spec, desc.type) && desc.format == trt::TensorFormat::kLINEAR;
    }
    if (!is_feature_format(desc.type, desc.format, spec.rank)) return false;
    auto const& like = tensors[first_feature<Op>(levels)].desc;  // may be this one
    return desc.type == like.type && (!is_input || desc.format == like.format);
}

}  // namespace edge_mrcnn
