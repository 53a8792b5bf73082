// One TensorRT plugin and creator for every op. An op is a struct of its attributes with
//
//   kName, kInputs, kOutputs   the contract of edge_mrcnn/ops.py
//   attributes(op, visit)      calls visit(name, value) for each attribute, in the contract's order
//   levels()                   number of pyramid levels its attributes are for
//   check()                    throws std::invalid_argument where an attribute has no meaning
//   output_shapes(...)         from expressions of the inputs' shapes
//   make_args(...)             the kernels' parameters from the tensors
//
// and its launcher comes from plugins/kernels.hpp. What an op throws becomes a line in TensorRT's log and a failure
// that TensorRT understands: no exception leaves a plugin.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <exception>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "common/attributes.hpp"
#include "common/log.hpp"
#include "common/tensors.hpp"
#include "kernels.hpp"

namespace edge_mrcnn {

constexpr char kNamespace[] = "edge_mrcnn";
constexpr char kVersion[] = "1";
constexpr int32_t kFailed = -1;

constexpr int kMaxInputs = 1 + 2 * kMaxLevels;
constexpr int kMaxOutputs = 4;

//! What `body` gives; `failed` where it throws, with a line in the log.
template <typename Result, typename Body>
Result guarded(char const* where, Result failed, Body const& body) noexcept {
    try {
        return body();
    } catch (std::exception const& error) {
        report_error(where, error.what());
    } catch (...) {
        report_error(where, "unknown exception");
    }
    return failed;
}

template <typename Op>
class Plugin final : public trt::IPluginV3,
                     public trt::IPluginV3OneCore,
                     public trt::IPluginV3OneBuild,
                     public trt::IPluginV3OneRuntime {
public:
    explicit Plugin(Op op) : op_(std::move(op)), fields_(fields_of(op_)) {}
    Plugin(Plugin const&) = delete;
    Plugin& operator=(Plugin const&) = delete;
    ~Plugin() override = default;

    trt::IPluginCapability* getCapabilityInterface(trt::PluginCapabilityType type) noexcept override {
        switch (type) {
            case trt::PluginCapabilityType::kCORE:
                return static_cast<trt::IPluginV3OneCore*>(this);
            case trt::PluginCapabilityType::kBUILD:
                return static_cast<trt::IPluginV3OneBuild*>(this);
            case trt::PluginCapabilityType::kRUNTIME:
                return static_cast<trt::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    trt::IPluginV3* clone() noexcept override {
        return guarded<trt::IPluginV3*>(Op::kName, nullptr, [&] { return new Plugin(op_); });
    }

    trt::IPluginV3* attachToContext(trt::IPluginResourceContext* /*context*/) noexcept override { return clone(); }

    char const* getPluginName() const noexcept override { return Op::kName; }
    char const* getPluginVersion() const noexcept override { return kVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }

    int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(std::size(Op::kOutputs)); }

    //! Refuses sizes out of the kernels' range, while an engine is built rather than when it runs.
    int32_t configurePlugin(trt::DynamicPluginTensorDesc const* in, int32_t inputs,
                            trt::DynamicPluginTensorDesc const* out, int32_t outputs) noexcept override {
        return guarded(Op::kName, kFailed, [&] {
            require(supports(largest_args(in, inputs, out, outputs)), "the kernels cannot take tensors of this size");
            return 0;
        });
    }

    //! Nothing is kept per shape.
    int32_t onShapeChange(trt::PluginTensorDesc const* /*in*/, int32_t /*inputs*/, trt::PluginTensorDesc const* /*out*/,
                          int32_t /*outputs*/) noexcept override {
        return 0;
    }

    bool supportsFormatCombination(int32_t position, trt::DynamicPluginTensorDesc const* tensors, int32_t inputs,
                                   int32_t /*outputs*/) noexcept override {
        return guarded(Op::kName, false, [&] { return supports_format<Op>(position, tensors, inputs); });
    }

    int32_t getOutputDataTypes(trt::DataType* out, int32_t outputs, trt::DataType const* in,
                               int32_t inputs) const noexcept override {
        return guarded(Op::kName, kFailed, [&] {
            auto const features = in[first_feature<Op>(levels_of<Op>(inputs))];
            for (int32_t i = 0; i < outputs; ++i)
                out[i] = type_of(spec_at(Op::kOutputs, 1, i), features);
            return 0;
        });
    }

    int32_t getOutputShapes(trt::DimsExprs const* in, int32_t inputs, trt::DimsExprs const* /*shape_in*/,
                            int32_t /*shape_inputs*/, trt::DimsExprs* out, int32_t /*outputs*/,
                            trt::IExprBuilder& builder) noexcept override {
        return guarded(Op::kName, kFailed, [&] {
            int32_t const levels = levels_of<Op>(inputs);
            require(levels == op_.levels(), "has inputs for " + std::to_string(levels) + " levels and strides for " +
                                                std::to_string(op_.levels()));
            for (int32_t i = 0; i < inputs; ++i)
                check_rank(spec_at(Op::kInputs, levels, i), in[i].nbDims);
            op_.output_shapes(in, out, builder);
            return 0;
        });
    }

    size_t getWorkspaceSize(trt::DynamicPluginTensorDesc const* in, int32_t inputs,
                            trt::DynamicPluginTensorDesc const* out, int32_t outputs) const noexcept override {
        return guarded(Op::kName, size_t{0}, [&] { return workspace_bytes(largest_args(in, inputs, out, outputs)); });
    }

    int32_t enqueue(trt::PluginTensorDesc const* in, trt::PluginTensorDesc const* out, void const* const* in_data,
                    void* const* out_data, void* workspace, cudaStream_t stream) noexcept override {
        return guarded(Op::kName, kFailed, [&] {
            int32_t const inputs = count_inputs<Op>(op_.levels());
            Tensor ins[kMaxInputs], outs[kMaxOutputs];
            for (int32_t i = 0; i < inputs; ++i)
                ins[i] = {in_data[i], in[i].dims, in[i].type, in[i].format};
            for (int32_t i = 0; i < getNbOutputs(); ++i)
                outs[i] = {out_data[i], out[i].dims, out[i].type, out[i].format};
            auto const features = ins[first_feature<Op>(op_.levels())].type;
            auto const type = features == trt::DataType::kHALF ? DataType::kFloat16 : DataType::kFloat32;
            cudaError_t const status = edge_mrcnn::enqueue(op_.make_args(ins, outs, workspace), type, stream);
            if (status != cudaSuccess) report_error(Op::kName, cudaGetErrorString(status));
            return static_cast<int32_t>(status);
        });
    }

    trt::PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &collection_; }

private:
    //! The kernels' parameters at the largest shapes of a profile.
    auto largest_args(trt::DynamicPluginTensorDesc const* in, int32_t inputs, trt::DynamicPluginTensorDesc const* out,
                      int32_t outputs) const {
        require(inputs == count_inputs<Op>(op_.levels()), "has inputs for another number of levels than strides");
        Tensor ins[kMaxInputs], outs[kMaxOutputs];
        for (int32_t i = 0; i < inputs; ++i)
            ins[i] = {nullptr, in[i].max, in[i].desc.type, in[i].desc.format};
        for (int32_t i = 0; i < outputs; ++i)
            outs[i] = {nullptr, out[i].max, out[i].desc.type, out[i].desc.format};
        return op_.make_args(ins, outs, nullptr);
    }

    static void check_rank(TensorSpec const& spec, int32_t rank) {
        require(rank == spec.rank, std::string(spec.name) + " must have " + std::to_string(spec.rank) +
                                       " dimensions, got " + std::to_string(rank));
    }

    Op op_;
    std::vector<trt::PluginField> fields_;  // point into op_
    trt::PluginFieldCollection collection_{static_cast<int32_t>(fields_.size()), fields_.data()};
};

template <typename Op>
class Creator final : public trt::IPluginCreatorV3One {
public:
    char const* getPluginName() const noexcept override { return Op::kName; }
    char const* getPluginVersion() const noexcept override { return kVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }

    trt::PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }

    trt::IPluginV3* createPlugin(char const* node, trt::PluginFieldCollection const* fields,
                                 trt::TensorRTPhase /*phase*/) noexcept override {
        return guarded<trt::IPluginV3*>(Op::kName, nullptr, [&] {
            try {
                require(fields != nullptr, "no attributes were given");
                return new Plugin<Op>(read_op<Op>(*fields));
            } catch (std::invalid_argument const& error) {
                std::string const name = node && *node ? std::string(" (node ") + node + ")" : "";
                throw std::invalid_argument(error.what() + name + "; export the model again with this version");
            }
        });
    }

private:
    std::vector<trt::PluginField> fields_ = declared_fields<Op>();
    trt::PluginFieldCollection collection_{static_cast<int32_t>(fields_.size()), fields_.data()};
};

//! The op's creator. It is never destroyed: TensorRT's registry refers to it until the process ends, whose order of
//! destruction is not ours.
template <typename Op>
trt::IPluginCreatorV3One& creator_of() {
    static auto* const creator = new Creator<Op>;
    return *creator;
}

}  // namespace edge_mrcnn
