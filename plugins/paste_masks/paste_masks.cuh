// paste_masks: mask patches become one instance map of each picture at full resolution: row + 1 of the first detection
// whose mask covers the pixel, 0 for none. Geometry as edge_mrcnn/runtime/paste.py: a border of one zero pixel around
// the patch, the box grown by the same share and truncated to whole pixels, the patch stretched over it bilinearly.
//
// Must move: 2 bytes a pixel out; the patches (0.3 MB for 100 of 28x28 in float32) stay in the cache. 1920x1080: 4 MB,
// 1.4 us at 3 TB/s (H100), 41 us at 102 GB/s (Orin NX). What limits it otherwise: about 25 operations for each pixel
// and each detection that reaches its tile; a pixel is through with its first hit.
//
// Hence: a block has a tile of 64x32 pixels, keeps those detections in shared memory that reach it, in their order, and
// its threads go through them for 2x4 pixels each, so that what depends on row or column alone is computed once.
#pragma once

#include "paste_masks/args.cuh"

namespace edge_mrcnn {

constexpr int kPasteThreads = 256;  // as many detections are looked at together
constexpr int kPasteWarps = kPasteThreads / kWarp;
constexpr int kPasteTileWidth = 2 * kWarp;
constexpr int kPasteTileHeight = 32;
constexpr int kPasteRows = kPasteTileHeight / kPasteWarps;  // of a thread

//! A detection: the pixels of its grown box, the last ones included, and patch pixels per picture pixel.
struct PasteBox {
    int left, top, right, bottom;
    float scale_x, scale_y;
    int row;
};

struct PasteShared {
    PasteBox boxes[kPasteThreads];
    int warp_counts[kPasteWarps];
};

//! From canvas to picture, clipped to it.
__device__ __forceinline__ float to_picture(float x, float scale, int size) {
    return fminf(fmaxf(__fdiv_rn(x, scale), 0.f), static_cast<float>(size));
}

//! One axis of the grown box. Rounded step by step: truncation must meet the same pixel as on a CPU.
__device__ __forceinline__ void grow(float low, float high, float expansion, int& first, int& last) {
    float const half = __fmul_rn(__fmul_rn(__fsub_rn(high, low), 0.5f), expansion);
    float const center = __fmul_rn(__fadd_rn(high, low), 0.5f);
    first = static_cast<int>(__fsub_rn(center, half));
    last = static_cast<int>(__fadd_rn(center, half));
}

//! Whether the detection counts and reaches the tile, whose corner is (x, y); `box` is set then.
__device__ __forceinline__ bool find_box(PasteMasksArgs const& args, PastePicture const& picture, int row, int x, int y,
                                         PasteBox& box) {
    long long const index = static_cast<long long>(blockIdx.z) * args.detections + row;
    if (!(__ldg(args.scores + index) >= args.score_threshold)) return false;
    float corners[4];
    for (int i = 0; i < 4; ++i) {
        float const corner = __ldg(args.boxes + 4 * index + i);
        if (!(corner - corner == 0.f)) return false;  // infinite, or not a number
        corners[i] =
            to_picture(corner, i % 2 ? picture.scale_y : picture.scale_x, i % 2 ? picture.height : picture.width);
    }
    grow(corners[0], corners[2], args.expansion, box.left, box.right);
    grow(corners[1], corners[3], args.expansion, box.top, box.bottom);
    if (box.right < box.left || box.bottom < box.top) return false;
    float const samples = static_cast<float>(args.mask_size + 2);
    box.scale_x = __fdiv_rn(samples, static_cast<float>(box.right - box.left + 1));
    box.scale_y = __fdiv_rn(samples, static_cast<float>(box.bottom - box.top + 1));
    box.row = row;
    return box.left < x + kPasteTileWidth && box.right >= x && box.top < y + kPasteTileHeight && box.bottom >= y;
}

//! Puts the detections from `first` on that reach the tile into shared memory, in their order, and returns how many.
__device__ __forceinline__ int collect_boxes(PasteMasksArgs const& args, PastePicture const& picture, int first,
                                             int count, int x, int y, PasteShared& shared) {
    int const lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, row = first + threadIdx.x;
    PasteBox box;
    bool const reaches = row < count && find_box(args, picture, row, x, y, box);
    uint const votes = __ballot_sync(kAllLanes, reaches);
    if (lane == 0) shared.warp_counts[warp] = __popc(votes);
    __syncthreads();
    int before = __popc(votes & ((1u << lane) - 1)), total = 0;
    for (int i = 0; i < kPasteWarps; ++i) {
        int const found = shared.warp_counts[i];
        if (i < warp) before += found;
        total += found;
    }
    if (reaches) shared.boxes[before] = box;
    __syncthreads();
    return total;
}

//! Two neighbouring samples of the patch with its border, from 0 to mask_size + 1, and how much of the second.
struct PatchPair {
    int low, high;
    float fraction;
};

__device__ __forceinline__ PatchPair patch_pair(int offset, float scale, int mask_size) {
    float const position = fmaxf((static_cast<float>(offset) + 0.5f) * scale - 0.5f, 0.f);
    int const low = min(static_cast<int>(position), mask_size + 1);
    return {low, min(low + 1, mask_size + 1), position - static_cast<float>(low)};
}

__device__ __forceinline__ float load(float const* at) { return __ldg(at); }
__device__ __forceinline__ float load(half const* at) {
    return to_float(half{__ldg(reinterpret_cast<unsigned short const*>(at))});
}

//! A row of the patch with its border, between two samples.
template <typename T>
__device__ __forceinline__ float patch_row(T const* patch, int mask_size, int row, PatchPair const& x) {
    if (row < 1 || row > mask_size) return 0.f;
    T const* const samples = patch + (row - 1) * mask_size;
    float const low = x.low >= 1 && x.low <= mask_size ? load(samples + x.low - 1) : 0.f;
    float const high = x.high >= 1 && x.high <= mask_size ? load(samples + x.high - 1) : 0.f;
    return low * (1.f - x.fraction) + high * x.fraction;
}

//! What one detection gives to the thread's pixels that have none yet; true where all have one.
template <typename T>
__device__ __forceinline__ bool paste_box(PasteMasksArgs const& args, PasteBox const& box, int x, int y,
                                          uint (&instances)[kPasteRows][2]) {
    int const size = args.mask_size;
    long long const index = static_cast<long long>(blockIdx.z) * args.detections + box.row;
    T const* const patch = static_cast<T const*>(args.masks) + index * size * size;
    PatchPair const columns[2] = {patch_pair(x - box.left, box.scale_x, size),
                                  patch_pair(x + 1 - box.left, box.scale_x, size)};
    bool done = true;
#pragma unroll
    for (int i = 0; i < kPasteRows; ++i) {
        int const row = y + i * kPasteWarps;
        bool const in_row = row >= box.top && row <= box.bottom;
        PatchPair const rows = patch_pair(row - box.top, box.scale_y, size);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            if (in_row && instances[i][k] == 0 && x + k >= box.left && x + k <= box.right) {
                float const top = patch_row(patch, size, rows.low, columns[k]);
                float const bottom = patch_row(patch, size, rows.high, columns[k]);
                float const probability = top * (1.f - rows.fraction) + bottom * rows.fraction;
                if (probability >= args.mask_threshold) instances[i][k] = static_cast<uint>(box.row) + 1;
            }
            done = done && instances[i][k] != 0;
        }
    }
    return done;
}

