// The parameter of paste_masks's kernels, readable by nvcc, NVRTC and host compilers.
#pragma once

#include "common/cuda.cuh"

namespace edge_mrcnn {

constexpr int kPastePictures = 32;  // of one launch at most

struct PastePicture {
    unsigned short* instances;  // (height, width)
    int width, height;
    float scale_x, scale_y;  // canvas pixels per picture pixel
};

struct PasteMasksArgs {
    void const* masks;          // (count, detections, mask_size, mask_size) probabilities
    float const* boxes;         // (count, detections, 4) xyxy in pixels of the canvas
    float const* scores;        // (count, detections)
    int const* num_detections;  // (count)
    int count, detections, mask_size;
    float expansion;        // of a box by the border of one pixel around its patch
    float score_threshold;  // detections with a lower score are left out
    float mask_threshold;   // a pixel belongs to a mask where its probability is at least this
    PastePicture pictures[kPastePictures];
};

}  // namespace edge_mrcnn
