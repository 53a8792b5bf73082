#include "common/plugin.hpp"

#include "common/creators.hpp"
#include "common/op_attributes.hpp"

namespace edge_mrcnn {
namespace {

struct DetectionNms {
    static constexpr char kName[] = "DetectionNms";
    static constexpr TensorSpec kInputs[] = {{"image_hw", Dtype::kFloat32, 2},
                                             {"proposals", Dtype::kFloat32, 3},
                                             {"class_logits", Dtype::kFeatures, 2},
                                             {"box_deltas", Dtype::kFeatures, 2}};
    static constexpr TensorSpec kOutputs[] = {{"num_detections", Dtype::kInt32, 1},
                                              {"boxes", Dtype::kFloat32, 3},
                                              {"scores", Dtype::kFloat32, 2},
                                              {"labels", Dtype::kInt32, 2}};

    std::vector<float> box_weights;
    float bbox_xform_clip = 0, score_threshold = 0, nms_threshold = 0, min_size = 0;
    int32_t detections_per_image = 0;
    std::string background;
    int32_t class_agnostic = 0;

    template <typename Self, typename Visit>
    static void attributes(Self& op, Visit const& visit) {
        visit("box_weights", op.box_weights);
        visit("bbox_xform_clip", op.bbox_xform_clip);
        visit("score_threshold", op.score_threshold);
        visit("nms_threshold", op.nms_threshold);
        visit("min_size", op.min_size);
        visit("detections_per_image", op.detections_per_image);
        visit("background", op.background);
        visit("class_agnostic", op.class_agnostic);
    }

    int32_t levels() const { return 1; }

    void check() const {
        require(detections_per_image > 0, "detections_per_image must be positive");
        require(background == "first" || background == "last", "background must be first or last");
        require(class_agnostic == 0 || class_agnostic == 1, "class_agnostic must be 0 or 1");
        make_coder(box_weights, bbox_xform_clip, min_size);
    }

    void output_shapes(trt::DimsExprs const* in, trt::DimsExprs* out, trt::IExprBuilder& builder) const {
        auto const* const batch = in[0].d[0];
        auto const* const detections = builder.constant(detections_per_image);
        out[0] = {1, {batch}};
        out[1] = {3, {batch, detections, builder.constant(4)}};
        out[2] = {2, {batch, detections}};
        out[3] = {2, {batch, detections}};
    }

    DetectionNmsArgs make_args(Tensor const* in, Tensor const* out, void* workspace) const {
        DetectionNmsArgs args{};
        args.image_hw = in[0].as<float>();
        args.proposal_boxes = in[1].as<float>();
        args.class_logits = in[2].data;
        args.box_deltas = in[3].data;
        args.num_detections = out[0].as_mutable<int>();
        args.boxes = out[1].as_mutable<float>();
        args.scores = out[2].as_mutable<float>();
        args.labels = out[3].as_mutable<int>();
        args.workspace = workspace;
        args.coder = make_coder(box_weights, bbox_xform_clip, min_size);
        args.score_threshold = score_threshold;
        args.nms_threshold = nms_threshold;
        args.batch = in[0].size(0);
        args.proposals = in[1].size(1);
        args.classes = in[2].size(1);
        args.detections = detections_per_image;
        args.first_class = background == "first" ? 1 : 0;
        args.class_agnostic = class_agnostic;
        require(in[3].size(1) == 4 * (class_agnostic ? 1 : args.classes), "box_deltas must be 4 a class, or 4 alone");
        return args;
    }
};

}  // namespace

trt::IPluginCreatorV3One& detection_nms_creator() { return creator_of<DetectionNms>(); }

}  // namespace edge_mrcnn
