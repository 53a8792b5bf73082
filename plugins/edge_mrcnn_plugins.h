/* libedge_mrcnn_plugins.so for programs that load it: C, no other header needed. */
#ifndef EDGE_MRCNN_PLUGINS_H
#define EDGE_MRCNN_PLUGINS_H

#ifdef __cplusplus
extern "C" {
#else
#include <stdbool.h>
#endif

/*
 * Registers the plugins in namespace "edge_mrcnn". The library does so by itself when a TensorRT is in the process as
 * it is loaded; call this where TensorRT came later, or is linked in statically.
 *
 * registry: TensorRT's nvinfer1::IPluginRegistry*, or null for that of every TensorRT loaded in this process.
 * Returns whether all of them can be found in the registry now, whoever put them there; else TensorRT's log says why.
 */
__attribute__((visibility("default"))) bool edge_mrcnn_register_plugins(void* registry);

#ifdef __cplusplus
}
#endif

#endif
