// The parameter of DetectionNms' kernels, readable by nvcc, NVRTC and host compilers.
#pragma once

#include "common/box_coder.cuh"
#include "common/cuda.cuh"

namespace edge_mrcnn {

struct DetectionNmsArgs {
    float const* image_hw;        // (batch, 2)
    float const* proposal_boxes;  // (batch, proposals, 4)
    void const* class_logits;     // (batch * proposals, classes)
    void const* box_deltas;       // (batch * proposals, 4 * classes), or (batch * proposals, 4) if class_agnostic
    int* num_detections;          // (batch,)
    float* boxes;                 // (batch, detections, 4)
    float* scores;                // (batch, detections)
    int* labels;                  // (batch, detections)
    void* workspace;
    BoxCoder coder;
    float score_threshold, nms_threshold;
    int batch, proposals, classes;  // classes: with the background
    int detections;                 // per picture
    int first_class;                // 1 where the background is the first class, 0 where it is the last
    int class_agnostic;             // 1: a proposal has the same deltas for all classes
};

}  // namespace edge_mrcnn
