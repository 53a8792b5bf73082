"""What the measuring graph hands out, against activations fetched whole; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edge_mrcnn.compiler.calibration.instrument import EVERY_SCORE, OFFSET, SAMPLE, instrument, statistic_name
from edge_mrcnn.compiler.calibration.measure import Measurement
from edge_mrcnn.compiler.calibration.pictures import Shot
from edge_mrcnn.compiler.placement import measured_tensors
from edge_mrcnn.errors import CalibrationError, ExportError
from edge_mrcnn.runtime.preprocess import letterbox_batch
from edge_mrcnn.runtime.sources.pictures import read_picture
from tests.compiler.calibration.conftest import SpoiltModel
from tests.compiler.tiny_model import feeds

TABLETOP = Path(__file__).parents[3] / "samples" / "tabletop"
BUNDLED = TABLETOP / "model.onnx"
BUNDLED_HW = (320, 416)


def shot(seed: int = 1) -> Shot:
    return Shot(f"picture {seed}", **feeds(1, seed))


def seen(picture: np.ndarray, name: str = "picture") -> Shot:
    images, image_hw, _ = letterbox_batch([picture], BUNDLED_HW)
    return Shot(name, images, image_hw)


def whole_activations(model: onnx.ModelProto, tensors: tuple[str, ...], given: Shot) -> list[np.ndarray]:
    """Every value of the tensors, with all scores let through."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    for node in tapped.graph.node:
        for attribute in node.attribute:
            if attribute.name == "score_threshold":
                attribute.f = EVERY_SCORE
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(tensors), {"images": given.images, "image_hw": given.image_hw})


def test_small_tensors_are_counted_whole(tiny: onnx.ModelProto) -> None:
    tensors = measured_tensors(tiny)
    with Measurement(tiny, Path("tiny.onnx")) as measurement:
        for seed in (1, 2, 3):
            measurement.add(shot(seed))
        found = measurement._histograms
    expected = [whole_activations(tiny, tensors, shot(seed)) for seed in (1, 2, 3)]
    compared = 0
    for name, *parts in zip(tensors, *expected, strict=True):
        values = np.concatenate([part.ravel() for part in parts])
        np.testing.assert_allclose([found[name].low, found[name].high], [values.min(), values.max()], rtol=1e-5)
        if parts[0].size <= SAMPLE:
            assert found[name].total == values.size
            assert found[name].counts @ np.arange(len(found[name].counts)) == pytest.approx(
                np.floor(values.astype(float) / found[name].width).sum() + values.size * len(found[name].counts) / 2,
                rel=1e-6,
            )
            compared += 1
    assert compared >= 6


@pytest.mark.slow
def test_samples_of_large_tensors_represent_them() -> None:
    model = onnx.load(BUNDLED)
    tensors = measured_tensors(model)
    given = seen(read_picture(TABLETOP / "val" / "images" / "000000.jpg"))
    with Measurement(model, BUNDLED) as measurement:
        measurement.add(given)
        found = measurement._histograms
    large = [
        (name, values)
        for name, values in zip(tensors, whole_activations(model, tensors, given), strict=True)
        if values.size > 20 * SAMPLE and "roi" not in name and "mask" not in name  # more boxes reach the heads here
    ]
    assert len(large) > 20
    for name, values in large:
        histogram = found[name]
        np.testing.assert_allclose([histogram.low, histogram.high], [values.min(), values.max()], rtol=1e-4, atol=1e-5)
        assert SAMPLE / 2 < histogram.total <= SAMPLE
        centres = (np.arange(len(histogram.counts)) - len(histogram.counts) / 2 + 0.5) * histogram.width
        mean = float(histogram.counts @ centres) / histogram.total
        error = float(values.std()) / np.sqrt(histogram.total) + histogram.width
        assert abs(mean - float(values.mean())) < 5 * error, name


def test_samples_move_on_from_picture_to_picture() -> None:
    """The same picture again gives other values of a large tensor, so that in time all places are seen."""
    model = onnx.load(BUNDLED)
    tensors = measured_tensors(model)[:2]
    session = onnxruntime.InferenceSession(instrument(model, tensors, ()).SerializeToString())
    given = seen(read_picture(TABLETOP / "val" / "images" / "000000.jpg"))
    whole = whole_activations(model, tensors, given)[1].ravel()
    names = [statistic_name("sample", 1)]
    step = -(-len(whole) // SAMPLE)
    starts = []
    for number in (0, 1, 2, 3):
        run = {"images": given.images, "image_hw": given.image_hw, OFFSET: np.array([number], np.int64)}
        (sample,) = session.run(names, run)
        found = [
            (start, each)
            for each in range(step, 2 * step + 2)
            for start in range(each)
            if len(whole[start::each]) == len(sample) and np.allclose(whole[start::each], sample, atol=1e-4)
        ]
        assert len(found) == 1
        starts.append(found[0][0])
    assert starts == [0, 1, 2, 3]


@pytest.mark.slow
def test_only_small_things_leave_the_graph() -> None:
    """What bounds the memory: nothing that grows with a tensor's size is an output."""
    model = onnx.load(BUNDLED)
    tensors = measured_tensors(model)
    session = onnxruntime.InferenceSession(instrument(model, tensors, ()).SerializeToString())
    given = seen(np.full((320, 416, 3), 90, np.uint8))
    run = {"images": given.images, "image_hw": given.image_hw, OFFSET: np.zeros(1, np.int64)}
    outputs = session.run(None, run)
    assert max(output.size for output in outputs) <= SAMPLE
    assert sum(output.nbytes for output in outputs) <= len(tensors) * (SAMPLE + 3) * 4 + 1000
    assert sum(values.nbytes for values in whole_activations(model, tensors, given)) > 30e6


def test_readers_run_right_after_what_they_read(tmp_path: Path) -> None:
    """Otherwise every activation lives to the end of the run: three times the memory."""
    model = onnx.load(BUNDLED)
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "run")
    measuring = instrument(model, measured_tensors(model), ())
    session = onnxruntime.InferenceSession(measuring.SerializeToString(), options)
    given = seen(np.full((320, 416, 3), 90, np.uint8))
    run = {"images": given.images, "image_hw": given.image_hw, OFFSET: np.zeros(1, np.int64)}
    session.run(["num_detections"], run)
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = sorted((e for e in events if e["name"].endswith("_kernel_time")), key=lambda event: event["ts"])
    ops = [event["args"]["op_name"] for event in kernels]
    readers = [place for place, op in enumerate(ops) if op == "ReduceL1"]
    convolutions = [place for place, op in enumerate(ops) if op == "Conv"]
    assert len(readers) == len(measured_tensors(model))
    assert readers[0] < convolutions[0]
    waiting = [sum(place < reader for place in convolutions) - index for index, reader in enumerate(readers)]
    assert max(waiting) <= 3  # convolutions that have run, less tensors that have been read


