// PyramidRoiAlign for linear features: a thread walks down some columns of the roi's window.
#pragma once

#include "pyramid_roi_align/block.cuh"

namespace edge_mrcnn {

constexpr int kRoiAlignLinearThreads = 128;  // of a block
constexpr int kRoiAlignLinearColumns = 4;    // of a thread
constexpr int kRoiAlignSlots = kRoiAlignLinearThreads * kRoiAlignLinearColumns;
constexpr int kRoiAlignLinearChannels = 64;  // of a block at most
constexpr int kRoiAlignLinearRows = 8;       // of bins of a block at most

//! The columns of cells that a roi touches. `pitch` is odd, so that neighbouring channels begin in different banks.
struct Window {
    int first, columns, pitch;
};

__device__ __forceinline__ Window make_window(RoiAlignBlock const& block, int bins) {
    int first = 0x7fffffff, last = -1;
    for (int bin = 0; bin < bins; ++bin) {
        Tap const* const taps = block.x_taps.taps + bin * block.capacity;
        int const count = block.x_taps.counts[bin];
        if (count == 0) continue;
        first = min(first, taps[0].index);
        last = max(last, taps[count - 1].index);
    }
    int const columns = last < 0 ? 0 : last - first + 1;
    return {last < 0 ? 0 : first, columns, columns | 1};
}

constexpr int kRoiAlignNoChannel = 0x7fffffff;

//! The columns of a thread: of which channel of a pass, and where from that pass's first one. Those beside the window
//! read its first cell, which is cheaper than a test for each cell.
struct ThreadColumns {
    int channels[kRoiAlignLinearColumns];
    int offsets[kRoiAlignLinearColumns];
};

__device__ __forceinline__ ThreadColumns thread_columns(RoiAlignBlock const& block, Window const& window) {
    ThreadColumns columns;
#pragma unroll
    for (int u = 0; u < kRoiAlignLinearColumns; ++u) {
        int const slot = threadIdx.x + u * kRoiAlignLinearThreads;
        int const channel = slot / window.pitch, column = slot - channel * window.pitch;
        bool const exists = column < window.columns && channel < block.channels;
        columns.channels[u] = exists ? channel : kRoiAlignNoChannel;
        columns.offsets[u] = exists ? channel * block.map.channel_stride + column : 0;
    }
    return columns;
}

//! Cells of the last row with an even index, or with an odd one: what samples and bins next to each other share.
struct RowCells {
    float cells[kRoiAlignLinearColumns];
    int row;
};

template <typename T>
__device__ __forceinline__ void add_row(float (&sum)[kRoiAlignLinearColumns], RowCells& kept, Tap const& tap,
                                        T const* window, int const (&offsets)[kRoiAlignLinearColumns], int width) {
    if (tap.index != kept.row) {
        kept.row = tap.index;
#pragma unroll
        for (int u = 0; u < kRoiAlignLinearColumns; ++u)
            kept.cells[u] = load(window + (offsets[u] + tap.index * width));
    }
#pragma unroll
    for (int u = 0; u < kRoiAlignLinearColumns; ++u)
        sum[u] += tap.weight * kept.cells[u];
}

//! Walks down the window and leaves each column's sum over the rows of each bin row in `stage` (bin row, slot).
template <typename T>
__device__ __forceinline__ void sum_rows(T const* window, int const (&offsets)[kRoiAlignLinearColumns],
                                         RoiAlignBlock const& block, float* stage) {
    RowCells even, odd;
    even.row = odd.row = -1;
    for (int row = 0; row < block.rows; ++row) {
        float sum[kRoiAlignLinearColumns] = {};
        Tap const* const taps = block.y_taps.taps + row * block.capacity;
        int const count = block.y_taps.counts[row], width = block.map.width;
        for (int i = 0; i < count;) {
            if (taps[i].index % 2 == 0) add_row(sum, even, taps[i++], window, offsets, width);
            if (i < count && taps[i].index % 2 != 0) add_row(sum, odd, taps[i++], window, offsets, width);
        }
#pragma unroll
        for (int u = 0; u < kRoiAlignLinearColumns; ++u)
            stage[row * kRoiAlignSlots + threadIdx.x + u * kRoiAlignLinearThreads] = sum[u];
    }
}

//! The taps of a bin from `begin` to `count`; `window_sums`: of the window's columns.
__device__ __forceinline__ float sum_taps(float const* window_sums, int window_first, Tap const* taps, int begin,
                                          int count) {
    float sum = 0.f;
#pragma unroll 1
    for (int i = begin; i < count; ++i)
        sum += taps[i].weight * window_sums[taps[i].index - window_first];
    return sum;
}

//! Linear output: a thread has one bin of every n-th channel and keeps its taps in registers.
template <typename T>
__device__ __forceinline__ void reduce_to_linear(float const* stage, Window const& window,
                                                 PyramidRoiAlignArgs const& args, RoiAlignBlock const& block, int first,
                                                 int count) {
    constexpr int kTaps = kRoiAlignRegisterTaps;
    int const size = args.output_size, bins = block.rows * size;
    int const step = max(1, kRoiAlignLinearThreads / bins);
    for (int item = threadIdx.x; item < step * bins; item += kRoiAlignLinearThreads) {
        int const bin = item % bins, row = bin / size, column = bin % size;
        Tap const* const taps = block.x_taps.taps + column * block.capacity;
        int const tap_count = block.x_taps.counts[column];
        Tap kept[kTaps];
#pragma unroll
        for (int i = 0; i < kTaps; ++i)
            kept[i] = i < tap_count ? Tap{taps[i].index - window.first, taps[i].weight} : Tap{};
        T* const out = pooled_of<T>(args, block) +
                       pooled_index(args, block, block.first_channel + first, block.first_row + row, column);
#pragma unroll 2
        for (int channel = item / bins; channel < count; channel += step) {
            float const* const from = stage + row * kRoiAlignSlots + channel * window.pitch;
            float sum = 0.f;
#pragma unroll
            for (int i = 0; i < kTaps; ++i)
                if (i < tap_count) sum += kept[i].weight * from[kept[i].index];
            if (tap_count > kTaps) sum += sum_taps(from, window.first, taps, kTaps, tap_count);
            out[channel * size * size] = from_float<T>(sum);
        }
    }
}

//! Channels-last output: neighbouring threads have neighbouring channels of a bin.
template <typename T>
__device__ __forceinline__ void reduce_to_hwc8(float const* stage, Window const& window,
                                               PyramidRoiAlignArgs const& args, RoiAlignBlock const& block, int first,
                                               int count) {
    int const size = args.output_size, bins = block.rows * size;
    bool const last = first + count == block.channels;
    int const padded = last ? padded_channels(block.channels) - first : count;
    for (int item = threadIdx.x; item < bins * padded; item += kRoiAlignLinearThreads) {
        int const bin = item / padded, channel = item % padded, row = bin / size, column = bin % size;
        float sum = 0.f;
        if (channel < count) {
            float const* const from = stage + row * kRoiAlignSlots + channel * window.pitch;
            Tap const* const taps = block.x_taps.taps + column * block.capacity;
            sum = sum_taps(from, window.first, taps, 0, block.x_taps.counts[column]);
        }
        pooled_of<T>(
            args,
            block)[pooled_index(args, block, block.first_channel + first + channel, block.first_row + row, column)] =
            from_float<T>(sum);
    }
}

//! Features linear; as many channels in a pass as the threads have columns for. `stage`: (bin rows, slots).
template <typename T>
__device__ __forceinline__ void pool_linear(PyramidRoiAlignArgs const& args, RoiAlignBlock const& block,
                                            Window const& window, float* stage) {
    int const per_pass = kRoiAlignSlots / window.pitch;
    ThreadColumns const columns = thread_columns(block, window);
#pragma unroll 1
    for (int first = 0; first < block.channels; first += per_pass) {
        int const count = min(per_pass, block.channels - first);
        T const* const features = static_cast<T const*>(block.features) + window.first;
        int offsets[kRoiAlignLinearColumns];
#pragma unroll
        for (int u = 0; u < kRoiAlignLinearColumns; ++u)
            offsets[u] = columns.channels[u] < count ? columns.offsets[u] : 0;
        sum_rows(features + static_cast<long long>(block.first_channel + first) * block.map.channel_stride, offsets,
                 block, stage);
        __syncthreads();
        if (args.pooled_hwc8)
            reduce_to_hwc8<T>(stage, window, args, block, first, count);
        else
            reduce_to_linear<T>(stage, window, args, block, first, count);
        __syncthreads();
    }
}

}  // namespace edge_mrcnn
