"""What installs where: the extras resolve for the devices, and every Python has its pins."""

import importlib.util
import sys
from pathlib import Path

import pytest

if sys.version_info < (3, 11):
    pytest.skip("reading pyproject.toml needs Python 3.11 or newer", allow_module_level=True)

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("update", ROOT / "constraints" / "update.py")
assert _spec is not None
assert _spec.loader is not None
update = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(update)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("python", "extras", "expected"),
    [
        # JetPack 6: Python 3.10, CUDA 12.6, its own tensorrt and cv2; onnxruntime for 3.10 ends at 1.23
        ("3.10", ("cpu", "gpu-cu12"), {"cuda-core": "1.", "cuda-bindings": "12.", "onnxruntime": "1."}),
        # JetPack 7: Python 3.12, CUDA 13
        ("3.12", ("cpu", "gpu-cu13"), {"cuda-core": "1.", "cuda-bindings": "13.", "onnxruntime": "1."}),
        ("3.12", ("vision", "cpu"), {"opencv-python": ""}),
    ],
)
def test_device_extras_resolve_on_aarch64(python: str, extras: tuple[str, ...], expected: dict[str, str]) -> None:
    found = update.pip_report(update.requirements(extras), python, "aarch64")
    for name, version in expected.items():
        assert found[name].startswith(version), found
    heavy = {"torch", "torchvision", "onnx", "scipy", "onnx_graphsurgeon"} & set(found)
    assert not heavy, f"a device would install {heavy}"


def test_every_python_has_pins() -> None:
    for python in update.PYTHONS:
        pins = (ROOT / "constraints" / f"py{python.replace('.', '')}.txt").read_text()
        assert "torch==2.13" not in pins, "the CPU-only build has no working torchvision"
        for name in ("numpy==", "onnxruntime==", "onnx==", "tyro==", "torchvision==", "pytest=="):
            assert f"\n{name}" in pins, (python, name)
