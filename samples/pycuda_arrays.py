"""A picture that PyCUDA has on the GPU, to instances without a copy. `python samples/pycuda_arrays.py ENGINE [SOURCE]`.

Needs an NVIDIA GPU, PyCUDA (pip install 'edge-mrcnn[pycuda]') and an engine (edge-mrcnn build MODEL). PyCUDA's arrays
must lie in the primary context, where TensorRT works: import pycuda.autoprimaryctx and not pycuda.autoinit.
"""

import sys
from pathlib import Path

from edge_mrcnn import open_source
from edge_mrcnn.runtime.trt_runner import TrtRunner

if len(sys.argv) < 2:
    sys.exit(__doc__)

import numpy as np
import pycuda.autoprimaryctx  # noqa: F401
from pycuda.elementwise import ElementwiseKernel
from pycuda.gpuarray import to_gpu

source = sys.argv[2] if len(sys.argv) > 2 else str(Path(__file__).parent / "tabletop" / "clip.mp4")
brighten = ElementwiseKernel("unsigned char *pixel, float gain", "pixel[i] = min(255.0f, pixel[i] * gain)")

with TrtRunner(sys.argv[1]) as runner, open_source(source) as frames:
    for frame in frames:
        picture = to_gpu(np.ascontiguousarray(frame.image))
        brighten(picture, np.float32(1.2))  # any work of yours; the runner reads the picture after it, where it lies
        outputs, (geometry,) = runner.infer_pictures([picture])
        count = int(outputs["num_detections"][0])
        boxes = geometry.unletterbox_boxes(outputs["boxes"][0, :count])
        names = [runner.spec.class_names[label] for label in outputs["labels"][0, :count]]
        found = zip(names, boxes.round().astype(int).tolist(), outputs["scores"][0, :count].tolist(), strict=True)
        print(frame.index, [(name, box) for name, box, score in found if score > 0.5])
