"""What importing costs: a device that runs the network needs no torch, no onnx and no SciPy."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import edge_mrcnn.runtime

BLOCK = """
import importlib.abc, sys
BLOCKED = {"torch", "torchvision", "onnx", "onnx_graphsurgeon", "onnxscript", "scipy"}
class Guard(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} must not be imported by the runtime")
sys.meta_path.insert(0, Guard())
"""

RUN = """
import importlib, sys
for module in sys.argv[2:]:
    importlib.import_module(module)
from edge_mrcnn import Detector, annotate, open_source
with Detector(sys.argv[1], threshold=0.2) as detector, open_source("test://96x64?frames=2") as source:
    for frame in source:
        found = detector(frame)
        assert len(found) == 2, found
        found.instance_map(), found.masks(), found.rle(), found.polygons()
        assert annotate(frame, found, detector.class_names).shape == frame.image.shape
from edge_mrcnn.runtime.pipeline import run_pipeline
assert run_pipeline(sys.argv[1], ["test://96x64?frames=2"]).frames == 2
assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)


def test_the_runtime_runs_without_training_packages(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx, which makes the tiny detector, is not installed")
    sys.path.insert(0, str(Path(__file__).parent / "runtime"))
    try:
        model = importlib.import_module("tiny_detector").save_detector(tmp_path / "model.onnx")
    finally:
        sys.path.pop(0)
    modules = [item.name for item in pkgutil.walk_packages(edge_mrcnn.runtime.__path__, "edge_mrcnn.runtime.")]
    assert len(modules) > 10
    result = run(BLOCK + RUN, str(model), *modules)
    assert result.returncode == 0, result.stderr


def test_importing_the_package_needs_numpy_only() -> None:
    program = (
        "import sys, edge_mrcnn\n"
        "from edge_mrcnn import Detections, Frame, ModelSpec, StreamError\n"
        "heavy = {'cv2', 'onnxruntime', 'tyro', 'torch', 'onnx', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = run(program)
    assert result.returncode == 0, result.stderr


def test_onnxruntime_is_imported_by_its_runner_only() -> None:
    program = (
        "import sys\n"
        "import edge_mrcnn.runtime.pipeline\n"
        "heavy = {'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'tyro', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = run(program)
    assert result.returncode == 0, result.stderr


def test_every_public_name_is_there() -> None:
    assert set(edge_mrcnn.__all__) <= set(dir(edge_mrcnn))
    for name in edge_mrcnn.__all__:
        assert getattr(edge_mrcnn, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Detektor'"):
        _ = edge_mrcnn.Detektor
