"""What a Python plugin does when its engine runs: TensorRT's descriptors to tensors, the op's plan, launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_mrcnn.errors import PluginError
from edge_mrcnn.gpu.kernels import plan_of
from edge_mrcnn.gpu.launcher import KernelLauncher
from edge_mrcnn.gpu.launches import Launch, Layout, Tensor
from edge_mrcnn.gpu.tensorrt_api import TensorRtApi
from edge_mrcnn.ops import OpSpec

_KEPT_PLANS = 8
"""Sets of addresses a context runs with: its own intermediate tensors stay, the caller's alternate."""


class Enqueuer:
    """Runs one op in one execution context, with the kernels that NVRTC compiles.

    Args:
        api: The TensorRT that calls.
        op: The op.
        attributes: The node's.
    """

    def __init__(self, api: TensorRtApi, op: OpSpec, attributes: Mapping[str, Any]) -> None:
        trt = api.module
        self._op, self._attributes, self._plan = op, attributes, plan_of(op.name)
        self._dtypes = {trt.float32: "float32", trt.float16: "float16", trt.int32: "int32"}
        self._layouts: dict[Any, Layout] = {trt.TensorFormat.LINEAR: "linear", trt.TensorFormat.HWC8: "hwc8"}
        self._launcher: KernelLauncher | None = None
        self._kept: dict[Any, list[Launch]] = {}

    def workspace_bytes(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        """Bytes of workspace for the largest shapes of `DynamicPluginTensorDesc`.

        Raises:
            PluginError: They are out of the kernels' range.
        """
        taken, given = (
            [self._tensor(tensor.desc, 0, tensor.max) for tensor in tensors] for tensors in (inputs, outputs)
        )
        return self._plan.workspace_bytes(self._attributes, taken, given)

    def prepare(self) -> None:
        """Compile and load the kernels for the calling thread's context.

        Raises:
            EngineError: The thread has no context, or the GPU refuses the kernels.
            PluginError: They cannot be compiled.
        """
        launcher = KernelLauncher.of_thread()
        launcher.load([self._plan.SOURCE])
        self._launcher = launcher

    def forget(self) -> None:
        """Plan anew: shapes or formats may have changed."""
        self._kept.clear()

    def run(
        self,
        input_descs: Sequence[Any],
        output_descs: Sequence[Any],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        """Give the op's kernels to TensorRT's stream.

        Args:
            input_descs: `PluginTensorDesc` of each input.
            output_descs: Likewise.
            inputs: Addresses.
            outputs: Addresses.
            workspace: Address.
            stream: Handle.

        Raises:
            EngineError: The GPU refuses a launch, or earlier work on it failed.
            PluginError: The shapes are out of the kernels' range, or there is no compiler.
        """
        if self._launcher is None:  # while TensorRT times the op for a build, it is attached to no context
            self.prepare()
        assert self._launcher is not None
        # Planned anew for each frame, RpnProposals at five levels costs about 0.3 ms of the CPU; a plan that is kept
        # costs 0.02 ms, mostly for reading shapes. `forget` is called when a type or a format can have changed.
        key = tuple(inputs), tuple(outputs), workspace, tuple(desc.dims[:] for desc in input_descs)
        launches = self._kept.get(key)
        if launches is None:
            if len(self._kept) >= _KEPT_PLANS:
                self._kept.clear()
            taken, given = (
                [self._tensor(desc, address, desc.dims) for desc, address in zip(descs, addresses, strict=True)]
                for descs, addresses in ((input_descs, inputs), (output_descs, outputs))
            )
            launches = self._kept[key] = self._plan.launches(self._attributes, taken, given, workspace)
        self._launcher.run(launches, stream)

    def _tensor(self, desc: Any, address: int, dims: Any) -> Tensor:
        if desc.type not in self._dtypes or desc.format not in self._layouts:
            raise PluginError(
                f"{self._op.name} cannot take a tensor of {desc.type} in {desc.format}; build the engine again with "
                "this version of edge_mrcnn: edge-mrcnn build model.onnx"
            )
        return Tensor(address, tuple(dims), self._dtypes[desc.type], self._layouts[desc.format])
