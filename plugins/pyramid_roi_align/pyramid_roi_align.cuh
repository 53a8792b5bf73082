// PyramidRoiAlign: pools each roi from the level of the pyramid that fits its area.
//
// Must move: the output once and each feature cell that a roi touches once. 1000 rois, 256 channels, float16, 800x1344:
// 25 MB (S = 7) or 100 MB (S = 14) out and at most 46 MB in, so 24 or 49 us at 3 TB/s (H100), 0.7 or 1.4 ms at 102 GB/s
// (Orin NX). What limits it otherwise: rois overlap, and each reads its own window through the L2 cache, 115 to 170 MB
// in all; and a cell is needed by several samples, so that converting and adding are as dear as reading.
//
// Hence: a roi's samples are the product of row positions and column positions. A block computes both once, as a list
// of taps (cell, weight) for each bin and axis, in which what samples share is added up. Then
// - channels last: a thread has 8 channels (16 bytes) of a row of bins. It walks along the columns, adds up each
//   column's cells over the bin's rows once, and gives the sum to all bins that need it. Loads of a warp are 512
//   contiguous bytes of a cell. A linear output goes through shared memory, so that the stores are contiguous too.
// - linear: a thread has a few columns of the window, each of some channel, and walks down the rows, reading each cell
//   once; neighbouring threads read neighbouring cells. The sums go through shared memory to the threads that have
//   bins.
#pragma once

#include "pyramid_roi_align/block.cuh"
#include "pyramid_roi_align/channels_last.cuh"
#include "pyramid_roi_align/linear.cuh"

namespace edge_mrcnn {

//! One bin of one channel, sample by sample. `plane`: of the channel.
template <typename T>
__device__ __forceinline__ float pool_bin(T const* plane, RoiAlignBlock const& block, int row, int column) {
    Axis const &x_axis = block.x, &y_axis = block.y;
    SampleRange const rows = sample_range(y_axis, row), columns = sample_range(x_axis, column);
    int const pixel = block.map.pixel_stride, pitch = block.map.width * pixel;
    float sum = 0.f;
#pragma unroll 1
    for (int i = rows.begin; i < rows.end; ++i) {
        Sample const y = place_sample(y_axis, row, i);
        if (!y.counts) continue;
        T const* const upper = plane + static_cast<long long>(y.cell) * pitch;
        int const below = y.fraction > 0.f ? pitch : 0;
#pragma unroll 1
        for (int j = columns.begin; j < columns.end; ++j) {
            Sample const x = place_sample(x_axis, column, j);
            if (!x.counts) continue;
            T const* const at = upper + static_cast<long long>(x.cell) * pixel;
            int const right = x.fraction > 0.f ? pixel : 0;
            float const top = (1.f - x.fraction) * load(at) + x.fraction * load(at + right);
            float const bottom = (1.f - x.fraction) * load(at + below) + x.fraction * load(at + below + right);
            sum += (1.f - y.fraction) * top + y.fraction * bottom;
        }
    }
    return sum / fmaxf(static_cast<float>(x_axis.samples) * static_cast<float>(y_axis.samples), 1.f);
}

//! Any layout and any roi, slowly: every thread finds the samples of its bin anew.
template <typename T>
__device__ __forceinline__ void pool_without_taps(PyramidRoiAlignArgs const& args, RoiAlignBlock const& block) {
    int const size = args.output_size, bins = block.rows * size;
    int const channels = args.pooled_hwc8 ? padded_channels(block.channels) : block.channels;
#pragma unroll 1
    for (int item = threadIdx.x; item < channels * bins; item += blockDim.x) {
        int const channel = block.first_channel + item / bins, bin = item % bins;
        int const row = block.first_row + bin / size, column = bin % size;
        float sum = 0.f;
        if (channel < block.map.channels) {
            T const* const features = static_cast<T const*>(block.features);
            T const* const plane = features + static_cast<long long>(channel) * block.map.channel_stride;
            sum = pool_bin(plane, block, row, column);
        }
        pooled_of<T>(args, block)[pooled_index(args, block, channel, row, column)] = from_float<T>(sum);
    }
}

extern __shared__ unsigned char roi_align_shared[];  // RoiAlignBlock, then the stage

template <typename T>
__device__ __forceinline__ void run_linear(PyramidRoiAlignArgs const& args) {
    RoiAlignBlock& block = *reinterpret_cast<RoiAlignBlock*>(roi_align_shared);
    bool const fits = prepare<T>(block, args);
    Window const window = fits ? make_window(block, args.output_size) : Window{};
    if (fits && window.pitch <= kRoiAlignSlots)
        pool_linear<T>(args, block, window, reinterpret_cast<float*>(roi_align_shared + sizeof(RoiAlignBlock)));
    else
        pool_without_taps<T>(args, block);
}

extern "C" __global__ void __launch_bounds__(kRoiAlignLinearThreads, 7)
    pyramid_roi_align_f32(PyramidRoiAlignArgs args) {
    run_linear<float>(args);
}

extern "C" __global__ void __launch_bounds__(kRoiAlignLinearThreads, 7)
    pyramid_roi_align_f16(PyramidRoiAlignArgs args) {
    run_linear<half>(args);
}

//! Features and output channels last.
extern "C" __global__ void __launch_bounds__(kRoiAlignHwc8Threads, 3)
    pyramid_roi_align_hwc8_f16(PyramidRoiAlignArgs args) {
    RoiAlignBlock& block = *reinterpret_cast<RoiAlignBlock*>(roi_align_shared);
    if (prepare<half>(block, args))
        pool_to_hwc8(args, block);
    else
        pool_without_taps<half>(args, block);
}

//! Features channels last, output linear.
extern "C" __global__ void __launch_bounds__(kRoiAlignHwc8Threads, 3)
    pyramid_roi_align_hwc8_to_linear_f16(PyramidRoiAlignArgs args) {
    RoiAlignBlock& block = *reinterpret_cast<RoiAlignBlock*>(roi_align_shared);
    if (prepare<half>(block, args))
        pool_to_linear(args, block, reinterpret_cast<half*>(roi_align_shared + sizeof(RoiAlignBlock)));
    else
        pool_without_taps<half>(args, block);
}

}  // namespace edge_mrcnn
