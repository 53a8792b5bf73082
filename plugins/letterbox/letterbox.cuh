// letterbox: pictures of any sizes, RGB, BGR or NV12, onto the canvases of a batch: scaled bilinearly without
// antialiasing, at the top left, the rest zero. Also writes the network's other input, the size of each content.
//
// Must move: the canvas once, and of each picture the rows that are sampled. 1920x1080 RGB onto 640x384: 0.7 MB out, of
// the 6.2 MB about two thirds in: 2 us at 3 TB/s (H100), 50 us at 102 GB/s (Orin NX); NV12 has half of that. What
// limits it otherwise: bytes at odd addresses, 12 loads a pixel. A warp therefore has 32 pixels of a row side by side,
// so that a load touches 3 to 5 lines of cache and not 10, and exchanges them to store 24 whole words.
//
// NV12: a tap is converted to 8-bit RGB with the U, V of its own 2x2 pixels (no interpolation of chroma) and then
// interpolated, as OpenCV's cvtColorTwoPlane followed by a resize does it: within 2 grey levels, RGB within 1.
#pragma once

#include "letterbox/args.cuh"

namespace edge_mrcnn {

constexpr int kLetterboxThreads = 256;
constexpr int kLetterboxRows = kLetterboxThreads / kWarp;  // of a block, of 32 pixels each

struct Rgb {
    float red, green, blue;
};

//! Two neighbouring pixels along an axis, and how much of the second.
struct PixelPair {
    int low, high;
    float fraction;
};

__device__ __forceinline__ PixelPair pixel_pair(int canvas_index, float scale, int size) {
    float const position = fmaxf((static_cast<float>(canvas_index) + 0.5f) * scale - 0.5f, 0.f);
    int const low = min(static_cast<int>(position), size - 1), high = min(low + 1, size - 1);
    return {low, high, low == high ? 0.f : position - static_cast<float>(low)};
}

//! Rounded and clamped as 8-bit pixels are.
__device__ __forceinline__ float to_byte(float x) { return floorf(fminf(fmaxf(x, 0.f), 255.f) + 0.5f); }

__device__ __forceinline__ Rgb nv12_pixel(LetterboxPicture const& picture, int x, int y) {
    ColorMatrix const& matrix = picture.matrix;
    unsigned char const* const uv = picture.chroma + y / 2 * picture.chroma_pitch + x / 2 * 2;
    float const luma = static_cast<float>(__ldg(picture.pixels + y * picture.pitch + x));
    float const scaled = fmaxf(luma - matrix.luma_offset, 0.f) * matrix.luma_scale;
    float const u = static_cast<float>(__ldg(uv)) - 128.f, v = static_cast<float>(__ldg(uv + 1)) - 128.f;
    return {to_byte(scaled + matrix.red_v * v), to_byte(scaled + matrix.green_u * u + matrix.green_v * v),
            to_byte(scaled + matrix.blue_u * u)};
}

__device__ __forceinline__ Rgb read_pixel(LetterboxPicture const& picture, int x, int y) {
    if (picture.format == kNv12) return nv12_pixel(picture, x, y);
    unsigned char const* const at = picture.pixels + y * picture.pitch + 3 * x;
    float const first = __ldg(at), second = __ldg(at + 1), third = __ldg(at + 2);
    return picture.format == kRgb ? Rgb{first, second, third} : Rgb{third, second, first};
}

__device__ __forceinline__ Rgb mix(Rgb const& a, Rgb const& b, float fraction) {
    return {a.red + (b.red - a.red) * fraction, a.green + (b.green - a.green) * fraction,
            a.blue + (b.blue - a.blue) * fraction};
}

//! The canvas's pixel: red in the lowest byte, then green, blue.
__device__ __forceinline__ uint sample_picture(LetterboxPicture const& picture, int canvas_x, int canvas_y) {
    PixelPair const x = pixel_pair(canvas_x, picture.scale_x, picture.width);
    PixelPair const y = pixel_pair(canvas_y, picture.scale_y, picture.height);
    Rgb const top = mix(read_pixel(picture, x.low, y.low), read_pixel(picture, x.high, y.low), x.fraction);
    Rgb const bottom = mix(read_pixel(picture, x.low, y.high), read_pixel(picture, x.high, y.high), x.fraction);
    Rgb const mixed = mix(top, bottom, y.fraction);
    return static_cast<uint>(mixed.red + 0.5f) | static_cast<uint>(mixed.green + 0.5f) << 8 |
           static_cast<uint>(mixed.blue + 0.5f) << 16;
}

//! Stores 32 pixels of a row, one of each lane of the warp; `count` of them are on the canvas.
__device__ __forceinline__ void store_pixels(unsigned char* out, uint pixel, int lane, int count) {
    int const first = 4 * lane / 3 % kWarp, skipped = 4 * lane % 3;  // a lane's word begins within its first pixel
    uint const one = __shfl_sync(kAllLanes, pixel, first), other = __shfl_sync(kAllLanes, pixel, (first + 1) % kWarp);
    bool const words = reinterpret_cast<uint64>(out) % 4 == 0 && 3 * count % 4 == 0;
    if (words) {
        if (4 * lane < 3 * count)
            reinterpret_cast<uint*>(out)[lane] = one >> (8 * skipped) | other << (24 - 8 * skipped);
    } else if (lane < count) {
        out[3 * lane] = static_cast<unsigned char>(pixel);
        out[3 * lane + 1] = static_cast<unsigned char>(pixel >> 8);
        out[3 * lane + 2] = static_cast<unsigned char>(pixel >> 16);
    }
}

//! Grid: (32 pixels of a row, 8 rows, pictures).
extern "C" __global__ void __launch_bounds__(kLetterboxThreads) letterbox(LetterboxArgs args) {
    LetterboxPicture const& picture = args.pictures[blockIdx.z];
    int const lane = threadIdx.x % kWarp, left = blockIdx.x * kWarp, x = left + lane;
    int const y = blockIdx.y * kLetterboxRows + threadIdx.x / kWarp;
    if (args.image_hw != nullptr && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x < 2)
        args.image_hw[2 * blockIdx.z + threadIdx.x] =
            static_cast<float>(threadIdx.x == 0 ? picture.content_height : picture.content_width);
    if (y >= args.canvas_height) return;
    bool const within = x < picture.content_width && y < picture.content_height;
    uint const pixel = within ? sample_picture(picture, x, y) : 0;
    long long const row = static_cast<long long>(blockIdx.z) * args.canvas_height + y;
    store_pixels(args.canvas + (row * args.canvas_width + left) * 3, pixel, lane, min(args.canvas_width - left, kWarp));
}

}  // namespace edge_mrcnn
