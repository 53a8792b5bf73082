"""A machine with a stand-in GPU: driver, TensorRT, kernels, and an engine with its sidecar."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_mrcnn.gpu import cuda, launcher, tensorrt_api
from edge_mrcnn.gpu.kernels import letterbox, paste_masks
from edge_mrcnn.runtime import paste, preprocess
from edge_mrcnn.runtime.runners import OrtRunner
from edge_mrcnn.sidecar import EngineSidecar, hash_file, plugins_hash, sidecar_path
from tests.gpu.fake_driver import FakeDriver
from tests.gpu.fake_tensorrt import FakeTensorRt, serialise_engine

VERSIONS = {"tensorrt": "10.3.0", "rtx": "1.7.1.116"}


def letterbox_kernel(driver: FakeDriver, args: Any) -> None:
    """The kernel by way of the CPU's letterboxing."""
    hw = args.canvas_height, args.canvas_width
    canvases = driver.device_view(args.canvas, args.count * hw[0] * hw[1] * 3).reshape(args.count, *hw, 3)
    contents = driver.device_view(args.image_hw, args.count * 8).view(np.float32).reshape(args.count, 2)
    for canvas, content, picture in zip(canvases, contents, args.pictures[: args.count], strict=True):
        _, geometry = preprocess.letterbox(rgb_of(driver, picture), hw, canvas)
        assert geometry.content_hw == (picture.content_height, picture.content_width)
        content[:] = geometry.content_hw


