// Attributes of an op as TensorRT's plugin fields and back. The kinds are those of `AttributeKind` in edge_mrcnn/ops.py
// and their C++ types: int (int32_t), ints (std::vector<int32_t>), float, floats (std::vector<float>), string.
#pragma once

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace edge_mrcnn {

namespace trt = nvinfer1;

//! Throws what becomes a line in TensorRT's log and a plugin that is not made.
inline void require(bool holds, std::string const& message) {
    if (!holds) throw std::invalid_argument(message);
}

inline trt::PluginField make_field(char const* name, int32_t const& value) {
    return {name, &value, trt::PluginFieldType::kINT32, 1};
}

inline trt::PluginField make_field(char const* name, float const& value) {
    return {name, &value, trt::PluginFieldType::kFLOAT32, 1};
}

inline trt::PluginField make_field(char const* name, std::vector<int32_t> const& values) {
    return {name, values.data(), trt::PluginFieldType::kINT32, static_cast<int32_t>(values.size())};
}

inline trt::PluginField make_field(char const* name, std::vector<float> const& values) {
    return {name, values.data(), trt::PluginFieldType::kFLOAT32, static_cast<int32_t>(values.size())};
}

inline trt::PluginField make_field(char const* name, std::string const& text) {
    return {name, text.data(), trt::PluginFieldType::kCHAR, static_cast<int32_t>(text.size())};
}

//! The parser hands integers over as INT32 or INT64.
inline void read_field(trt::PluginField const& field, std::vector<int32_t>& values) {
    bool const wide = field.type == trt::PluginFieldType::kINT64;
    require(wide || field.type == trt::PluginFieldType::kINT32, "must be of whole numbers");
    values.clear();
    for (int32_t i = 0; i < field.length; ++i) {
        int64_t const value =
            wide ? static_cast<int64_t const*>(field.data)[i] : static_cast<int32_t const*>(field.data)[i];
        require(value >= std::numeric_limits<int32_t>::min() && value <= std::numeric_limits<int32_t>::max(),
                std::to_string(value) + " does not fit 32 bits");
        values.push_back(static_cast<int32_t>(value));
    }
}

inline void read_field(trt::PluginField const& field, std::vector<float>& values) {
    require(field.type == trt::PluginFieldType::kFLOAT32, "must be of float32 numbers");
    auto const* const first = static_cast<float const*>(field.data);
    values.assign(first, first + field.length);
}

template <typename T>
void read_field(trt::PluginField const& field, T& value) {
    std::vector<T> values;
    read_field(field, values);
    require(values.size() == 1, "must be one number, got " + std::to_string(values.size()));
    value = values.front();
}

//! The text comes with or without the zero at its end.
inline void read_field(trt::PluginField const& field, std::string& text) {
    require(field.type == trt::PluginFieldType::kCHAR, "must be a string");
    auto const* const first = static_cast<char const*>(field.data);
    text.assign(first, std::find(first, first + field.length, '\0'));
}

//! The op's attributes as fields, whose data stay the op's.
template <typename Op>
std::vector<trt::PluginField> fields_of(Op const& op) {
    std::vector<trt::PluginField> fields;
    Op::attributes(op, [&](char const* name, auto const& value) { fields.push_back(make_field(name, value)); });
    return fields;
}

//! Names and types of the op's attributes without values, by which the parser knows what to read from a node.
template <typename Op>
std::vector<trt::PluginField> declared_fields() {
    std::vector<trt::PluginField> fields = fields_of(Op{});
    for (auto& field : fields)
        field = {field.name, nullptr, field.type, 0};
    return fields;
}

inline trt::PluginField const* find_field(trt::PluginFieldCollection const& fields, std::string const& name) {
    auto const* const end = fields.fields + fields.nbFields;
    auto const* const found =
        std::find_if(fields.fields, end, [&](auto const& field) { return field.name && field.name == name; });
    return found == end ? nullptr : found;
}

//! An op with the attributes that the fields give, each exactly once.
//! Throws std::invalid_argument where one is missing, unknown or of another kind.
template <typename Op>
Op read_op(trt::PluginFieldCollection const& fields) {
    Op op{};
    std::vector<std::string> known{"plugin_version", "plugin_namespace"};  // on every node, for the parser
    Op::attributes(op, [&](char const* name, auto& value) {
        known.emplace_back(name);
        auto const* const field = find_field(fields, name);
        require(field != nullptr, std::string(name) + " is missing");
        require(field->data != nullptr && field->length > 0, std::string(name) + " is empty");
        try {
            read_field(*field, value);
        } catch (std::invalid_argument const& error) {
            throw std::invalid_argument(std::string(name) + " " + error.what());
        }
    });
    for (int32_t i = 0; i < fields.nbFields; ++i) {
        std::string const name = fields.fields[i].name ? fields.fields[i].name : "";
        require(std::find(known.begin(), known.end(), name) != known.end(),
                "'" + name + "' is no attribute of this op");
    }
    op.check();
    return op;
}

}  // namespace edge_mrcnn
