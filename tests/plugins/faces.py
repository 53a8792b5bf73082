"""Runs an op's kernels on the CPU, as the Python plan launches them and as the C++ launcher does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_mrcnn.gpu.kernels import Plan
from edge_mrcnn.gpu.launches import Layout
from edge_mrcnn.ops import OPS
from tests.plugins.executor import Executor, Kernels, Launched

Array = npt.NDArray[Any]


def run_kernels(
    kernels: Kernels,
    plan: Plan,
    op: str,
    attributes: Mapping[str, Any],
    inputs: Sequence[Array],
    layout: Layout = "linear",
    seed: int = 0,
) -> list[Array]:
    """Outputs of an op. Plan and launcher run one after the other, in another order of threads and blocks; they must
    launch the same kernels, want the same workspace and give the same bits.

    Args:
        kernels: The op's.
        plan: The op's module in `edge_mrcnn.gpu.kernels`.
        op: Name of the op.
        attributes: Of the node.
        inputs: Of the node.
        layout: Of the inputs that are feature maps.
        seed: Decides the order of threads and blocks.
    """
    spec = OPS[op]
    features = next(x.dtype for x, t in zip(inputs, _expanded(op, inputs), strict=True) if t.dtype == "features")
    shapes = spec.output_shapes([x.shape for x in inputs], attributes)
    dtypes = [features if tensor.dtype == "features" else np.dtype(tensor.dtype) for tensor in spec.outputs]
    with Executor(kernels, seed) as gpu:
        given = [gpu.array(x, layout if x.ndim == 4 else "linear").tensor for x in inputs]
        results = []
        for by_plan in (True, False):
            outputs = [gpu.empty(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
            tensors = [output.tensor for output in outputs]
            size = plan.workspace_bytes(attributes, given, tensors)
            launches = plan.launches(attributes, given, tensors, gpu.workspace(size))
            if by_plan:
                gpu.run(launches)
            else:
                assert gpu.workspace_bytes(launches[0].args) == size
                launched = gpu.launch_host(launches[0].args, features.name)
                assert launched == [Launched.of(launch) for launch in launches]
            results.append([output.read() for output in outputs])
    for one, other in zip(*results, strict=True):
        assert one.tobytes() == other.tobytes()
    return results[0]


def _expanded(op: str, inputs: Sequence[Array]) -> Any:
    spec = OPS[op]
    return spec.expand_inputs(spec.levels(len(inputs)))
