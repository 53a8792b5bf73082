// The attributes by which deltas become boxes, as the kernels' parameters carry them.
#pragma once

namespace edge_mrcnn {

struct BoxCoder {
    float weights[4];  // box_weights
    float clip;        // bbox_xform_clip
    float min_size;
};

}  // namespace edge_mrcnn
