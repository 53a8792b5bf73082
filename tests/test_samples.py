"""Every sample runs, as a subprocess, and stays short enough to read."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

SAMPLES = Path(__file__).parents[1] / "samples"


def run(*arguments: str, folder: Path) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*.py")), ids=lambda sample: sample.name)
def test_at_most_40_lines(sample: Path) -> None:
    assert len(sample.read_text().splitlines()) <= 40


def test_masks(tmp_path: Path) -> None:
    source = str(SAMPLES / "tabletop" / "val" / "images" / "000000.jpg")
    assert "0 [" in run(str(SAMPLES / "masks.py"), source, "out/", folder=tmp_path)
    assert (tmp_path / "out" / "000000.jpg").stat().st_size > 1000


def test_track(tmp_path: Path) -> None:
    """The same picture three times, as a video has it: each thing is counted once."""
    for number in range(3):
        shutil.copy(SAMPLES / "tabletop" / "val" / "images" / "000000.jpg", tmp_path / f"{number}.jpg")
    last = run(str(SAMPLES / "track.py"), str(tmp_path), "out/", folder=tmp_path).splitlines()[-1]
    objects = json.loads((SAMPLES / "tabletop" / "val" / "annotations.json").read_text())["annotations"]
    count = int(last.split()[0])
    assert 0 < count <= sum(entry["image_id"] == objects[0]["image_id"] for entry in objects) + 1


def test_keypoints(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx, which makes the tiny detector, is not installed")
    from tests.runtime.tiny_detector import KEYPOINT_SPEC, save_detector

    model = save_detector(tmp_path / "model.onnx", KEYPOINT_SPEC)
    source = str(SAMPLES / "tabletop" / "val" / "images" / "000000.jpg")
    printed = run(str(SAMPLES / "keypoints.py"), str(model), source, "out/", folder=tmp_path)
    rim, handle = (line.rpartition(" at ") for line in printed.splitlines()[:2])
    assert (rim[0], handle[0]) == ("0: mug rim", "0: mug handle")
    # The box is 160 to 480 by 120 to 240 and the points are at fixed shares of it, to a pixel of its map of 56 x 56.
    assert [float(part) for part in rim[2].split(", ")] == pytest.approx([320, 132], abs=3)
    assert [float(part) for part in handle[2].split(", ")] == pytest.approx([448, 192], abs=3)
    assert (tmp_path / "out" / "000000.jpg").stat().st_size > 1000


def test_keypoints_says_what_it_needs(tmp_path: Path) -> None:
    command = [sys.executable, str(SAMPLES / "keypoints.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "samples/train_keypoints.py trains one" in done.stderr


def test_pycuda_arrays_says_what_it_needs(tmp_path: Path) -> None:
    command = [sys.executable, str(SAMPLES / "pycuda_arrays.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'edge-mrcnn[pycuda]'" in done.stderr


@pytest.mark.parametrize("seed", range(3))
def test_pycuda_arrays(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a stand-in GPU, with as much of PyCUDA as the sample takes; its kernels run on the default stream."""
    pytest.importorskip("onnx", reason="onnx, which makes the tiny detector, is not installed")
    from tests.gpu.fake_gpu import FakeGpu, Foreign
    from tests.runtime.tiny_detector import save_detector

    gpu = FakeGpu(monkeypatch, seed)
    arrays = []

    def to_gpu(values: np.ndarray) -> Foreign:
        arrays.append(Foreign(gpu, values))
        gpu.driver.cuStreamSynchronize(arrays[-1].stream)
        arrays[-1].__cuda_array_interface__["stream"] = None
        return arrays[-1]

    def elementwise(arguments: str, operation: str) -> Any:
        def brighten(array: Foreign, gain: np.float32) -> None:
            def run() -> None:
                pixels = gpu.driver.device_view(array.address, array.values.nbytes)
                pixels[:] = np.minimum(255, pixels * gain)

            gpu.driver.enqueue(0, "brighten", run)

        return brighten

    for name, fields in (
        ("pycuda", {}),
        ("pycuda.autoprimaryctx", {}),
        ("pycuda.elementwise", {"ElementwiseKernel": elementwise}),
        ("pycuda.gpuarray", {"to_gpu": to_gpu}),
    ):
        module = ModuleType(name)
        vars(module).update(fields)
        monkeypatch.setitem(sys.modules, name, module)
    engine = gpu.engine(save_detector(tmp_path / "model.onnx"), tmp_path)
    monkeypatch.setattr(sys, "argv", ["pycuda_arrays.py", str(engine), "test://96x64?frames=3"])
    runpy.run_path(str(SAMPLES / "pycuda_arrays.py"), run_name="__main__")
    assert [line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()] == ["0", "1", "2"]
    for array in arrays:
        array.free()
    gpu.check()


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    printed = run(str(SAMPLES / "demo.py"), "demo", folder=tmp_path)
    assert "150 frames" in printed
    left = {path.name for path in (tmp_path / "demo").iterdir()}
    made = {f"model.rtx.{name}.{suffix}" for name in ("fp32", "fp16", "int8") for suffix in ("engine", "json")}
    made |= {"model.cpu.int8.onnx", "model.cpu.int8.json", "ranges.json", "report.html", "compare.json", "run.json"}
    assert left == made | {"clip.mp4", "clip.jsonl", "contact_sheet.png"}
    compared = json.loads((tmp_path / "demo" / "compare.json").read_text())["results"]
    assert [one["label"] for one in compared] == ["fp32", "fp16", "int8", "int8-cpu"]
    assert min(one["accuracy"]["mask"]["ap"] for one in compared) > 60
