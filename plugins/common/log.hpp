// What a plugin has to say when something is wrong, in TensorRT's log.
#pragma once

namespace edge_mrcnn {

//! Writes an error to TensorRT's logger, or to standard error where none is found. `where` is an op or a function.
void report_error(char const* where, char const* text) noexcept;

}  // namespace edge_mrcnn