__device__ __forceinline__ void store_instances(PastePicture const& picture, int x, int y,
                                                uint const (&instances)[kPasteRows][2]) {
    bool const pairs = picture.width % 2 == 0 && reinterpret_cast<uint64>(picture.instances) % 4 == 0;
#pragma unroll
    for (int i = 0; i < kPasteRows; ++i) {
        int const row = y + i * kPasteWarps;
        if (row >= picture.height || x >= picture.width) continue;
        unsigned short* const out = picture.instances + static_cast<long long>(row) * picture.width + x;
        if (pairs) {
            *reinterpret_cast<uint*>(out) = instances[i][0] | instances[i][1] << 16;
        } else {
            out[0] = static_cast<unsigned short>(instances[i][0]);
            if (x + 1 < picture.width) out[1] = static_cast<unsigned short>(instances[i][1]);
        }
    }
}

//! Grid: (tiles along x, tiles along y, pictures).
template <typename T>
__device__ __forceinline__ void paste_tile(PasteMasksArgs const& args, PasteShared& shared) {
    PastePicture const& picture = args.pictures[blockIdx.z];
    int const tile_x = blockIdx.x * kPasteTileWidth, tile_y = blockIdx.y * kPasteTileHeight;
    if (tile_x >= picture.width || tile_y >= picture.height) return;  // the batch's other pictures are larger
    int const x = tile_x + threadIdx.x % kWarp * 2, y = tile_y + threadIdx.x / kWarp;
    int const count = min(__ldg(args.num_detections + blockIdx.z), args.detections);
    uint instances[kPasteRows][2];
    for (int i = 0; i < kPasteRows; ++i)
        for (int k = 0; k < 2; ++k)  // a pixel beside the picture is through, and never stored
            instances[i][k] = x + k < picture.width && y + i * kPasteWarps < picture.height ? 0 : 1;
    for (int first = 0; first < count; first += kPasteThreads) {
        int const boxes = collect_boxes(args, picture, first, count, tile_x, tile_y, shared);
        bool done = false;
        for (int i = 0; i < boxes && !done; ++i)
            done = paste_box<T>(args, shared.boxes[i], x, y, instances);
        if (__syncthreads_and(done)) break;
    }
    store_instances(picture, x, y, instances);
}

extern "C" __global__ void __launch_bounds__(kPasteThreads) paste_masks_f32(PasteMasksArgs args) {
    __shared__ PasteShared shared;
    paste_tile<float>(args, shared);
}

extern "C" __global__ void __launch_bounds__(kPasteThreads) paste_masks_f16(PasteMasksArgs args) {
    __shared__ PasteShared shared;
    paste_tile<half>(args, shared);
}

}  // namespace edge_mrcnn
