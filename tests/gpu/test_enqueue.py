"""The run-time half of the Python plugin: from TensorRT's descriptors to launches."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from edge_mrcnn.errors import EngineError, PluginError
from edge_mrcnn.gpu import cuda, enqueue, plugins, tensorrt_api
from edge_mrcnn.gpu.kernels import plan_of
from edge_mrcnn.gpu.launches import Launch, Tensor
from edge_mrcnn.gpu.plugins import make_fields
from edge_mrcnn.gpu.tensorrt_api import TensorRtApi
from edge_mrcnn.ops import OPS
from tests.compiler.tiny_model import NMS, ROI_ALIGN, RPN

ATTRIBUTES: Mapping[str, dict[str, Any]] = {"RpnProposals": RPN, "PyramidRoiAlign": ROI_ALIGN, "DetectionNms": NMS}

PROPOSALS, PATCH, DETECTIONS = RPN["post_nms_top_n"], ROI_ALIGN["output_size"], NMS["detections_per_image"]
ANCHORS = len(RPN["cell_anchors"]) // (4 * len(RPN["strides"]))


def shapes_of(batch: int) -> Mapping[str, tuple[list[tuple[int, ...]], list[tuple[int, ...]]]]:
    """Shapes of each op's inputs and outputs; the tiny model has two levels."""
    sizes = (24, 32), (12, 16)
    rows = batch * PROPOSALS
    return {
        "RpnProposals": (
            [(batch, 2), *((batch, ANCHORS, *hw) for hw in sizes), *((batch, 4 * ANCHORS, *hw) for hw in sizes)],
            [(batch, PROPOSALS, 4)],
        ),
        "PyramidRoiAlign": (
            [(batch, PROPOSALS, 4), *((batch, 16, *hw) for hw in sizes)],
            [(rows, 16, PATCH, PATCH)],
        ),
        "DetectionNms": (
            [(batch, 2), (batch, PROPOSALS, 4), (rows, 3), (rows, 12)],
            [(batch,), (batch, DETECTIONS, 4), (batch, DETECTIONS), (batch, DETECTIONS)],
        ),
    }


class Recorder:
    """Stands in for the kernels of a context."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.runs: list[tuple[list[Launch], int]] = []

    def load(self, sources: Sequence[str]) -> None:
        self.loaded += sources

    def run(self, launches: list[Launch], stream: int) -> None:
        self.runs.append((launches, stream))


@pytest.fixture(scope="module")
def api() -> TensorRtApi:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    return tensorrt_api.load("rtx")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(enqueue, "KernelLauncher", SimpleNamespace(of_thread=lambda: made))
    return made


def plugin_of(api: TensorRtApi, name: str, phase: str = "RUNTIME") -> Any:
    fields = make_fields(api, OPS[name], ATTRIBUTES[name])
    creator = plugins._creator_class(api)(OPS[name])
    return creator.create_plugin("node", fields, getattr(api.module.TensorRTPhase, phase))


def desc(api: TensorRtApi, tensor: Tensor) -> Any:
    """TensorRT's own `PluginTensorDesc`."""
    trt = api.module
    made = trt.PluginTensorDesc()
    made.dims = trt.Dims(list(tensor.shape))
    made.type = {"float32": trt.float32, "float16": trt.float16, "int32": trt.int32}[tensor.dtype]
    made.format = trt.TensorFormat.HWC8 if tensor.layout == "hwc8" else trt.TensorFormat.LINEAR
    return made


