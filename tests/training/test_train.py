"""The training loop: it learns, resumes to the bit, runs distributed, and stops with words where it must."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cv2")
rle = pytest.importorskip("pycocotools.mask")

from edge_mrcnn.errors import EdgeMrcnnError  # noqa: E402
from edge_mrcnn.training import train as module  # noqa: E402
from edge_mrcnn.training.checkpoint import load_checkpoint  # noqa: E402
from edge_mrcnn.training.dataset import CocoDataset  # noqa: E402
from edge_mrcnn.training.distributed import EpochSampler, World  # noqa: E402
from edge_mrcnn.training.optim import Average, freeze_backbone, learning_rate, make_optimizer  # noqa: E402
from edge_mrcnn.training.train import TrainOptions, canvas_of_epoch, train  # noqa: E402
from edge_mrcnn.training.validate import score  # noqa: E402
from edge_mrcnn.training.zoo import build_model  # noqa: E402
from tests.training.shapes import write_shapes  # noqa: E402

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
TINY = TrainOptions(
    epochs=2, batch_size=2, size="96x128", warmup_steps=2, workers=0, log_every=1, cache_gb=0.1, device="cpu"
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"), 6)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_of(path):
    return load_checkpoint(path).state_dict


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """A tiny training with validation."""
    out = tmp_path_factory.mktemp("run")
    return out, train("maskrcnn_edge", shapes, replace(TINY, out=out, val=shapes))


class TestRun:
    def test_leaves_checkpoints_log_and_options(self, trained):
        out, result = trained
        assert (result.last, result.best) == (out / "last.pt", out / "best.pt")
        assert result.last.is_file()
        assert result.best.is_file()
        assert result.epochs == 2
        assert json.loads((out / "options.json").read_text())["batch_size"] == 2
        assert sorted(path.name for path in out.iterdir()) == ["best.pt", "last.pt", "log.jsonl", "options.json"]

    def test_checkpoints_say_what_they_are_and_load_into_the_zoo(self, trained):
        last = load_checkpoint(trained[1].last)
        assert last.model_name == "maskrcnn_edge"
        assert last.class_names == ("__background__", "disc", "bar")
        assert last.size == (96, 128)
        model = build_model("maskrcnn_edge", weights=trained[1].last)
        assert model.roi_heads.box_predictor.cls_score.out_features == 3

    def test_log_has_the_five_losses_and_their_sum(self, trained):
        steps = [entry for entry in log_of(trained[0]) if "loss" in entry]
        assert [entry["step"] for entry in steps] == list(range(1, 7))
        parts = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
        for entry in steps:
            assert entry["loss"] == pytest.approx(sum(entry[part] for part in parts), abs=1e-3)

    def test_the_best_is_validated_on_all_pictures_at_the_end(self, trained, shapes, tmp_path):
        """Restart after the last epoch, so that only this is left to do."""
        (tmp_path / "last.pt").write_bytes(trained[1].last.read_bytes())
        (tmp_path / "best.pt").write_bytes(trained[1].best.read_bytes())
        result = train("maskrcnn_edge", shapes, replace(TINY, out=tmp_path, val=shapes, val_images=2, resume=True))
        assert log_of(tmp_path) == [{"checkpoint": "best.pt", **result.figures}]

    def test_validation_is_logged_and_returned(self, trained):
        figures = [entry for entry in log_of(trained[0]) if "mask_ap" in entry]
        assert [entry["epoch"] for entry in figures] == [1, 2]
        assert trained[1].best_ap == max(entry["mask_ap"] for entry in figures)


def test_it_learns(shapes, tmp_path):
    options = replace(TINY, out=tmp_path, epochs=14, batch_size=3, lr=2e-3, ema=0.0, zoom=(1.0, 1.0), light=0.0)
    train("maskrcnn_edge", shapes, options)
    losses = [entry["loss"] for entry in log_of(tmp_path)]
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:3])


class TestResume:
    def test_equals_an_uninterrupted_run_to_the_bit(self, shapes, tmp_path, monkeypatch):
        whole, parts = replace(TINY, out=tmp_path / "whole"), replace(TINY, out=tmp_path / "parts", resume=True)
        train("maskrcnn_edge", shapes, whole)
        step = module._Trainer._train_step

        def interrupted(self, *args):
            if self.step == 4:
                raise KeyboardInterrupt
            return step(self, *args)

        monkeypatch.setattr(module._Trainer, "_train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train("maskrcnn_edge", shapes, parts)
        monkeypatch.undo()
        result = train("maskrcnn_edge", shapes, parts)
        assert result.epochs == 2
        assert same(weights_of(whole.out / "last.pt"), weights_of(result.last))

    def test_a_finished_run_is_left_as_it_is(self, trained, shapes):
        before = weights_of(trained[1].last)
        result = train("maskrcnn_edge", shapes, replace(TINY, out=trained[0], resume=True))
        assert result.epochs == 2
        assert same(before, weights_of(result.last))

    def test_of_another_model_is_refused(self, trained, shapes):
        with pytest.raises(EdgeMrcnnError, match="is of maskrcnn_edge, not of maskrcnn_resnet50_fpn"):
            train("maskrcnn_resnet50_fpn", shapes, replace(TINY, out=trained[0], resume=True))

    def test_of_bare_weights_is_refused(self, shapes, tmp_path):
        torch.save(build_model("maskrcnn_edge", 3).state_dict(), tmp_path / "last.pt")
        with pytest.raises(EdgeMrcnnError, match="holds no training state: start from it with --weights"):
            train("maskrcnn_edge", shapes, replace(TINY, out=tmp_path, resume=True))


class TestStops:
    def test_a_loss_that_is_not_finite_names_the_step(self, shapes, tmp_path, monkeypatch):
        forward = module.CanvasModel.forward

        def diverging(self, pictures, targets):
            losses, detections = forward(self, pictures, targets)
            return {**losses, "loss_mask": losses["loss_mask"] * math.nan}, detections

        monkeypatch.setattr(module.CanvasModel, "forward", diverging)
        with pytest.raises(EdgeMrcnnError, match=r"not finite at step 0 .*'loss_mask': nan.*Lower --lr"):
            train("maskrcnn_edge", shapes, replace(TINY, out=tmp_path))
        assert not (tmp_path / "last.pt").exists()

    def test_an_unwritable_run_folder(self, shapes, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(EdgeMrcnnError, match=r"run folder .* cannot be written"):
            train("maskrcnn_edge", shapes, replace(TINY, out=tmp_path / "file"))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"epochs": 0}, "epochs is 0"),
            ({"batch_size": -1}, "batch_size is -1"),
            ({"size": "100x128"}, r"100x128 .* multiples of 32"),
            ({"zoom": (1.5, 0.5)}, "zoom is"),
            ({"ema": 1.0}, "ema is 1.0"),
        ],
    )
    def test_options_out_of_range(self, change, message):
        with pytest.raises(ValueError, match=message):
            train("maskrcnn_edge", "nowhere.json", replace(TINY, **change))


class TestFineTuning:
    def test_other_classes_and_frozen_stages(self, trained, tmp_path):
        other = write_shapes(tmp_path / "data", 2)
        content = json.loads(other.read_text())
        content["categories"].append({"id": 99, "name": "third"})
        other.write_text(json.dumps(content))
        options = replace(TINY, out=tmp_path / "run", epochs=1, weights=str(trained[1].last), ema=0.0)
        result = train("maskrcnn_edge", other, replace(options, trainable_backbone_layers=2))
        before, after = weights_of(trained[1].last), weights_of(result.last)
        stages = {"stem": True, "stride4": True, "stride8": True, "stride16": False, "stride32": False}
        for stage, frozen in stages.items():
            keys = [key for key in before if key.startswith(f"backbone.body.{stage}.")]
            assert all(torch.equal(before[key], after[key]) for key in keys) is frozen
        assert after["roi_heads.box_predictor.cls_score.weight"].shape[0] == 4

    @pytest.mark.parametrize("count", [-1, 6])
    def test_number_of_stages_is_checked(self, count):
        with pytest.raises(ValueError, match=f"trainable_backbone_layers is {count}"):
            freeze_backbone(build_model("maskrcnn_edge", 3), count)


WORKER = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from edge_mrcnn.training import train as module
from tests.training.test_train import TINY

class Spy(module._Trainer):
    def run(self):
        result = super().run()
        weights = torch.cat([value.flatten() for value in self.model.parameters()])
        Path(sys.argv[2], f"sum{self.world.rank}").write_text(repr(weights.double().sum().item()))
        return result

module._Trainer = Spy
module.train("maskrcnn_edge", sys.argv[1], replace(TINY, out=Path(sys.argv[2]), batch_size=1, epochs=1))
"""


