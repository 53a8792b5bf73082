"""The comparison with other tools: its steps' processes, its subjects and its table; the tools run in the benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from benchmarks.int8_tools.judge import adopt_metadata
from benchmarks.int8_tools.process import run_step
from benchmarks.int8_tools.quantise import TOOLS, quantise
from benchmarks.int8_tools.subjects import SUBJECTS
from benchmarks.int8_tools.table import HEADS, markdown

STEPS = "tests.benchmarks.planted_steps"


def test_a_step_answers_with_its_own_peak_memory() -> None:
    ballast = np.ones(300 << 17)  # 300 MiB of this process; a child's ru_maxrss would begin with them

    small = run_step(STEPS, {"do": "answer", "mib": 1}, environment={"PLANTED_FLAG": "set"})
    large = run_step(STEPS, {"do": "answer", "mib": 200})

    assert (small["answer"], small["flag"]) == (1 << 20, "set")
    assert small["peak_mib"] < 200 <= large["peak_mib"]
    assert ballast.nbytes == 300 << 20


@pytest.mark.parametrize(
    ("do", "limit_s", "error"),
    [
        ("raise", 30, "ValueError: the reason"),
        ("abort", 30, "the process ended with status -6: last words"),
        ("hang", 2, "the process was ended after 2 s: it printed nothing"),
    ],
)
def test_a_step_that_fails_says_how(do: str, limit_s: float, error: str) -> None:
    assert run_step(STEPS, {"do": do}, limit_s=limit_s)["error"] == error


def test_a_tool_that_fails_keeps_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise MemoryError("128 pictures are too many")

    monkeypatch.setitem(TOOLS, "planted", lambda job: fails)

    row = quantise({"tool": "planted"})

    assert row["error"] == "MemoryError: 128 pictures are too many"
    assert row["seconds"] >= 0


def test_subjects_have_names_of_their_own_and_known_tools() -> None:
    names = [subject.name for subject in SUBJECTS]
    assert len(set(names)) == len(names)
    assert {subject.tool for subject in SUBJECTS} == set(TOOLS)
    assert {subject.dialect for subject in SUBJECTS if subject.tool == "edge_mrcnn"} == {"tensorrt", "ort"}


def test_what_a_tool_dropped_of_the_metadata_comes_back() -> None:
    source, model = (helper.make_model(helper.make_graph([], "empty", [], [])) for _ in range(2))
    helper.set_model_props(source, {"spec": "ours", "producer": "exporter"})
    helper.set_model_props(model, {"producer": "tool"})

    adopted = adopt_metadata(model, source)

    assert {entry.key: entry.value for entry in adopted.metadata_props} == {"producer": "tool", "spec": "ours"}
    assert isinstance(adopted, onnx.ModelProto)
    assert len(model.metadata_props) == 1


def test_the_table_shows_figures_failures_and_refusals() -> None:
    drop = {"value": 0.25, "low": -0.1, "high": 0.6}
    lines = markdown(
        [
            {"name": "FP32", "box_ap": 69.6, "mask_ap": 70.2, "size": 7_980_000},
            {
                "name": "tool",
                "box_ap": 69.35,
                "mask_ap": 70.0,
                "drop": {"box": drop, "mask": None},
                "layers": 75,
                "int8_layers": 62,
                "size": 2_200_000,
                "cpu_seconds": 20.6,
                "peak_mib": 393,
                "loaded_mib": 150,
                "speed_up": 1.9,
                "tensorrt": {"accepted": False, "stage": "parse", "reason": "Invalid Node\n zero " + "points" * 100},
            },
            {"name": "broken", "error": "NameError: trt"},
        ]
    )

    rows = [line for line in lines if line.startswith("|")]
    assert all(row.count("|") == len(HEADS) + 1 for row in rows)
    assert rows[2] == "| FP32 | 69.6 | 70.2 | - | - | - | 8.0 | - | - | - | - |"
    assert rows[3] == (
        "| tool | 69.3 | 70.0 | 0.25 (-0.10 to 0.60) | - | 62/75 | 2.2 | 21 | 393 | 1.90 | refused (parse) |"
    )
    assert lines[-2:] == [
        "broken: NameError: trt",
        f"tool: TensorRT-RTX: {('Invalid Node zero ' + 'points' * 100)[:300]}",
    ]
