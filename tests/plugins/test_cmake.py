"""What CMake finds, says and downloads; building the library is in test_library.py."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.plugins.library_build import ROOT, find_cmake, probe, run

if find_cmake() is None:
    pytest.skip("CMake is not installed", allow_module_level=True)

FETCH = "-DEDGE_MRCNN_FETCH_TENSORRT_HEADERS=ON"

CUDA_12 = (50, 75, 80, 86, 87, 89, 90)
CUDA_13 = (75, 80, 86, 87, 88, 90, 100, 103, 110)

VERSIONS = [
    # the lines of NvInferVersion.h, the version
    ("#define NV_TENSORRT_MAJOR 10 //!< major\n#define NV_TENSORRT_MINOR 3\n#define NV_TENSORRT_PATCH 0\n", "10.3.0"),
    (
        "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n#define TRT_PATCH_ENTERPRISE 0\n"
        "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major\n",
        "11.1.0",
    ),
    ("#define TRT_MAJOR_RTX 1\n#define TRT_MINOR_RTX 7\n#define TRT_PATCH_RTX 1\n", "1.7.1"),
]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is named by the environment but what a test names."""
    for name in ("CUDACXX", "CUDAARCHS", "CUDA_HOME", "CUDA_PATH", "TENSORRT_ROOT", "TENSORRT_INCLUDE_DIR"):
        monkeypatch.delenv(name, raising=False)


def write_nvcc(folder: Path, architectures: tuple[int, ...]) -> Path:
    """A stand-in that lists what it compiles for."""
    folder.mkdir(parents=True, exist_ok=True)
    nvcc = folder / "nvcc"
    nvcc.write_text("#!/bin/sh\nprintf 'compute_%s\\n' " + " ".join(map(str, architectures)) + "\n")
    nvcc.chmod(0o755)
    return nvcc


def write_headers(folder: Path, text: str = VERSIONS[0][0]) -> Path:
    """Headers that say which version they are, and no more."""
    folder.mkdir(parents=True)
    (folder / "NvInferRuntime.h").write_text("")
    (folder / "NvInferVersion.h").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (CUDA_12, "75-real;80-real;86-real;87-real;89-real;90-real;90-virtual"),
        (CUDA_13, "75-real;80-real;86-real;87-real;90-real;100-real;110-real;110-virtual"),
    ],
)
def test_the_architectures_follow_the_toolkit(tmp_path: Path, listed: tuple[int, ...], expected: str) -> None:
    """Those the kernels know and nvcc too; the newest as PTX as well."""
    nvcc = write_nvcc(tmp_path, listed)
    found = probe(CUDACXX=str(nvcc))
    assert found["CMAKE_CUDA_COMPILER"] == str(nvcc)
    assert found["CMAKE_CUDA_ARCHITECTURES"] == expected


def test_architectures_can_be_chosen(tmp_path: Path) -> None:
    nvcc = write_nvcc(tmp_path, CUDA_13)
    assert probe(CUDACXX=str(nvcc), CUDAARCHS="87;110")["CMAKE_CUDA_ARCHITECTURES"] == "87;110"


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_nvcc_is_found_beside_path(tmp_path: Path, variable: str) -> None:
    nvcc = write_nvcc(tmp_path / "cuda" / "bin", CUDA_12)
    assert probe(**{variable: str(tmp_path / "cuda")})["CMAKE_CUDA_COMPILER"] == str(nvcc)


@pytest.mark.parametrize(("text", "version"), VERSIONS)
def test_the_version_of_headers(tmp_path: Path, text: str, version: str) -> None:
    include = write_headers(tmp_path / "sdk" / "include", text)
    for environment in ({"TENSORRT_ROOT": str(include.parent)}, {"TENSORRT_INCLUDE_DIR": str(include)}):
        found = probe(**environment)
        assert (found["TENSORRT_INCLUDE_DIR"], found["TENSORRT_VERSION"]) == (str(include), version)


def configure(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Configure the repository with this machine's nvcc."""
    if not probe()["CMAKE_CUDA_COMPILER"]:
        pytest.skip("nvcc is not installed")
    command = [find_cmake() or "cmake", "-S", str(ROOT), "-B", str(folder), "-DCMAKE_CUDA_ARCHITECTURES=87", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def words(text: str) -> str:
    """CMake breaks the lines of its messages."""
    return re.sub(r"\s+", " ", text)


def test_without_headers_the_kernels_remain(tmp_path: Path) -> None:
    """And the message says where to get them."""
    done = configure(tmp_path, "-DTENSORRT_INCLUDE_DIR=/nowhere")
    assert done.returncode == 0, done.stderr
    said = words(done.stderr)
    assert "TensorRT's headers were not found, so the kernels are built and the plugins are not" in said
    assert "-DTENSORRT_ROOT=FOLDER" in said
    assert FETCH in said
    targets = run(find_cmake() or "cmake", "--build", tmp_path, "--target", "help")
    assert "edge_mrcnn_kernels" in targets
    assert "edge_mrcnn_plugins" not in targets


@pytest.mark.parametrize(("asked", "tag"), [("10.13.3", "v10.13.3"), ("11.1.0", "v11.1")])
def test_headers_are_fetched_by_the_tag_of_the_version(tmp_path: Path, asked: str, tag: str) -> None:
    """From an archive as GitHub makes it, here a local one."""
    write_headers(tmp_path / f"TensorRT-{tag}" / "include")
    (tmp_path / f"TensorRT-{tag}" / "README.md").write_text("what is not wanted")
    with tarfile.open(tmp_path / f"{tag}.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / f"TensorRT-{tag}", f"TensorRT-{tag}")
    options = (FETCH, f"-DEDGE_MRCNN_TENSORRT_VERSION={asked}", f"-DEDGE_MRCNN_TENSORRT_ARCHIVES=file://{tmp_path}")
    for fetched in (True, False):  # once a build folder
        done = configure(tmp_path / "build", *options)
        assert done.returncode == 0, done.stderr
        assert ("Downloading" in done.stdout) == fetched
        assert "TensorRT's headers: 10.3.0 in" in done.stdout, "what the headers say"
    assert not list((tmp_path / "build").rglob("README.md"))


def test_headers_that_cannot_be_fetched_are_an_error_with_a_remedy(tmp_path: Path) -> None:
    options = (FETCH, "-DEDGE_MRCNN_TENSORRT_VERSION=9.9.9", f"-DEDGE_MRCNN_TENSORRT_ARCHIVES=file://{tmp_path}")
    done = configure(tmp_path / "build", *options)
    assert done.returncode != 0
    assert "TensorRT's headers of version 9.9.9 could not be downloaded" in words(done.stderr)
    assert "-DTENSORRT_INCLUDE_DIR=FOLDER" in words(done.stderr)


PIP = [
    # packages of the environment, the version asked for
    ({}, ""),
    ({"tensorrt": "10.13.3.9"}, "10.13.3"),
    ({"tensorrt_cu12": "10.3.0", "tensorrt_rtx": "1.7.1.116"}, "10.3.0"),
    ({"tensorrt_rtx": "1.7.1.116"}, "11.1"),  # whose headers fit it
]


@pytest.mark.parametrize(("packages", "expected"), PIP)
def test_the_version_of_pips_tensorrt(tmp_path: Path, packages: dict[str, str], expected: str) -> None:
    run(shutil.which("python3") or "python3", "-m", "venv", "--without-pip", tmp_path)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    for name, version in packages.items():
        folder = site / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    assert run(tmp_path / "bin" / "python", ROOT / "cmake" / "pip_tensorrt.py") == expected
