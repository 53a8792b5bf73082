"""The small C4 of the benchmark: it starts from the bundled model's stages, and its losses fall."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import c4_learning  # noqa: E402
from edge_mrcnn.training import zoo  # noqa: E402
from edge_mrcnn.training.zoo import build_model  # noqa: E402

pytestmark = pytest.mark.torch

PICTURES = Path(__file__).parents[2] / "samples" / "tabletop" / "val"
STEPS = 20
"""Of a picture each, which takes half a second."""


@pytest.fixture
def own_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "MODELS", dict(zoo.MODELS))
    monkeypatch.setattr(c4_learning, "MODELS", zoo.MODELS)


@torch.no_grad()
def test_its_map_is_what_the_bundled_model_computes_at_stride_16() -> None:
    """The bundled model's convolutions with its norms in them, run in ONNX Runtime up to that stage."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = c4_learning.small_c4(11).eval()
    exported = onnx.load(c4_learning.BUNDLED)
    inside = [node for node in exported.graph.node if node.name.startswith("backbone.body.")]
    last = [node for node in inside if node.name.startswith("backbone.body.stride16")][-1]
    given = inside[0].input[0]
    exported.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (given, last.output[0]))
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    picture = np.random.default_rng(0).integers(0, 256, (1, 320, 416, 3), dtype=np.uint8)
    feeds = {"images": picture, "image_hw": np.array([[320, 416]], np.float32)}
    canvas, expected = session.run([given, last.output[0]], feeds)
    found = model.backbone(torch.from_numpy(canvas))["0"].numpy()
    assert found.shape == expected.shape == (1, 96, 20, 26)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("own_zoo")
def test_its_losses_fall(tmp_path: Path) -> None:
    content = json.loads((PICTURES / "annotations.json").read_text())
    content["images"] = content["images"][:STEPS]
    chosen = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in chosen]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(PICTURES / "images")
    threads = torch.get_num_threads()
    options = replace(
        c4_learning.TRAINING,
        out=tmp_path / "run",
        epochs=1,
        batch_size=1,
        warmup_steps=4,
        ema=0.0,
        log_every=1,
        cache_gb=0.1,
    )
    try:
        found = c4_learning.learn(tmp_path, options)
    finally:
        torch.set_num_threads(threads)
    for name, share in (("loss", 0.75), ("loss_objectness", 0.75), ("loss_mask", 0.75), ("loss_classifier", 0.9)):
        values = [entry[name] for entry in found["losses"]]
        assert len(values) >= STEPS - 2
        assert np.mean(values[-5:]) < share * np.mean(values[:3]), (name, values)


@pytest.mark.usefixtures("own_zoo")
def test_a_checkpoint_of_it_loads_by_its_name(tmp_path: Path) -> None:
    from edge_mrcnn.training.checkpoint import save_checkpoint

    c4_learning.add_to_zoo()
    model = c4_learning.small_c4(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    save_checkpoint(tmp_path / "a.pt", model)
    again = build_model(c4_learning.NAME, 11, tmp_path / "a.pt")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_the_committed_result_is_above_30_points_of_mask_ap() -> None:
    found = json.loads(c4_learning.RESULTS.read_text())
    assert found["figures"]["mask_ap"] > 30
    assert found["losses"][-1]["loss"] < 0.5 * found["losses"][0]["loss"]
