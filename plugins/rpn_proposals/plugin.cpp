#include "common/plugin.hpp"

#include "common/creators.hpp"
#include "common/op_attributes.hpp"

namespace edge_mrcnn {
namespace {

struct RpnProposals {
    static constexpr char kName[] = "RpnProposals";
    static constexpr TensorSpec kInputs[] = {{"image_hw", Dtype::kFloat32, 2},
                                             {"objectness", Dtype::kFeatures, 4, true},
                                             {"deltas", Dtype::kFeatures, 4, true}};
    static constexpr TensorSpec kOutputs[] = {{"proposals", Dtype::kFloat32, 3}};

    std::vector<float> cell_anchors;
    std::vector<int32_t> strides;
    std::string stride_rule;
    std::vector<float> box_weights;
    float bbox_xform_clip = 0;
    int32_t pre_nms_top_n = 0, post_nms_top_n = 0;
    float nms_threshold = 0, score_threshold = 0, min_size = 0;

    template <typename Self, typename Visit>
    static void attributes(Self& op, Visit const& visit) {
        visit("cell_anchors", op.cell_anchors);
        visit("strides", op.strides);
        visit("stride_rule", op.stride_rule);
        visit("box_weights", op.box_weights);
        visit("bbox_xform_clip", op.bbox_xform_clip);
        visit("pre_nms_top_n", op.pre_nms_top_n);
        visit("post_nms_top_n", op.post_nms_top_n);
        visit("nms_threshold", op.nms_threshold);
        visit("score_threshold", op.score_threshold);
        visit("min_size", op.min_size);
    }

    int32_t levels() const { return static_cast<int32_t>(strides.size()); }

    void check() const {
        require_strides(strides);
        require(stride_rule == "grid" || stride_rule == "fixed", "stride_rule must be grid or fixed");
        require(cell_anchors.size() % (4 * strides.size()) == 0, "cell_anchors must be 4 numbers an anchor and level");
        require(cell_anchors.size() <= 4 * kRpnMaxCellAnchors,
                "cell_anchors must be of at most " + std::to_string(kRpnMaxCellAnchors) + " anchors over all levels");
        require(pre_nms_top_n > 0 && post_nms_top_n > 0, "pre_nms_top_n and post_nms_top_n must be positive");
        make_coder(box_weights, bbox_xform_clip, min_size);
    }

    void output_shapes(trt::DimsExprs const* in, trt::DimsExprs* out, trt::IExprBuilder& builder) const {
        out[0] = {3, {in[0].d[0], builder.constant(post_nms_top_n), builder.constant(4)}};
    }

    RpnProposalsArgs make_args(Tensor const* in, Tensor const* out, void* workspace) const {
        RpnProposalsArgs args{};
        args.image_hw = in[0].as<float>();
        args.proposals = out[0].as_mutable<float>();
        args.workspace = workspace;
        std::copy(cell_anchors.begin(), cell_anchors.end(), args.cell_anchors);
        for (int32_t i = 0; i < levels(); ++i) {
            args.objectness[i] = map_of(in[1 + i]);
            args.deltas[i] = map_of(in[1 + levels() + i]);
            args.stride_y[i] = stride(i, in[1].size(2), args.objectness[i].height);
            args.stride_x[i] = stride(i, in[1].size(3), args.objectness[i].width);
        }
        int const channels = args.objectness[0].channels;
        require(static_cast<size_t>(4 * levels() * channels) == cell_anchors.size(),
                "has " + std::to_string(channels) + " objectness channels, and cell_anchors are " +
                    std::to_string(cell_anchors.size()) + " numbers for " + std::to_string(levels()) + " levels");
        args.coder = make_coder(box_weights, bbox_xform_clip, min_size);
        args.nms_threshold = nms_threshold;
        args.score_threshold = score_threshold;
        args.levels = levels();
        args.batch = in[0].size(0);
        args.pre_nms_top_n = pre_nms_top_n;
        args.post_nms_top_n = post_nms_top_n;
        return args;
    }

    //! Pixels of a cell along a side that has `cells`, and `finest` of them on the first level.
    float stride(int32_t level, int finest, int cells) const {
        if (stride_rule == "fixed") return static_cast<float>(strides[level]);
        require(cells > 0, "a level has no cells");
        return static_cast<float>(int64_t{finest} * strides[0] / cells);
    }
};

}  // namespace

trt::IPluginCreatorV3One& rpn_proposals_creator() { return creator_of<RpnProposals>(); }

}  // namespace edge_mrcnn
