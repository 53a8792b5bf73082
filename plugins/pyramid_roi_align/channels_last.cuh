// PyramidRoiAlign for features whose channels are last (kHWC8): a thread pools 8 channels of a row of bins.
#pragma once

#include "pyramid_roi_align/block.cuh"

namespace edge_mrcnn {

constexpr int kRoiAlignHwc8Threads = 224;  // of a block at most: 7 rows of bins of 256 channels

//! The rows of cells of a bin. Offsets are in bytes.
struct CellRows {
    uint offsets[kRoiAlignRegisterTaps];
    float weights[kRoiAlignRegisterTaps];
    Tap const* taps;
    int count;
    uint pitch;  // from one row of cells to the next
};

__device__ __forceinline__ void add_pair(float& low, float& high, uint pair, float weight) {
    low += weight * to_float(half{static_cast<unsigned short>(pair & 0xffffu)});
    high += weight * to_float(half{static_cast<unsigned short>(pair >> 16)});
}

__device__ __forceinline__ void add_cell(float (&sum)[8], uint4 cell, float weight) {
    add_pair(sum[0], sum[1], cell.x, weight);
    add_pair(sum[2], sum[3], cell.y, weight);
    add_pair(sum[4], sum[5], cell.z, weight);
    add_pair(sum[6], sum[7], cell.w, weight);
}

//! 8 channels of a cell. A picture's map has less than 4 GB, so 32 bits will do, and spare registers.
__device__ __forceinline__ uint4 load_cell(unsigned char const* features, uint offset) {
    return __ldg(reinterpret_cast<uint4 const*>(features + offset));
}

//! Adds up the cells of a column over the rows of a bin, at least one; the loads are in flight together.
__device__ __forceinline__ void sum_column(float (&sum)[8], unsigned char const* features, uint column,
                                           CellRows const& rows) {
    uint4 cells[kRoiAlignRegisterTaps] = {};  // not loaded and not set, it would keep its registers round the loop
#pragma unroll
    for (int i = 0; i < kRoiAlignRegisterTaps; ++i)
        if (i == 0 || i < rows.count) cells[i] = load_cell(features, column + rows.offsets[i]);
#pragma unroll
    for (int k = 0; k < 8; ++k)
        sum[k] = 0.f;
    add_cell(sum, cells[0], rows.weights[0]);
#pragma unroll
    for (int i = 1; i < kRoiAlignRegisterTaps; ++i)
        if (i < rows.count) add_cell(sum, cells[i], rows.weights[i]);
#pragma unroll 1
    for (int i = kRoiAlignRegisterTaps; i < rows.count; ++i)
        add_cell(sum, load_cell(features, column + rows.taps[i].index * rows.pitch), rows.taps[i].weight);
}

__device__ __forceinline__ CellRows cell_rows(RoiAlignBlock const& block, int bin_row, uint pitch) {
    CellRows rows{};
    rows.taps = block.y_taps.taps + bin_row * block.capacity;
    rows.count = block.y_taps.counts[bin_row];
    rows.pitch = pitch;
#pragma unroll
    for (int i = 0; i < kRoiAlignRegisterTaps; ++i) {
        if (i >= rows.count) continue;
        rows.offsets[i] = static_cast<uint>(rows.taps[i].index) * pitch;
        rows.weights[i] = rows.taps[i].weight;
    }
    return rows;
}

//! Sums of the last column with an even index, or with an odd one: what samples and bins next to each other share.
struct ColumnSums {
    float sums[8];
    int column;
};

__device__ __forceinline__ void add_column(float (&total)[8], ColumnSums& kept, Tap const& tap,
                                           unsigned char const* features, uint cell_pitch, CellRows const& rows) {
    if (tap.index != kept.column) {
        kept.column = tap.index;
        sum_column(kept.sums, features, static_cast<uint>(tap.index) * cell_pitch, rows);
    }
#pragma unroll
    for (int k = 0; k < 8; ++k)
        total[k] += tap.weight * kept.sums[k];
}

__device__ __forceinline__ uint pack_pair(float low, float high) {
    return to_half(low).bits | static_cast<uint>(to_half(high).bits) << 16;
}

//! Copies the block's part of a linear output, which is contiguous or runs of whole channels, out of shared memory,
//! where a word lies between groups of 8 channels: their first words then fall into different banks.
__device__ __forceinline__ void copy_staged(half const* stage, PyramidRoiAlignArgs const& args,
                                            RoiAlignBlock const& block) {
    int const bins = block.rows * args.output_size;
    half* const out = pooled_of<half>(args, block) + pooled_index(args, block, block.first_channel, block.first_row, 0);
    int const total = block.channels * bins;
    if (block.rows == args.output_size && reinterpret_cast<uint64>(out) % 4 == 0 && total % 2 == 0) {
        uint const* const from = reinterpret_cast<uint const*>(stage);
        uint* const to = reinterpret_cast<uint*>(out);
        int const group_words = 4 * bins;
        int groups = 0, rest = threadIdx.x;
        for (int word = threadIdx.x; word < total / 2; word += blockDim.x, rest += blockDim.x) {
            for (; rest >= group_words; rest -= group_words)
                ++groups;
            to[word] = from[word + groups];
        }
        return;
    }
    for (int item = threadIdx.x; item < total; item += blockDim.x) {
        int const channel = item / bins, bin = item % bins;
        out[channel * args.output_size * args.output_size + bin] = stage[item + channel / 8 * 2];
    }
}

//! The group of 8 channels and the row of bins that a thread of a channels-last block pools.
struct Lane {
    int group, row;
    bool works;
};

__device__ __forceinline__ Lane make_lane(PyramidRoiAlignArgs const& args, RoiAlignBlock const& block) {
    int const tile_groups = args.tile.channels / 8;
    int const group = threadIdx.x % tile_groups, row = threadIdx.x / tile_groups;
    return {group, row, row < block.rows && 8 * group < block.channels};
}

//! Pools 8 channels of a row of bins, and calls emit(bin column, sums) for each bin.
template <typename Emit>
__device__ __forceinline__ void pool_lane(RoiAlignBlock const& block, Lane const& lane, int bins, Emit const& emit) {
    uint const cell_pitch = block.map.pixel_stride * sizeof(half);
    unsigned char const* const features =
        static_cast<unsigned char const*>(block.features) + (block.first_channel + 8 * lane.group) * sizeof(half);
    CellRows const rows = cell_rows(block, lane.row, cell_pitch * block.map.width);
    ColumnSums even, odd;
    even.column = odd.column = -1;
    for (int bin = 0; bin < bins; ++bin) {
        float total[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
        Tap const* const taps = block.x_taps.taps + bin * block.capacity;
        int const count = rows.count > 0 ? block.x_taps.counts[bin] : 0;
        for (int i = 0; i < count;) {  // two tests in a row, not one with an else: the sums then stay where they are
            if (taps[i].index % 2 == 0) add_column(total, even, taps[i++], features, cell_pitch, rows);
            if (i < count && taps[i].index % 2 != 0) add_column(total, odd, taps[i++], features, cell_pitch, rows);
        }
        emit(bin, total);
    }
}

//! Features and output channels last; channels that only fill up to 8 become zero.
__device__ __forceinline__ void pool_to_hwc8(PyramidRoiAlignArgs const& args, RoiAlignBlock const& block) {
    Lane const lane = make_lane(args, block);
    if (!lane.works) return;
    int const channel = block.first_channel + 8 * lane.group, row = block.first_row + lane.row;
    int const first = pooled_index(args, block, channel, row, 0);
    int const pitch = padded_channels(block.map.channels), present = block.map.channels - channel;
    pool_lane(block, lane, args.output_size, [&](int bin, float const(&sum)[8]) {
        half* const out = pooled_of<half>(args, block) + (first + bin * pitch);
        if (present >= 8) {
            *reinterpret_cast<uint4*>(out) = {pack_pair(sum[0], sum[1]), pack_pair(sum[2], sum[3]),
                                              pack_pair(sum[4], sum[5]), pack_pair(sum[6], sum[7])};
            return;
        }
#pragma unroll
        for (int k = 0; k < 8; ++k)  // the features' padding may be anything
            out[k] = to_half(k < present ? sum[k] : 0.f);
    });
}

//! Features channels last, output linear, put together in shared memory.
__device__ __forceinline__ void pool_to_linear(PyramidRoiAlignArgs const& args, RoiAlignBlock const& block,
                                               half* stage) {
    Lane const lane = make_lane(args, block);
    if (lane.works) {
        int const bins = block.rows * args.output_size;
        half* const staged = stage + lane.group * (8 * bins + 2) + lane.row * args.output_size;
        pool_lane(block, lane, args.output_size, [&](int bin, float const(&sum)[8]) {
#pragma unroll
            for (int k = 0; k < 8; ++k)
                staged[k * bins + bin] = to_half(sum[k]);
        });
    }
    __syncthreads();
    copy_staged(stage, args, block);
}

}  // namespace edge_mrcnn
