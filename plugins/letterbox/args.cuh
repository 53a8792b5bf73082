// The parameter of the letterbox kernel, readable by nvcc, NVRTC and host compilers.
#pragma once

#include "common/cuda.cuh"

namespace edge_mrcnn {

constexpr int kLetterboxPictures = 32;  // of one launch at most

enum PixelFormat : int {
    kRgb = 0,   // 3 bytes a pixel
    kBgr = 1,   // 3 bytes a pixel
    kNv12 = 2,  // a plane of luma and one of U, V pairs, each pair for 2x2 pixels
};

//! From Y, U, V (0 to 255) to R, G, B: luma = (Y - luma_offset) * luma_scale, at least 0, and R = luma + red_v * (V -
//! 128), ...
struct ColorMatrix {
    float luma_offset, luma_scale, red_v, green_u, green_v, blue_u;
};

//! A picture, and how it lies on its canvas. Pitches are bytes from one row to the next.
struct LetterboxPicture {
    unsigned char const* pixels;  // of NV12: luma
    unsigned char const* chroma;  // of NV12
    long long pitch, chroma_pitch;
    int width, height;
    int content_width, content_height;  // on the canvas, from the top left
    float scale_x, scale_y;             // picture pixels per canvas pixel
    int format;                         // a PixelFormat
    ColorMatrix matrix;                 // of NV12
};

struct LetterboxArgs {
    unsigned char* canvas;  // (count, canvas_height, canvas_width, 3) RGB
    float* image_hw;        // (count, 2): height and width of the content; or null
    int canvas_width, canvas_height;
    int count;
    LetterboxPicture pictures[kLetterboxPictures];
};

}  // namespace edge_mrcnn