def rgb_of(driver: FakeDriver, picture: Any) -> np.ndarray:
    """A picture `(h, w, 3)`, from RGB or from the two planes of NV12."""
    height, width = picture.height, picture.width
    pixels = driver.device_view(picture.pixels, height * picture.pitch).reshape(height, picture.pitch)
    if not picture.chroma:
        return pixels.reshape(height, width, 3).copy()
    chroma = driver.device_view(picture.chroma, height // 2 * picture.chroma_pitch)
    planes = [pixels, chroma.reshape(height // 2, picture.chroma_pitch)]
    return cv2.cvtColor(np.concatenate([plane[:, :width] for plane in planes]), cv2.COLOR_YUV2RGB_NV12)


def paste_kernel(driver: FakeDriver, args: Any) -> None:
    """The kernel by way of the CPU's pasting, one detection after the other, the best on top."""
    count, size = args.detections, args.mask_size

    def view(address: int, *shape: int) -> np.ndarray:
        return driver.device_view(address, args.count * int(np.prod(shape)) * 4).view(np.float32).reshape(-1, *shape)

    masks, boxes, scores = view(args.masks, count, size, size), view(args.boxes, count, 4), view(args.scores, count)
    numbers = driver.device_view(args.num_detections, args.count * 4).view(np.int32)
    for row, picture in enumerate(args.pictures[: args.count]):
        out = driver.device_view(picture.instances, picture.height * picture.width * 2).view(np.uint16)
        hw, scale = (picture.height, picture.width), np.array([picture.scale_x, picture.scale_y] * 2, np.float32)
        out[:] = paste_rows(
            masks[row], boxes[row] / scale, scores[row] >= args.score_threshold, int(numbers[row]), hw
        ).ravel()


def paste_rows(masks: np.ndarray, boxes: np.ndarray, kept: np.ndarray, count: int, hw: tuple[int, int]) -> np.ndarray:
    """A map `(h, w)` uint16 of the rows kept; numbers are those of all rows."""
    instances = np.zeros(hw, np.uint16)
    for row in reversed([row for row in range(count) if kept[row]]):
        instances[paste.paste_masks(masks[row : row + 1], boxes[row : row + 1], hw)[0]] = row + 1
    return instances


class FakeGpu:
    """The machine.

    Args:
        patch: Puts it in place of the real one.
        seed: Of the order of work.
        flavour: Which TensorRT is installed.
    """

    def __init__(self, patch: pytest.MonkeyPatch, seed: int = 0, flavour: str = "tensorrt", **driver: Any) -> None:
        kernels = {
            "letterbox": (letterbox_kernel, letterbox.Args),
            "paste_masks_f32": (paste_kernel, paste_masks.Args),
        }
        self.driver = FakeDriver(seed, kernels, **driver)
        self.flavour, self.tensorrt = flavour, FakeTensorRt(self.driver, flavour, VERSIONS[flavour])
        patch.setattr(cuda, "driver", lambda: self.driver)
        patch.setattr(launcher, "compile_kernels", lambda *_, **__: b"a cubin")
        patch.setattr(tensorrt_api, "load", lambda flavour: tensorrt_api.TensorRtApi(flavour, self.tensorrt))

    def engine(self, onnx: Path, folder: Path, batch: tuple[int, int, int] = (1, 1, 4), **fields: Any) -> Path:
        """Write an engine of a network and its sidecar.

        Args:
            onnx: The network; its outputs' shapes come from its spec.
            folder: Where to.
            batch: Smallest, optimal and largest.
            fields: Of the sidecar, to be different.
        """
        with OrtRunner(onnx, threads=1) as network:
            spec = network.spec
        rows = spec.detections
        outputs = {
            "num_detections": (),
            "boxes": (rows, 4),
            "scores": (rows,),
            "labels": (rows,),
        }
        if spec.mask_size:
            outputs["masks"] = (rows, spec.mask_size, spec.mask_size)
        if spec.keypoint_names:
            outputs["keypoint_logits"] = (rows, len(spec.keypoint_names), spec.keypoint_size, spec.keypoint_size)
        path = folder / f"model.{self.flavour}.fp16.engine"
        path.write_bytes(serialise_engine(onnx, outputs, batch))
        full = self.flavour == "tensorrt"
        sidecar = EngineSidecar(
            **{
                "edge_mrcnn": "0.1.0",
                "flavour": self.flavour,
                "tensorrt": VERSIONS[self.flavour],
                "target": "tensorrt" if full else "rtx:sm_86",
                "device": self.driver.name if full else None,
                "capability": "sm_86" if full else None,
                "precision": "fp16",
                "batch": batch,
                "spec": spec,
                "inputs": (),
                "outputs": (),
                "layers": (),
                "onnx_sha256": "",
                "engine_sha256": hash_file(path),
                "plugins_sha256": plugins_hash(),
                "build_key": "",
                "created": "",
                **fields,
            }
        )
        sidecar_path(path).write_text(sidecar.to_json())
        return path

    def check(self) -> None:
        """Run what is left; no rule of CUDA or TensorRT was broken, and all was given back."""
        gc.collect()
        self.driver.finish()
        assert not list(self.tensorrt.alive), list(self.tensorrt.alive)


class Foreign:
    """Another library's array on the GPU, which its own stream is still filling."""

    def __init__(self, gpu: FakeGpu, values: np.ndarray) -> None:
        self.driver, self.values = gpu.driver, values
        self.driver.cuCtxPushCurrent(0xC0)
        self.stream = self.driver.cuStreamCreate(1)[1]
        self.address = self.driver.cuMemAlloc(values.nbytes)[1]
        self.driver.enqueue(self.stream, "foreign", self._fill)
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.address, False),
            "stream": self.stream,
            "version": 3,
        }

    def _fill(self) -> None:
        self.driver.device_view(self.address, self.values.nbytes)[:] = self.values.reshape(-1).view(np.uint8)

    def free(self) -> None:
        self.driver.cuStreamSynchronize(self.stream)
        self.driver.cuStreamDestroy(self.stream)
        self.driver.cuMemFree(self.address)
        self.driver.cuCtxPopCurrent()


def expected(network: OrtRunner, pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What the network says of pictures when the CPU does everything."""
    images, image_hw, _ = preprocess.letterbox_batch(pictures, network.spec.input_hw)
    return network.infer({"images": images, "image_hw": image_hw})


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Outputs are equal in what detections there are; ONNX Runtime may leave out rows beyond."""
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        places = tuple(slice(0, length) for length in value.shape)
        np.testing.assert_array_equal(found[name][places], value, err_msg=name)
