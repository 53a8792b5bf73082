#include "common/plugin.hpp"

#include <cmath>

#include "common/creators.hpp"
#include "common/op_attributes.hpp"

namespace edge_mrcnn {
namespace {

struct PyramidRoiAlign {
    static constexpr char kName[] = "PyramidRoiAlign";
    static constexpr TensorSpec kInputs[] = {{"rois", Dtype::kFloat32, 3}, {"x", Dtype::kFeatures, 4, true}};
    static constexpr TensorSpec kOutputs[] = {{"pooled", Dtype::kFeatures, 4}};

    std::vector<int32_t> strides;
    int32_t output_size = 0, sampling_ratio = 0, aligned = 0;
    float canonical_scale = 0;
    int32_t canonical_level = 0;
    float level_eps = 0;

    template <typename Self, typename Visit>
    static void attributes(Self& op, Visit const& visit) {
        visit("strides", op.strides);
        visit("output_size", op.output_size);
        visit("sampling_ratio", op.sampling_ratio);
        visit("aligned", op.aligned);
        visit("canonical_scale", op.canonical_scale);
        visit("canonical_level", op.canonical_level);
        visit("level_eps", op.level_eps);
    }

    int32_t levels() const { return static_cast<int32_t>(strides.size()); }

    void check() const {
        require_strides(strides);
        for (int32_t const stride : strides)
            require((stride & (stride - 1)) == 0, "strides must be powers of two");
        require(output_size > 0, "output_size must be positive");
        require(sampling_ratio >= 0, "sampling_ratio must not be negative");
        require(aligned == 0 || aligned == 1, "aligned must be 0 or 1");
    }

    void output_shapes(trt::DimsExprs const* in, trt::DimsExprs* out, trt::IExprBuilder& builder) const {
        auto const* const rois = builder.operation(trt::DimensionOperation::kPROD, *in[0].d[0], *in[0].d[1]);
        auto const* const side = builder.constant(output_size);
        out[0] = {4, {rois, in[1].d[1], side, side}};
    }

    PyramidRoiAlignArgs make_args(Tensor const* in, Tensor const* out, void* /*workspace*/) const {
        PyramidRoiAlignArgs args{};
        args.rois = in[0].as<float>();
        args.pooled = out[0].as_mutable<void>();
        for (int32_t i = 0; i < levels(); ++i) {
            args.levels[i] = map_of(in[1 + i]);
            args.inverse_strides[i] = 1.0f / static_cast<float>(strides[i]);
            if (i > 0) args.level_areas[i - 1] = least_area(strides[i]);
        }
        args.level_count = levels();
        args.batch = in[0].size(0);
        args.rois_per_picture = in[0].size(1);
        args.output_size = output_size;
        args.sampling_ratio = sampling_ratio;
        args.aligned = aligned;
        args.pooled_hwc8 = out[0].format == trt::TensorFormat::kHWC8;
        return args;
    }

    //! Area in square pixels from which a roi belongs to the level of that stride.
    float least_area(int32_t stride) const {
        double const exponent = std::log2(stride) - canonical_level - double{level_eps};
        double const side = canonical_scale * std::pow(2.0, exponent);
        return static_cast<float>(side * side);
    }
};

}  // namespace

trt::IPluginCreatorV3One& pyramid_roi_align_creator() { return creator_of<PyramidRoiAlign>(); }

}  // namespace edge_mrcnn
