"""Stand-ins for the function bodies of the tiny network, as ONNX text.

Right in names, types and shapes; simple in what they compute (no suppression, one pyramid level), and smooth, so that
precisions can be compared. The real bodies are tested with the real models.
"""

from __future__ import annotations

HEADER = '<opset_import: ["" : 20], domain: "edge_mrcnn">'

RPN_PROPOSALS = f"""{HEADER}
RpnProposals <cell_anchors, strides, stride_rule, box_weights, bbox_xform_clip, nms_threshold, pre_nms_top_n,
  post_nms_top_n, score_threshold, min_size, plugin_version, plugin_namespace>
  (image_hw, objectness0, objectness1, deltas0, deltas1) => (proposals) {{
  rows = Constant <value = int64[2] {{0, -1}}> ()
  cells = Constant <value = int64[3] {{0, 4, -1}}> ()
  pairs = Constant <value = int64[3] {{0, 1, 2}}> ()
  last = Constant <value = int64[1] {{-1}}> ()
  first = Constant <value = int64[1] {{0}}> ()
  stride = Constant <value = float {{4.0}}> ()
  anchor = Constant <value = float[4] {{-8.0, -8.0, 8.0, 8.0}}> ()
  nought = Constant <value = float {{0.0}}> ()
  count = Constant <value_int: int = @post_nms_top_n> ()
  k = Unsqueeze (count, first)
  width = Shape <start: int = 3> (objectness0)
  size = Shape <start: int = 2> (objectness0)
  plane = ReduceProd <keepdims: int = 1> (size)
  logits_given = Reshape (objectness0, rows)
  logits = Cast <to: int = 1> (logits_given)
  best, index = TopK (logits, k)
  offsets_given = Reshape (deltas0, cells)
  offsets = Cast <to: int = 1> (offsets_given)
  channels_last = Transpose <perm: ints = [0, 2, 1]> (offsets)
  at = Unsqueeze (index, last)
  delta = GatherND <batch_dims: int = 1> (channels_last, at)
  place = Mod (index, plane)
  column = Mod (place, width)
  row = Div (place, width)
  column_last = Unsqueeze (column, last)
  row_last = Unsqueeze (row, last)
  corner_cells = Concat <axis: int = -1> (column_last, row_last, column_last, row_last)
  corner_float = Cast <to: int = 1> (corner_cells)
  corner = Mul (corner_float, stride)
  boxes = Add (corner, anchor)
  moved = Add (boxes, delta)
  hw = Reshape (image_hw, pairs)
  h, w = Split <axis: int = 2, num_outputs: int = 2> (hw)
  limit = Concat <axis: int = 2> (w, h, w, h)
  below = Min (moved, limit)
  proposals = Max (below, nought)
}}
"""

PYRAMID_ROI_ALIGN = f"""{HEADER}
PyramidRoiAlign <strides, output_size, sampling_ratio, aligned, canonical_scale, canonical_level, level_eps,
  plugin_version, plugin_namespace>
  (rois, x0, x1) => (pooled) {{
  first = Constant <value = int64 {{0}}> ()
  step = Constant <value = int64 {{1}}> ()
  axis = Constant <value = int64[1] {{1}}> ()
  flat = Constant <value = int64[1] {{-1}}> ()
  fours = Constant <value = int64[2] {{-1, 4}}> ()
  shape = Shape <start: int = 0, end: int = 2> (rois)
  batch = Shape <start: int = 0, end: int = 1> (rois)
  end = Squeeze (batch)
  images = Range (first, end, step)
  image_column = Unsqueeze (images, axis)
  image_grid = Expand (image_column, shape)
  image = Reshape (image_grid, flat)
  boxes = Reshape (rois, fours)
  boxes_typed = CastLike (boxes, x0)
  pooled = RoiAlign <output_height: int = @output_size, output_width: int = @output_size,
    sampling_ratio: int = @sampling_ratio, spatial_scale: float = 0.25,
    coordinate_transformation_mode: string = "output_half_pixel"> (x0, boxes_typed, image)
}}
"""

DETECTION_NMS = f"""{HEADER}
DetectionNms <box_weights, bbox_xform_clip, nms_threshold, score_threshold, min_size, detections_per_image, background,
  class_agnostic, plugin_version, plugin_namespace>
  (image_hw, proposals, class_logits, box_deltas) => (num_detections, boxes, scores, labels) {{
  last = Constant <value = int64[1] {{-1}}> ()
  first = Constant <value = int64[1] {{0}}> ()
  one = Constant <value = int64[1] {{1}}> ()
  two = Constant <value = int64[1] {{2}}> ()
  end = Constant <value = int64[1] {{1000}}> ()
  label_zero = Constant <value = int32 {{0}}> ()
  label_one = Constant <value = int32 {{1}}> ()
  count = Constant <value_int: int = @detections_per_image> ()
  k = Unsqueeze (count, first)
  logits = Cast <to: int = 1> (class_logits)
  probability = Softmax <axis: int = -1> (logits)
  shape = Shape <start: int = 0, end: int = 2> (proposals)
  grid = Concat <axis: int = 0> (shape, last)
  by_proposal = Reshape (probability, grid)
  foreground = Slice (by_proposal, one, end, two)
  score = ReduceMax <keepdims: int = 0> (foreground, two)
  label = ArgMax <axis: int = 2, keepdims: int = 0> (foreground)
  scores, index = TopK (score, k)
  at = Unsqueeze (index, last)
  boxes = GatherND <batch_dims: int = 1> (proposals, at)
  picked = GatherND <batch_dims: int = 1> (label, at)
  shifted = Add (picked, one)
  labels = Cast <to: int = 6> (shifted)
  nothing = Mul (labels, label_zero)
  each = Add (nothing, label_one)
  num_detections = ReduceSum <keepdims: int = 0> (each, one)
}}
"""

BODIES = (RPN_PROPOSALS, PYRAMID_ROI_ALIGN, DETECTION_NMS)
