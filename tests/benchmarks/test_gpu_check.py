"""The host's half of `make gpu-check`: isolation of parts, floors, verdicts, files, the command without a GPU."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import cases, comparison, floors, parts, report
from benchmarks.gpu_check.build import summarise_ptxas
from benchmarks.gpu_check.isolation import Part, Result, run_part
from benchmarks.gpu_check.sanitizer import summarise
from edge_mrcnn import device
from tests import gold

ROOT = Path(__file__).parents[2]


def planted(name: str, limit_s: float = 30) -> Part:
    return Part(name, f"tests.benchmarks.planted_parts:{name}", limit_s)


# ---------------------------------------------------------------------------------------------------------- Isolation
@pytest.mark.parametrize(
    ("name", "status", "rows", "reason"),
    [
        ("fine", "done", 2, ""),
        ("one_check_fails", "failed", 2, "1 of 2 checks failed"),
        ("raises", "failed", 1, "ValueError: the reason"),
        ("skips", "skipped", 0, "no such tool here"),
        ("aborts", "crashed", 1, "by signal SIGABRT; its output ends: last words"),
        ("exits", "crashed", 0, "exit status 7; it had printed nothing"),
    ],
)
def test_a_part_ends_as_it_must(name: str, status: str, rows: int, reason: str) -> None:
    result = run_part(planted(name))
    assert (result.status, len(result.rows)) == (status, rows)
    assert reason in result.reason


def test_a_part_that_hangs_is_ended_and_keeps_its_rows() -> None:
    begin = time.monotonic()
    result = run_part(planted("hangs", 1.5))
    assert time.monotonic() - begin < 20
    assert (result.status, result.rows) == ("timed out", [{"number": 1}])
    assert "ended after 2 s" in result.reason


def test_without_time_nothing_is_started() -> None:
    assert run_part(planted("fine"), limit_s=0).status == "skipped"


def test_one_failure_takes_nothing_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [planted(name) for name in ("aborts", "fine")] + [planted("hangs", 1.0), planted("skips")]
    results = command.run_all(chosen, 60, tmp_path)
    assert [result.status for result in results] == ["crashed", "done", "timed out", "skipped"]
    (written,) = tmp_path.glob("*.json")
    assert [part["status"] for part in json.loads(written.read_text())["parts"]] == [r.status for r in results]
    assert "| hangs | timed out |" in written.with_suffix(".md").read_text()
    assert "skips" in capsys.readouterr().out


def test_every_part_is_there() -> None:
    for part in parts.PARTS:
        module, _, function = part.target.partition(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function)), part


# ------------------------------------------------------------------------------------------------------------- Floors
def touched_cells(case: cases.Case) -> int:
    """As `floors.count_cells`, sample by sample."""
    seen = set()
    size, ratio = case.attributes["output_size"], case.attributes["sampling_ratio"]
    for row, roi in enumerate(case.inputs[0].reshape(-1, 4)):
        if gold.is_padding(roi):
            continue
        level = gold.roi_level(roi, case.attributes)
        height, width = case.inputs[1 + level].shape[2:]
        x1, y1, x2, y2 = roi / case.attributes["strides"][level] - 0.5 * case.attributes["aligned"]
        w, h = max(x2 - x1, 1), max(y2 - y1, 1)
        for i in range(size * ratio):
            for j in range(size * ratio):
                y, x = y1 + (i + 0.5) * h / (size * ratio), x1 + (j + 0.5) * w / (size * ratio)
                if -1 <= y <= height and -1 <= x <= width:
                    top, left = min(max(int(y), 0), height - 1), min(max(int(x), 0), width - 1)
                    for a in (top, min(top + 1, height - 1)):
                        seen |= {
                            (row // case.inputs[0].shape[1], level, a, b) for b in (left, min(left + 1, width - 1))
                        }
    return len(seen)


@pytest.mark.parametrize("levels", [1, 4])
@pytest.mark.parametrize("aligned", [0, 1])
def test_the_cells_that_pooling_touches(levels: int, aligned: int) -> None:
    rng = np.random.default_rng(levels)
    rois = cases.random_boxes(rng, 24, (256, 320)).reshape(2, 12, 4) * 1.3 - 20
    rois[0, 3] = 0
    case = cases.roi_case("", rois, levels=levels, aligned=aligned)
    assert floors.count_cells(case) == touched_cells(case) > 100


def test_bytes_of_pooling() -> None:
    whole = np.array([[[0, 0, 320, 256]]], np.float32)
    case = cases.roi_case("", whole, levels=1, channels=8, sampling_ratio=0).cast("float16")
    cells, patch = 64 * 80, 7 * 7
    assert floors.count_cells(case) == cells
    assert floors.floor_bytes(case) == 16 + 2 * 8 * (cells + patch)


def test_bytes_of_proposals_and_detections() -> None:
    rpn = cases.rpn_case("", (64, 64), 2, batch=1, pre_nms_top_n=100, post_nms_top_n=10)
    logits = 3 * (16 * 16 + 8 * 8)
    assert floors.floor_bytes(rpn) == 4 * logits + 4 * 4 * 200 + 160
    nms = cases.nms_case("", 1, 3)
    nms.inputs[2][:] = [[0, 9, -9], [9, 0, 0]]  # one class of the first picture passes, none of the second
    assert floors.floor_bytes(nms) == 4 * 6 + 2 * 16 + 16 + 2 * (4 + 20 * 24)


def test_a_floor_in_time() -> None:
    assert floors.floor_us(3_000_000, 3000) == pytest.approx(1.0)


# --------------------------------------------------------------------------------------------------------- Comparison
def test_values_are_compared_within_tolerance() -> None:
    found, expected = np.array([1.0, np.nan, np.inf, 2.0]), np.array([1.00005, np.nan, np.inf, 3.0])
    agreement = comparison.compare_values(found, expected, 1e-4)
    assert (agreement.ok, agreement.matched, agreement.expected) == (False, 3, 4)
    assert agreement.worst == pytest.approx(5e-5)
    assert comparison.compare_values(found[:3], expected[:3], 1e-4).ok
    assert not comparison.compare_values(found, expected[:2], 1e-4).ok
    assert not comparison.compare_values(np.array([np.nan]), np.array([0.0]), 1e-4).ok


def test_rows_are_compared_in_any_order() -> None:
    rng = np.random.default_rng(0)
    boxes, scores = cases.random_boxes(rng, 200, (100, 100)), rng.random(200).astype(np.float32)
    labels = rng.integers(1, 5, 200)
    order = rng.permutation(200)
    found = [boxes[order] + 0.005, scores[order], labels[order]]
    assert comparison.compare_rows(found, [boxes, scores, labels]).ok
    wrong = labels[order].copy()
    wrong[:3] += 1
    agreement = comparison.compare_rows([*found[:2], wrong], [boxes, scores, labels])
    assert (agreement.ok, agreement.matched, agreement.extra) == (False, 197, 3)
    assert not comparison.compare_rows([boxes[:0]], [boxes]).ok
    assert comparison.compare_rows([boxes[:0]], [boxes[:0]]).ok
    twice = np.concatenate([boxes[:1], boxes[:1]])
    assert not comparison.compare_rows([twice], [boxes[:2]]).ok, "a row counts once"


# ------------------------------------------------------------------------------------------------------------- Report
def timing(op: str, case: str, subject: str, plain: float, graph: float | None = None, **more: Any) -> dict[str, Any]:
    row = {"op": op, "case": case, "subject": subject, "dtype": "float16", "layout": "linear", "plain_us": plain}
    return row | {"graph_us": graph, "kernels": 1, "copies": 0} | more


BIG = "800x1344, 1000 to 7x7"


def some_results(pool_us: float = 50.0, graph_us: float = 40.0, rpn_us: float = 100.0) -> list[Result]:
    facts = {"gpu": "NVIDIA H100 80GB HBM3", "sm": "sm_90", "memory_gib": 79.1, "driver": "580.1", "torch_cuda": "13.0"}
    facts |= {"packages": {"torch": "2.11.0+cu130", "numpy": "2.0"}}
    copy = {"copy_gb_s": 3000.0, "copy_bytes": 10**9, "host_launch_us": 3.0, "graph_kernel_us": 1.5}
    pooling = [
        timing("PyramidRoiAlign", BIG, "edge_mrcnn", pool_us, graph_us, layout="hwc8 to hwc8", floor_bytes=60_000_000),
        timing("PyramidRoiAlign", BIG, "edge_mrcnn", 900.0, 890.0, floor_bytes=60_000_000),
        timing("PyramidRoiAlign", BIG, "edge_mrcnn", 1.0, 1.0, dtype="float32", floor_bytes=120_000_000),
        timing("PyramidRoiAlign", BIG, "torchvision MultiScaleRoIAlign", 200.0),
        timing("PyramidRoiAlign", BIG, "torchvision MultiScaleRoIAlign, channels last", 300.0),
        timing("PyramidRoiAlign", "480x640, 300 to 7x7", "torchvision MultiScaleRoIAlign", 1.0),
    ]
    rpn = [
        timing("RpnProposals", "800x1344", "edge_mrcnn", rpn_us, 90.0, floor_bytes=1_000_000),
        timing("RpnProposals", "800x1344", "torchvision filter_proposals", 1000.0),
        timing("RpnProposals", "800x1344", "torchvision anchors, decode, filter_proposals", 2000.0),
    ]
    checks = [
        {"op": "RpnProposals", "case": "a", "against": "gold", "ok": True, "detail": "", "worst": 1e-6},
        {"op": "RpnProposals", "case": "a", "against": "torchvision", "ok": False, "detail": "", "worst": 0.5},
    ]
    return [
        Result("machine", "done", 1.0, [facts]),
        Result("machine: memory and launches", "done", 1.0, [copy]),
        Result("correctness: RpnProposals", "failed", 2.0, checks, "1 of 2 checks failed"),
        Result("timing: PyramidRoiAlign", "done", 9.0, pooling),
        Result("timing: RpnProposals", "done", 9.0, rpn),
        Result("sanitizer: memcheck", "skipped", 0.0, reason="compute-sanitizer is not installed"),
    ]


def test_targets_from_given_numbers() -> None:
    pooling, share, proposals, detections, captured = report.judge(some_results())
    assert pooling.met
    assert pooling.measured == "4.0 times: 50.0 us (float16 hwc8 to hwc8) against 200.0 us"
    assert share.met
    assert share.measured.startswith("50%")  # 60 MB at 3 TB/s are 20 us, 40 were taken
    assert proposals.met
    assert proposals.measured.startswith("10.0 times")
    assert (detections.met, detections.measured) == (None, "not measured")
    assert captured.met


def test_targets_that_are_missed() -> None:
    pooling, share, proposals, *_ = report.judge(some_results(pool_us=100.0, graph_us=60.0, rpn_us=250.0))
    assert (pooling.met, share.met, proposals.met) == (False, False, False)


def test_without_results_every_target_is_open() -> None:
    assert [target.met for target in report.judge([])] == [None] * 5


def test_the_files(tmp_path: Path) -> None:
    results = some_results()
    base = report.write(results, "2026-11-21", "abc1234", tmp_path)
    assert base.name == "gpu_check_h100-80gb-hbm3_cuda13.0_torch2.11.0"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{base.name}.json", f"{base.name}.md"]
    content = json.loads((tmp_path / f"{base.name}.json").read_text())
    assert content["parts"] == [dataclasses.asdict(result) for result in results]
    text = (tmp_path / f"{base.name}.md").read_text()
    lines = text.splitlines()
    assert "| RpnProposals | 2 | 1 | gold 1e-06, torchvision 0.5 |" in lines
    pooled = f"| PyramidRoiAlign | {BIG} | edge_mrcnn | float16 hwc8 to hwc8 | 50.0 | 40.0 | 1 | 0 | 20.0 | 50% |"
    assert pooled in lines
    assert "| sanitizer: memcheck | skipped | 0.0 | compute-sanitizer is not installed |" in lines
    tables = [line.count("|") for line in lines if line.startswith("|")]
    assert min(tables) >= 4
    assert "nan" not in text


def test_the_terminal_is_told_what_failed() -> None:
    lines = list(report.summary(some_results(graph_us=60.0)))
    assert any(line.startswith("MISSED") and "copy bandwidth" in line for line in lines)
    assert any(line.startswith("FAILED") and "against torchvision" in line for line in lines)


# ------------------------------------------------------------------------------------------------- What tools have said
def test_what_ptxas_says_in_short() -> None:
    log = """ptxas info    : Compiling entry function 'a' for 'sm_87'
    0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 96 registers, 512 bytes smem"""
    assert summarise_ptxas(log) == "2 kernels, up to 96 registers, 12 bytes spilled"


def test_what_the_sanitizer_says_in_short() -> None:
    clean = "========= COMPUTE-SANITIZER\nran 42 plans\n========= ERROR SUMMARY: 0 errors\n"
    assert summarise(clean) == "ran 42 plans; ERROR SUMMARY: 0 errors"
    bad = (
        "========= COMPUTE-SANITIZER\n========= Invalid __global__ write of size 4 bytes\n"
        "=========     at rpn_proposals_f32+0x10\n========= ERROR SUMMARY: 1 error\n"
    )
    assert summarise(bad) == (
        "ERROR SUMMARY: 1 error; Invalid __global__ write of size 4 bytes; at rpn_proposals_f32+0x10"
    )


# -------------------------------------------------------------------------------------------------------- The command
def test_without_a_gpu_it_says_so_in_a_line() -> None:
    if device.find_gpus():
        pytest.skip("this machine has a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.splitlines() == [
        "gpu-check needs an NVIDIA GPU, and the CUDA driver shows none here; nothing was checked"
    ]


def test_the_command_needs_nothing_but_numpy_to_start() -> None:
    program = (
        "import sys, benchmarks.gpu_check.__main__\n"
        "heavy = {'torch', 'torchvision', 'onnx', 'cuda', 'cv2', 'onnxruntime', 'tensorrt'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_with_a_gpu_it_runs_the_parts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = device.Gpu("NVIDIA Something", (9, 0), 1 << 30)
    monkeypatch.setattr(device, "find_gpus", lambda: [gpu])
    monkeypatch.setattr(command, "PARTS", (planted("fine"), planted("one_check_fails")))
    assert command.main(["--output", str(tmp_path), "--only", "fine"]) == 0
    assert "FAILED" not in capsys.readouterr().out
    assert command.main(["--output", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "one_check_fails" in printed
    assert "FAILED  one_check_fails: detail 2 is not 3" in printed


@pytest.mark.parametrize(("name", "status"), [("correctness: pictures", 1), ("engines", 0)])
def test_kernels_that_were_not_compared_are_not_right(
    name: str, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device, "find_gpus", lambda: [device.Gpu("NVIDIA Something", (9, 0), 1 << 30)])
    skipped = dataclasses.replace(planted("skips"), name=name)
    monkeypatch.setattr(command, "PARTS", (planted("fine"), skipped))
    assert command.main(["--output", str(tmp_path)]) == status
