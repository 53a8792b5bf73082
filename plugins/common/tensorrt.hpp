// The TensorRT that this library finds itself in, without being linked against one.
#pragma once

#include <NvInferRuntime.h>

#include <vector>

namespace edge_mrcnn {

//! What a TensorRT in this process exports.
struct TensorRt {
    decltype(&::getPluginRegistry) registry;
    decltype(&::getLogger) logger;
    decltype(&::getInferLibMajorVersion) major;
    decltype(&::getInferLibMinorVersion) minor;

    //! Whether its registry and logger are laid out as in the headers that this library was compiled with: TensorRT 11
    //! took functions out of the one and gave the other a base class. Plugins and creators work across that line.
    bool has_layout_of_headers() const;
};

//! Every TensorRT in this process.
std::vector<TensorRt> find_tensorrt();

//! The logger finder that TensorRT gives a library it loads.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

}  // namespace edge_mrcnn
