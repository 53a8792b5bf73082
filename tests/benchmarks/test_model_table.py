"""The table of models: what it counts, and that the JSON, the README and the lists of tests agree with the zoo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from benchmarks import model_table
from edge_mrcnn.evaluation.bench import BenchOptions
from edge_mrcnn.training.zoo import MODELS
from tests.compiler import test_zoo_engines
from tests.training import test_parity

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = json.loads(model_table.RESULTS.read_text())


def test_every_model_is_in_it() -> None:
    assert list(RESULTS["models"]) == list(MODELS)
    assert all(tuple(facts["canvas"]) == MODELS[name].default_size for name, facts in RESULTS["models"].items())


def test_every_model_is_tested_as_it_says() -> None:
    """By the lists of the tests that it names."""
    assert set(test_zoo_engines.NAMES) == set(MODELS)
    assert set(test_parity.PROPOSALS) == set(MODELS)
    assert dict.fromkeys(test_zoo_engines.DEEP, ("FP32",)) == model_table.NOT_TESTED
    assert {name: tuple(tests) for name, tests in RESULTS["tested"].items()} == {
        name: model_table.list_tests(name) for name in MODELS
    }
    assert all((ROOT / where.partition(":")[0]).is_file() for _, where in model_table.TESTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maskrcnn_edge", "keypointrcnn_edge"])
def test_the_facts_are_what_they_were(name: str) -> None:
    """All but the bytes exactly: the numbers in the metadata are written in more or fewer digits."""
    found = json.loads(json.dumps(vars(model_table.describe_model(name))))
    known = dict(RESULTS["models"][name])
    assert found.pop("bytes") == pytest.approx(known.pop("bytes"), rel=1e-3)
    assert found == known


def test_work_is_split_by_what_it_grows_with() -> None:
    """The box head: linear layers of 12,544 to 1,024 to 1,024 and the predictors; the mask head: five and a half."""
    work = RESULTS["models"]["maskrcnn_resnet50_fpn"]["macs"]
    box_head = 256 * 7 * 7 * 1024 + 1024 * 1024 + 1024 * 91 * 5
    assert work["proposals"] == 1000 * box_head
    mask_head = 4 * 14 * 14 * 256 * 256 * 9 + 14 * 14 * 256 * 256 * 4 + 28 * 28 * 256 * 91
    assert work["detections"] == 100 * mask_head


@pytest.mark.slow
def test_times_are_measured_with_as_many_detections_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    times = model_table.time_model("maskrcnn_edge", (192, 256), BenchOptions(runs=1, warmup=0, threads=1))
    assert 0 < times["network_ms"] <= times["total_ms"]
    monkeypatch.setattr(model_table, "DETECTIONS", 900)
    with pytest.raises(RuntimeError, match="things instead of 900"):
        model_table.time_model("maskrcnn_edge", (192, 256), BenchOptions(runs=1, warmup=0, threads=1))


def test_the_table_has_a_row_for_each_model() -> None:
    lines = model_table.markdown(RESULTS)
    assert len(lines) == 2 + len(MODELS)
    assert len({line.count("|") for line in lines}) == 1
    bare = model_table.markdown({**RESULTS, "times": {}})
    assert all(line.count("not measured") == 2 for line in bare[2:])


def test_the_readme_has_the_table() -> None:
    assert "\n".join(model_table.markdown(RESULTS)) in README, (
        "README.md's table of models is not that of benchmarks/results/model_table.json: put the output of "
        "`python benchmarks/model_table.py --markdown` there"
    )
