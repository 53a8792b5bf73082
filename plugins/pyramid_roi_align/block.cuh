// What a block of PyramidRoiAlign knows of its roi: the level, where the samples lie, and the taps that they make.
#pragma once

#include "pyramid_roi_align/args.cuh"

namespace edge_mrcnn {

constexpr int kRoiAlignMaxTaps = 256;        // of an axis in a block's table; a roi with more is pooled without one
constexpr int kRoiAlignMaxBins = 64;         // likewise
constexpr int kRoiAlignRegisterTaps = 4;     // of a bin kept in registers: all, with up to 2 samples
constexpr int kRoiAlignClippedSamples = 32;  // with more in a bin, those beside the map are skipped at once

//! The share of a cell (along one axis) in a bin.
struct Tap {
    int index;
    float weight;
};

//! Where a roi's samples lie along one axis of its map, in cells.
struct Axis {
    float start, bin;  // edge of the first bin, length of a bin
    int samples;       // of a bin; 0: the roi is padding
    int size;          // of the map
};

//! The taps of each bin along one axis.
struct TapTable {
    Tap taps[kRoiAlignMaxTaps];
    int counts[kRoiAlignMaxBins];
};

//! What a block works on; in shared memory, so that it takes no registers.
struct alignas(16) RoiAlignBlock {
    TapTable x_taps, y_taps;  // y: of the block's rows of bins
    Axis x, y;
    Map map;
    void const* features;         // of the roi's picture
    long long pooled;             // of the roi, elements from the start of the output
    int first_channel, channels;  // channels: that exist, of the chunk
    int first_row, rows;          // of bins
    int capacity;                 // taps that the tables have room for in each bin
};

__device__ __forceinline__ Axis make_axis(float low, float high, int size, float inverse_stride,
                                          PyramidRoiAlignArgs const& args) {
    // Rounded step by step as the other faces do: where a sample falls off the map it jumps to zero.
    float const shift = args.aligned ? 0.5f : 0.f;
    float const start = __fsub_rn(__fmul_rn(low, inverse_stride), shift);
    float length = __fsub_rn(__fsub_rn(__fmul_rn(high, inverse_stride), shift), start);
    if (!args.aligned) length = fmaxf(length, 1.f);
    float const bin = __fdiv_rn(length, static_cast<float>(args.output_size));
    int const samples = args.sampling_ratio > 0 ? args.sampling_ratio : static_cast<int>(fminf(ceilf(bin), 0x1p30f));
    return {start, bin, size > 0 ? samples : 0, size};
}

//! Index from 0 to count; a NaN gives 0.
__device__ __forceinline__ int clamp_index(float index, int count) {
    if (!(index > 0.f)) return 0;
    return index < static_cast<float>(count) ? static_cast<int>(index) : count;
}

//! Samples of a bin from `begin` to `end`; the others lie beside the map for certain.
struct SampleRange {
    int begin, end;
};

__device__ __forceinline__ SampleRange sample_range(Axis const& axis, int bin) {
    if (axis.samples <= kRoiAlignClippedSamples || !(axis.bin > 0.f)) return {0, axis.samples};
    float const per_cell = static_cast<float>(axis.samples) / axis.bin;
    float const origin = axis.start + static_cast<float>(bin) * axis.bin;
    return {clamp_index((-1.f - origin) * per_cell - 2.f, axis.samples),  // with a margin of a sample for rounding
            clamp_index((static_cast<float>(axis.size) - origin) * per_cell + 2.f, axis.samples)};
}

//! A sample between cells `cell` and `cell + 1`; with a fraction of 0 there need not be a second one.
struct Sample {
    int cell;
    float fraction;
    bool counts;  // a sample beyond one cell outside of the map is zero
};

__device__ __forceinline__ Sample place_sample(Axis const& axis, int bin, int sample) {
    float const offset =
        __fdiv_rn(__fmul_rn(static_cast<float>(sample) + 0.5f, axis.bin), static_cast<float>(axis.samples));
    float const origin = __fadd_rn(axis.start, __fmul_rn(static_cast<float>(bin), axis.bin));
    float const position = __fadd_rn(origin, offset);
    if (!(position >= -1.f && position <= static_cast<float>(axis.size))) return {};
    int const last = axis.size - 1, cell = min(static_cast<int>(fmaxf(position, 0.f)), last);
    return {cell, cell == last ? 0.f : fmaxf(position, 0.f) - static_cast<float>(cell), true};
}

//! Calls visit(index, weight) for the cells that the bin's samples touch, ascending. Together the weights make the mean
//! of the samples.
template <typename Visit>
__device__ __forceinline__ void for_each_tap(Axis const& axis, int bin, Visit const& visit) {
    SampleRange const range = sample_range(axis, bin);
    float const share = 1.f / static_cast<float>(axis.samples);
    int low = -2;
    float low_weight = 0.f, high_weight = 0.f;  // what is pending for cells low and low + 1
#pragma unroll 1
    for (int i = range.begin; i < range.end; ++i) {
        Sample const sample = place_sample(axis, bin, i);
        if (!sample.counts) continue;
        if (sample.cell != low) {
            bool const next = sample.cell == low + 1;
            if (low_weight > 0.f) visit(low, low_weight);
            if (!next && high_weight > 0.f) visit(low + 1, high_weight);
            low_weight = next ? high_weight : 0.f;
            high_weight = 0.f;
            low = sample.cell;
        }
        low_weight += (1.f - sample.fraction) * share;
        high_weight += sample.fraction * share;
    }
    if (low_weight > 0.f) visit(low, low_weight);
    if (high_weight > 0.f) visit(low + 1, high_weight);
}

__device__ __forceinline__ int padded_channels(int channels) { return (channels + 7) / 8 * 8; }

//! Finds the roi, its level and the block's part of the output. What is no box with a finite area has no samples.
template <typename T>
__device__ __forceinline__ void set_block(RoiAlignBlock& block, PyramidRoiAlignArgs const& args) {
    float const* const roi = args.rois + 4ll * blockIdx.x;
    float const x1 = __ldg(roi), y1 = __ldg(roi + 1), x2 = __ldg(roi + 2), y2 = __ldg(roi + 3);
    float const width = __fsub_rn(x2, x1), height = __fsub_rn(y2, y1), area = __fmul_rn(width, height);
    bool const real = width > 0.f && height > 0.f && area < __int_as_float(0x7f800000);
    int level = 0;
    for (int i = 1; i < args.level_count; ++i)
        if (area >= args.level_areas[i - 1]) level = i;
    Map const& map = block.map = args.levels[level];
    int const picture = static_cast<int>(blockIdx.x) / args.rois_per_picture;
    block.features = static_cast<T const*>(map.data) + picture * map.picture_stride;
    int const channels = args.pooled_hwc8 ? padded_channels(map.channels) : map.channels;
    long long const per_roi = static_cast<long long>(channels) * args.output_size * args.output_size;
    block.pooled = blockIdx.x * per_roi;
    block.x = block.y = Axis{};
    if (real) {
        float const inverse_stride = args.inverse_strides[level];
        block.x = make_axis(x1, x2, map.width, inverse_stride, args);
        block.y = make_axis(y1, y2, map.height, inverse_stride, args);
    }
    block.first_channel = blockIdx.y * args.tile.channels;
    block.channels = min(args.tile.channels, map.channels - block.first_channel);
    block.first_row = blockIdx.z * args.tile.bin_rows;
    block.rows = min(args.tile.bin_rows, args.output_size - block.first_row);
    block.capacity = args.output_size <= kRoiAlignMaxBins ? kRoiAlignMaxTaps / args.output_size : 0;
}

__device__ __forceinline__ bool fill_taps(TapTable& table, int place, int capacity, Axis const& axis, int bin) {
    Tap* const taps = table.taps + place * capacity;
    int count = 0;
    for_each_tap(axis, bin, [&](int index, float weight) {
        if (count < capacity) taps[count] = {index, weight};
        ++count;
    });
    table.counts[place] = min(count, capacity);
    return count <= capacity;
}

//! Sets up the block, all its threads together; false where the tables have no room for the roi.
template <typename T>
__device__ __forceinline__ bool prepare(RoiAlignBlock& block, PyramidRoiAlignArgs const& args) {
    if (threadIdx.x == 0) set_block<T>(block, args);
    __syncthreads();
    int const bins = args.output_size;
    bool fits = block.capacity > 0;
    for (int i = threadIdx.x; fits && i < bins + block.rows; i += blockDim.x) {
        int const row = i - bins;
        fits = row < 0 ? fill_taps(block.x_taps, i, block.capacity, block.x, i)
                       : fill_taps(block.y_taps, row, block.capacity, block.y, block.first_row + row);
    }
    return __syncthreads_and(fits);
}

//! Place of an output within the block's roi, in elements.
__device__ __forceinline__ int pooled_index(PyramidRoiAlignArgs const& args, RoiAlignBlock const& block, int channel,
                                            int bin_row, int bin_column) {
    int const size = args.output_size, bin = bin_row * size + bin_column;
    return args.pooled_hwc8 ? bin * padded_channels(block.map.channels) + channel : channel * size * size + bin;
}

//! The roi's output. From the kernel's parameter on, so that the compiler sees that it is not in shared memory.
template <typename T>
__device__ __forceinline__ T* pooled_of(PyramidRoiAlignArgs const& args, RoiAlignBlock const& block) {
    return static_cast<T*>(args.pooled) + block.pooled;
}

__device__ __forceinline__ float load(float const* at) { return __ldg(at); }
__device__ __forceinline__ float load(half const* at) {
    return to_float(half{__ldg(reinterpret_cast<unsigned short const*>(at))});
}

}  // namespace edge_mrcnn
