// The creator of each op's plugin, defined in plugins/<op>/plugin.cpp.
#pragma once

#include <NvInferRuntime.h>

namespace edge_mrcnn {

nvinfer1::IPluginCreatorV3One& rpn_proposals_creator();
nvinfer1::IPluginCreatorV3One& pyramid_roi_align_creator();
nvinfer1::IPluginCreatorV3One& detection_nms_creator();

}  // namespace edge_mrcnn