def tensors_of(name: str, features: str = "float16", batch: int = 2) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors of an op with made-up addresses; four-dimensional float16 ones with channels last."""
    specs = [*OPS[name].expand_inputs(2), *OPS[name].outputs]
    inputs, outputs = shapes_of(batch)[name]
    made = []
    for index, (spec, shape) in enumerate(zip(specs, [*inputs, *outputs], strict=True)):
        dtype = features if spec.dtype == "features" else spec.dtype
        layout = "hwc8" if dtype == "float16" and len(shape) == 4 else "linear"
        made.append(Tensor(0x1000 * (index + 1), shape, dtype, layout))
    return made[: len(inputs)], made[len(inputs) :]


def call(api: TensorRtApi, plugin: Any, inputs: list[Tensor], outputs: list[Tensor], workspace: int = 0x90000) -> None:
    plugin.enqueue(
        [desc(api, tensor) for tensor in inputs],
        [desc(api, tensor) for tensor in outputs],
        [tensor.address for tensor in inputs],
        [tensor.address for tensor in outputs],
        workspace,
        0x77,
    )


def plain(launches: Sequence[Launch]) -> list[tuple[Any, ...]]:
    return [(one.source, one.kernel, one.grid, one.block, one.shared_bytes, bytes(one.args)) for one in launches]


@pytest.mark.parametrize("features", ["float16", "float32"])
@pytest.mark.parametrize("name", OPS)
def test_enqueue_launches_what_the_plan_says(api: TensorRtApi, recorder: Recorder, name: str, features: str) -> None:
    inputs, outputs = tensors_of(name, features)
    plugin = plugin_of(api, name).attach_to_context(None)
    call(api, plugin, inputs, outputs)
    ((launches, stream),) = recorder.runs
    expected = plan_of(name).launches(plugin.attributes, inputs, outputs, 0x90000)
    assert plain(launches) == plain(expected)
    assert len(launches) > 0
    assert stream == 0x77


@pytest.mark.parametrize("name", OPS)
def test_kernels_are_loaded_when_the_plugin_is_attached(api: TensorRtApi, recorder: Recorder, name: str) -> None:
    plugin = plugin_of(api, name)
    assert recorder.loaded == [], "making a plugin needs no GPU"
    attached = plugin.attach_to_context(None)
    assert recorder.loaded == [plan_of(name).SOURCE]
    call(api, attached, *tensors_of(name))
    assert len(recorder.loaded) == 1, "and enqueue compiles nothing"


def test_a_plugin_that_is_timed_before_it_is_attached_loads_its_kernels_once(
    api: TensorRtApi, recorder: Recorder
) -> None:
    plugin = plugin_of(api, "DetectionNms", "BUILD")
    for _ in range(3):
        call(api, plugin, *tensors_of("DetectionNms"))
    assert recorder.loaded == [plan_of("DetectionNms").SOURCE]
    assert len(recorder.runs) == 3


def test_the_same_addresses_and_shapes_are_planned_once(api: TensorRtApi, recorder: Recorder) -> None:
    plugin = plugin_of(api, "RpnProposals").attach_to_context(None)
    inputs, outputs = tensors_of("RpnProposals")
    moved = [Tensor(tensor.address + 0x100, tensor.shape, tensor.dtype, tensor.layout) for tensor in outputs]
    for _ in range(2):
        call(api, plugin, inputs, outputs)
        call(api, plugin, inputs, moved)
    first, second, third, fourth = (launches for launches, _ in recorder.runs)
    assert first is third
    assert second is fourth
    assert plain(first) != plain(second)


@pytest.mark.parametrize("change", ["shape", "workspace", "format"])
def test_what_has_changed_is_planned_anew(api: TensorRtApi, recorder: Recorder, change: str) -> None:
    plugin = plugin_of(api, "RpnProposals").attach_to_context(None)
    inputs, outputs = tensors_of("RpnProposals")
    call(api, plugin, inputs, outputs)
    workspace = 0x90000
    if change == "shape":
        inputs, outputs = tensors_of("RpnProposals", batch=1)
    elif change == "workspace":
        workspace = 0xA0000
    else:
        inputs = [Tensor(tensor.address, tensor.shape, tensor.dtype) for tensor in inputs]
        plugin.on_shape_change([], [])  # TensorRT calls it when a context takes another profile, and with it formats
    call(api, plugin, inputs, outputs, workspace)
    expected = plan_of("RpnProposals").launches(plugin.attributes, inputs, outputs, workspace)
    assert plain(recorder.runs[1][0]) == plain(expected)
    assert plain(recorder.runs[0][0]) != plain(expected)


def test_plans_do_not_pile_up(api: TensorRtApi, recorder: Recorder) -> None:
    plugin = plugin_of(api, "DetectionNms").attach_to_context(None)
    for index in range(20):
        call(api, plugin, *tensors_of("DetectionNms"), workspace=0x100 * index)
    assert len(plugin._enqueuer._kept) <= enqueue._KEPT_PLANS


@pytest.mark.parametrize("name", OPS)
def test_the_workspace_is_that_of_the_largest_shapes(api: TensorRtApi, name: str) -> None:
    inputs, outputs = tensors_of(name, batch=3)
    dynamic = [
        [SimpleNamespace(desc=desc(api, tensor), max=api.module.Dims(list(tensor.shape))) for tensor in tensors]
        for tensors in (inputs, outputs)
    ]
    for tensors in dynamic:
        for tensor in tensors:
            tensor.desc.dims = api.module.Dims([-1, *tensor.desc.dims[1:]])
    plugin = plugin_of(api, name, "BUILD")
    expected = plan_of(name).workspace_bytes(plugin.attributes, inputs, outputs)
    assert plugin.get_workspace_size(*dynamic) == expected
    smaller = plan_of(name).workspace_bytes(plugin.attributes, *tensors_of(name, batch=1))
    assert smaller <= expected


def no_gpu() -> Any:
    raise EngineError("the NVIDIA driver does not load (libcuda.so.1); install it")


def test_without_a_gpu_a_plugin_is_attached_and_enqueue_says_why_it_cannot_run(
    api: TensorRtApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda, "driver", no_gpu)
    plugin = plugin_of(api, "DetectionNms").attach_to_context(None)
    with caplog.at_level(logging.ERROR), pytest.raises(EngineError, match="the NVIDIA driver does not load"):
        call(api, plugin, *tensors_of("DetectionNms"))
    assert caplog.messages == ["DetectionNms: the NVIDIA driver does not load (libcuda.so.1); install it"]
    assert not caplog.records[0].exc_info


def test_an_error_nobody_thought_of_is_logged_with_its_trace(
    api: TensorRtApi, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = plugin_of(api, "DetectionNms").attach_to_context(None)
    monkeypatch.setattr(recorder, "run", lambda launches, stream: 1 / 0)
    with caplog.at_level(logging.ERROR), pytest.raises(ZeroDivisionError):
        call(api, plugin, *tensors_of("DetectionNms"))
    assert caplog.records[0].exc_info is not None


@pytest.mark.parametrize(("attribute", "member"), [("type", "int8"), ("format", "CHW32")])
def test_a_tensor_that_no_kernel_takes(api: TensorRtApi, recorder: Recorder, attribute: str, member: str) -> None:
    plugin = plugin_of(api, "DetectionNms").attach_to_context(None)
    inputs, outputs = tensors_of("DetectionNms")
    descs = [desc(api, tensor) for tensor in inputs]
    setattr(descs[2], attribute, getattr(api.module if attribute == "type" else api.module.TensorFormat, member))
    with pytest.raises(
        PluginError,
        match=rf"DetectionNms cannot take a tensor of .*{'INT8' if attribute == 'type' else member}.*edge-mrcnn build",
    ):
        plugin.enqueue(descs, [desc(api, tensor) for tensor in outputs], [0] * 4, [0] * 4, 0, 0)
