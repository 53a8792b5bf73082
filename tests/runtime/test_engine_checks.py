"""Whether an engine may run here: every way in which sidecar and machine can disagree."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import edge_mrcnn
from edge_mrcnn.device import Gpu
from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu.target import parse_target
from edge_mrcnn.runtime.engine_checks import check_engine, engine_flavour, gpu_class, rebuild_command
from edge_mrcnn.sidecar import EngineSidecar, RecipeRecord, plugins_hash
from tests.runtime.tiny_detector import SPEC

RTX = EngineSidecar(
    edge_mrcnn="0.1.0",
    flavour="rtx",
    tensorrt="1.7.1.116",
    target="rtx:sm_86,sm_89",
    device=None,
    capability=None,
    precision="fp16",
    batch=(1, 1, 4),
    spec=SPEC,
    inputs=(),
    outputs=(),
    layers=(),
    onnx_sha256="",
    engine_sha256="",
    plugins_sha256=plugins_hash(),
    build_key="",
    created="",
)
ORIN = dataclasses.replace(
    RTX, flavour="tensorrt", tensorrt="10.3.0", target="tensorrt", device="Orin", capability="sm_87", batch=(2, 2, 2)
)


def gpu(name: str, sm: int) -> Gpu:
    return Gpu(name, divmod(sm, 10), 8 << 30)


def change(sidecar: EngineSidecar, **fields: Any) -> EngineSidecar:
    return dataclasses.replace(sidecar, **fields)


FITTING = [
    # sidecar, TensorRT here, GPU here
    (RTX, "1.7.1.116", gpu("NVIDIA GeForce RTX 3060", 86)),
    (RTX, "1.7.1.116", gpu("NVIDIA L4", 89)),
    (change(RTX, tensorrt="1.7.1"), "1.7.1.116", gpu("NVIDIA L4", 89)),  # a package that leaves the build number out
    (change(RTX, target="rtx"), "1.7.1.116", gpu("NVIDIA A100-SXM4-40GB", 80)),
    (change(RTX, target="rtx"), "1.7.1.116", gpu("NVIDIA GeForce RTX 5090", 120)),
    (change(RTX, target="rtx:current", device="X", capability="sm_86"), "1.7.1.116", gpu("Y", 86)),  # portable
    (ORIN, "10.3.0", gpu("Orin", 87)),
    (ORIN, "10.3.0", gpu("Orin (nvgpu)", 87)),
    (change(ORIN, device="NVIDIA A100-SXM4-40GB", capability="sm_80"), "10.3.0", gpu("NVIDIA A100 80GB PCIe", 80)),
]


@pytest.mark.parametrize(("sidecar", "version", "here"), FITTING, ids=range(len(FITTING)))
def test_what_fits_is_let_through(sidecar: EngineSidecar, version: str, here: Gpu) -> None:
    check_engine(sidecar, version, here)


REFUSED = [
    # sidecar, TensorRT here, GPU here, what is said
    (
        RTX,
        "1.6.0.40",
        gpu("NVIDIA L4", 89),
        r"built by TensorRT-RTX 1\.7\.1\.116 and runs with no other, here is 1\.6\.0\.40; build it again with this "
        r"one: edge-mrcnn build model\.onnx --target rtx:sm_86,sm_89 --precision fp16 --batch 1,1,4, or install "
        r"that one: pip install tensorrt-rtx==1\.7\.1\.116$",
    ),
    (RTX, "1.7.1.117", gpu("NVIDIA L4", 89), r"1\.7\.1\.116 and runs with no other, here is 1\.7\.1\.117"),
    (
        ORIN,
        "10.13.3",
        gpu("Orin", 87),
        r"built by TensorRT 10\.3\.0 .* here is 10\.13\.3; .*: edge-mrcnn build model\.onnx --target tensorrt "
        r"--precision fp16 --batch 2,2,2$",
    ),
    (ORIN, "10.3.1", gpu("Orin", 87), r"10\.3\.0 and runs with no other, here is 10\.3\.1"),
    (
        RTX,
        "1.7.1.116",
        gpu("NVIDIA GeForce RTX 2080", 75),
        r"for sm_86, sm_89, here is NVIDIA GeForce RTX 2080 \(sm_75\); .*--target rtx:sm_86,sm_89,sm_75 ",
    ),
    (
        change(RTX, target="rtx"),
        "1.7.1.116",
        gpu("Tesla T4", 75),
        r"from Ampere \(sm_80\) on, here is Tesla T4 \(sm_75\); .*--target rtx:sm_75 ",
    ),
    (
        change(RTX, target="rtx:current", device="NVIDIA L4", capability="sm_89"),
        "1.7.1.116",
        gpu("NVIDIA A10", 86),
        r"built on NVIDIA L4 \(sm_89\) and cannot run on NVIDIA A10 \(sm_86\); .*--target rtx:current ",
    ),
    (ORIN, "10.3.0", gpu("NVIDIA Thor", 110), r"built on Orin \(sm_87\) and cannot run on NVIDIA Thor \(sm_110\)"),
    (
        change(ORIN, device="NVIDIA RTX A4000", capability="sm_86"),
        "10.3.0",
        gpu("NVIDIA GeForce RTX 3090", 86),
        r"tuned on NVIDIA RTX A4000 \(sm_86\), here is NVIDIA GeForce RTX 3090 .*slow or fails; .*--target tensorrt ",
    ),
    (change(ORIN, device=None, capability=None), "10.3.0", gpu("Orin", 87), r"built on None \(None\) and cannot run"),
    (
        change(RTX, plugins_sha256="5" * 64, edge_mrcnn="0.0.9"),
        "1.7.1.116",
        gpu("NVIDIA L4", 89),
        r"plugins of edge_mrcnn 0\.0\.9, contract 555555555555\.\.\.; this is edge_mrcnn "
        rf"{edge_mrcnn.__version__}, contract {plugins_hash()[:12]}.*edge-mrcnn export.* && edge-mrcnn build",
    ),
]


@pytest.mark.parametrize(("sidecar", "version", "here", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_does_not_fit_is_refused(sidecar: EngineSidecar, version: str, here: Gpu, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        check_engine(sidecar, version, here)


def test_a_command_for_the_old_devices_repeats_the_sidecar() -> None:
    assert rebuild_command(RTX, None).endswith("--target rtx:sm_86,sm_89 --precision fp16 --batch 1,1,4")
    int8 = change(RTX, precision="int8", recipe=RecipeRecord("5" * 64, "mse", 128, ("^stem|head$", "b"), ("c",)))
    assert rebuild_command(int8, None).endswith(
        "--precision int8 --ranges ranges.json --keep-fp16 '^stem|head$' b --keep-fp32 c --batch 1,1,4"
    )


@pytest.mark.parametrize(("sidecar", "here"), [(RTX, gpu("x", 75)), (ORIN, gpu("x", 75)), (RTX, gpu("x", 121))])
def test_the_target_of_the_command_is_one(sidecar: EngineSidecar, here: Gpu) -> None:
    target = rebuild_command(sidecar, here).split("--target ")[1].split()[0]
    parsed = parse_target(target)
    assert parsed.current or here.sm in parsed.capabilities


def test_flavour() -> None:
    assert [engine_flavour(RTX), engine_flavour(ORIN)] == ["rtx", "tensorrt"]
    with pytest.raises(EngineError, match=r"for 'openvino', this version .* rtx, tensorrt; build it again: edge-mrcnn"):
        engine_flavour(change(RTX, flavour="openvino"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-80GB", True),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", True),
        ("NVIDIA GeForce RTX 4090", "NVIDIA RTX 4090", True),
        ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090 Laptop GPU", False),
        ("NVIDIA GeForce RTX 3080", "NVIDIA GeForce RTX 3080 Ti", False),
    ],
)
def test_classes_of_gpus(one: str, other: str, same: bool) -> None:
    assert (gpu_class(one) == gpu_class(other)) is same