def test_two_processes_share_the_epoch_and_agree(shapes, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*command, str(tmp_path / "worker.py"), str(shapes), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert [entry["step"] for entry in log_of(tmp_path)] == [1, 2, 3]
    assert (tmp_path / "sum0").read_text() == (tmp_path / "sum1").read_text()


class TestSampler:
    @pytest.mark.parametrize(("count", "batch", "size"), [(10, 2, 1), (10, 3, 2), (1, 4, 2), (7, 2, 3)])
    def test_processes_cover_everything_in_equally_many_full_batches(self, count, batch, size):
        seen: list[int] = []
        lengths = []
        for rank in range(size):
            batches = list(EpochSampler(count, batch, 0, World(rank, size, torch.device("cpu"))))
            assert all(len(one) == batch for one in batches)
            lengths.append(len(batches))
            seen += [index for one in batches for index in one]
        assert len(set(lengths)) == 1
        assert set(seen) == set(range(count))
        assert len(seen) < count + batch * size

    def test_the_order_depends_on_seed_and_epoch(self):
        world = World(0, 1, torch.device("cpu"))
        one, two, other = (EpochSampler(50, 5, seed, world) for seed in (1, 1, 2))
        first = list(one)
        assert first == list(two)
        assert first != list(other)
        one.epoch = 1
        assert first != list(one)


class TestParts:
    @pytest.mark.parametrize(
        ("step", "expected"),
        [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (60, 0.505), (110, 0.01), (500, 0.01)],
    )
    def test_learning_rate(self, step, expected):
        assert learning_rate(step, 110, 10, 1.0) == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("kind", ["adamw", "sgd"])
    def test_norms_and_biases_do_not_decay(self, kind):
        optimizer = make_optimizer(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)), kind, 0.1, 0.3)
        shapes = [[tuple(one.shape) for one in group["params"]] for group in optimizer.param_groups]
        assert shapes == [[(3, 2)], [(3,), (3,), (3,)]]
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]

    def test_average(self):
        net = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
        average = Average(net, 0.9)
        before = net[0].weight.item()
        with torch.no_grad():
            net[0].weight += 1.0
            net[1].num_batches_tracked += 5
        average.update(net, 1000)
        assert average.model[0].weight.item() == pytest.approx(before + 0.1, abs=1e-6)
        assert average.model[1].num_batches_tracked.item() == 5
        average.update(net, 0)
        assert average.model[0].weight.item() == pytest.approx(before + 0.1 + 0.9 * 0.9, abs=1e-6)

    def test_smaller_canvases_first(self):
        options = TrainOptions(small_epochs=2, small_scale=0.6)
        assert [canvas_of_epoch(options, (320, 416), epoch) for epoch in range(3)] == [
            (192, 256),
            (192, 256),
            (320, 416),
        ]

    def test_the_truth_has_an_ap_of_100_and_nothing_one_of_0(self, shapes):
        data = CocoDataset(shapes, (96, 128))
        content = json.loads(shapes.read_text())
        keys = ("image_id", "category_id", "bbox", "segmentation")
        results = [{**{key: entry[key] for key in keys}, "score": 1.0} for entry in content["annotations"]]
        ids = {record.image_id for record in data.records}
        assert score(data, results, ids) == pytest.approx(
            {"box_ap": 100, "box_ap50": 100, "mask_ap": 100, "mask_ap50": 100}
        )
        assert set(score(data, [], ids).values()) == {0.0}

    def test_every_option_is_documented(self):
        source = Path(module.__file__).read_text()
        for option in fields(TrainOptions):
            after = source.split(f"\n    {option.name}: ", 1)[1].split("\n", 2)[1]
            assert after.strip().startswith('"""'), option.name