def test_heads_see_data_where_nothing_is_found() -> None:
    """In a black picture the network detects nothing, and still each tensor of the heads has values."""
    model = onnx.load(BUNDLED)
    with Measurement(model, BUNDLED) as measurement:
        assert measurement.add(seen(np.zeros((480, 640, 3), np.uint8))) == 0
        ranges = measurement.ranges(99.99)
    heads = [name for name in ranges if name.startswith(("box_", "mask_"))]
    assert len(heads) >= 6
    for name in heads:
        assert ranges[name].symmetric["max"] > 1e-3, name


@pytest.mark.slow
def test_detections_are_those_of_the_plain_network() -> None:
    session = onnxruntime.InferenceSession(BUNDLED)
    model = onnx.load(BUNDLED)
    with Measurement(model, BUNDLED) as measurement:
        for index in (0, 5):
            given = seen(read_picture(TABLETOP / "val" / "images" / f"{index:06}.jpg"))
            (number,) = session.run(["num_detections"], {"images": given.images, "image_hw": given.image_hw})
            assert 0 < number[0] < 32
            assert measurement.add(given) == number[0]


@pytest.mark.parametrize(
    ("value", "word", "which"),
    [(np.nan, "NaN", slice(1, 2)), (np.inf, "infinity", slice(2, 3))],
    ids=["nan-weight", "infinite-bias"],
)
def test_weights_that_are_not_finite(spoilt: SpoiltModel, value: float, word: str, which: slice) -> None:
    path = spoilt(value, "n14", which=which)
    with pytest.raises(CalibrationError, match=r"weight 'w[89]' of layer 'n14' .*NaN or an infinity.*export"):
        Measurement(onnx.load(path), path)


@pytest.mark.parametrize(
    ("node", "value", "tensor", "word"),
    [
        pytest.param("n3", 0.0, "t10", "NaN", id="of-a-measured-tensor"),
        pytest.param("n33", 3e38, "t33", "infinity", id="of-what-decides-the-boxes"),
    ],
)
def test_values_that_are_not_finite(spoilt: SpoiltModel, node: str, value: float, tensor: str, word: str) -> None:
    """Pictures divided by 0, after which even RoIAlign fails; and weights so large that their products overflow."""
    path = spoilt(value, node, which=slice(1, 2))
    with (
        Measurement(onnx.load(path), path) as measurement,
        pytest.raises(CalibrationError, match=rf"tensor '{tensor}' has a value that is {word} for picture 7;.*inspect"),
    ):
        measurement.add(shot(7))


def test_a_tensor_without_data(spoilt: SpoiltModel) -> None:
    path = spoilt(0.0, "n37")
    with Measurement(onnx.load(path), path) as measurement:
        measurement.add(shot())
        with pytest.raises(CalibrationError, match=r"1 of 9 tensors have no data.* 1 pictures: t38\. .*edge-mrcnn run"):
            measurement.ranges(99.99)


def test_a_model_that_is_quantised_already(tiny: onnx.ModelProto) -> None:
    tiny.graph.node.append(onnx.helper.make_node("QuantizeLinear", ["t12", "s"], ["q"], "own"))
    with pytest.raises(
        CalibrationError, match=r"quantised already \(node 'own' is a QuantizeLinear\).*--precision int8"
    ):
        Measurement(tiny, Path("tiny.onnx"))


def test_a_model_without_layers(tiny: onnx.ModelProto) -> None:
    del tiny.graph.node[:]
    with pytest.raises(CalibrationError, match="nothing to measure"):
        Measurement(tiny, Path("tiny.onnx"))


def test_a_model_of_others(tiny: onnx.ModelProto) -> None:
    del tiny.metadata_props[:]
    with pytest.raises(ExportError, match="carries no edge_mrcnn spec"):
        Measurement(tiny, Path("tiny.onnx"))


def test_the_model_is_left_as_it_is(tiny: onnx.ModelProto) -> None:
    before = tiny.SerializeToString(deterministic=True)
    Measurement(tiny, Path("tiny.onnx")).close()
    assert tiny.SerializeToString(deterministic=True) == before
