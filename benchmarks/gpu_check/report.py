"""What the check found, as JSON and as Markdown; and whether the targets are met."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.floors import floor_us
from benchmarks.gpu_check.isolation import Result, Row
from benchmarks.gpu_check.timing import LARGE, OURS, POOLER
from edge_mrcnn.files import write_text

RESULTS = Path(__file__).parents[1] / "results"
LARGE_NAME = f"{LARGE[0]}x{LARGE[1]}"
BANDWIDTH_SHARE = 0.4
MOST_FAILURES = 5
LONGEST_REASON = 200


@dataclass(frozen=True)
class Target:
    """A figure that was promised.

    Attributes:
        text: What was promised.
        measured: What was found, in words; `not measured` where it was not.
        met: Whether it holds, None where it was not measured.
    """

    text: str
    measured: str
    met: bool | None


def rows_of(results: Sequence[Result], prefix: str) -> list[Row]:
    """Rows of all parts whose name begins so."""
    return [row for result in results if result.part.startswith(prefix) for row in result.rows]


def facts_of(results: Sequence[Result]) -> Row:
    """What the first parts say of the machine, in one mapping."""
    facts: Row = {}
    for row in rows_of(results, "machine"):
        facts |= row
    return facts


# ------------------------------------------------------------------------------------------------------------ Targets
def judge(results: Sequence[Result]) -> list[Target]:
    """Hold the timings against the targets."""
    timings = [row for row in rows_of(results, "timing") if row["case"].startswith(LARGE_NAME)]
    pooling = [row for row in timings if row["op"] == "PyramidRoiAlign" and row["case"].endswith("1000 to 7x7")]
    half = [row for row in pooling if row["dtype"] == "float16"]
    return [
        _faster("PyramidRoiAlign in float16", 3, half, f"torchvision {POOLER}"),
        _share_of_copy(half, facts_of(results).get("copy_gb_s")),
        _faster("RpnProposals", 5, _rows(timings, "RpnProposals"), "torchvision filter_proposals"),
        _faster("DetectionNms", 5, _rows(timings, "DetectionNms"), "torchvision postprocess_detections"),
        _captured([row for row in rows_of(results, "timing") if row["subject"] == OURS]),
    ]


def _rows(timings: Sequence[Row], op: str) -> list[Row]:
    return [row for row in timings if row["op"] == op]


def _fastest(rows: Sequence[Row], subject: str, key: str = "plain_us") -> Row | None:
    """The row of the fastest variant of a subject."""
    own = [row for row in rows if row["subject"].startswith(subject) and row[key] is not None]
    return min(own, key=lambda row: row[key], default=None)


def _faster(name: str, times: float, rows: Sequence[Row], rival: str) -> Target:
    """Ours against the rival's fastest variant, case by case, both launched anew each time; the worst case counts."""
    text = f"{name} at least {times:g} times as fast as {rival} at {LARGE_NAME}"
    found = []
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        ours, theirs = _fastest(own, OURS), _fastest(own, rival)
        if ours and theirs:
            found.append((theirs["plain_us"] / ours["plain_us"], ours, theirs))
    if not found:
        return Target(text, "not measured", None)
    ratio, ours, theirs = min(found, key=lambda item: item[0])
    layout = f"{ours['dtype']} {ours['layout']}"
    words = f"{ratio:.1f} times: {ours['plain_us']:.1f} us ({layout}) against {theirs['plain_us']:.1f} us"
    return Target(text, words, ratio >= times)


def _share_of_copy(rows: Sequence[Row], copy_gb_s: float | None) -> Target:
    text = f"PyramidRoiAlign in float16 at {BANDWIDTH_SHARE:.0%} of the copy bandwidth or more at {LARGE_NAME}"
    ours = _fastest(rows, OURS, "graph_us")
    if ours is None or copy_gb_s is None:
        return Target(text, "not measured", None)
    share = floor_us(ours["floor_bytes"], copy_gb_s) / ours["graph_us"]
    return Target(text, f"{share:.0%} ({ours['layout']}, {ours['graph_us']:.1f} us)", share >= BANDWIDTH_SHARE)


def _captured(rows: Sequence[Row]) -> Target:
    text = "nothing but kernel launches between input and output"
    if not rows:
        return Target(text, "not measured", None)
    return Target(text, f"{len(rows)} plans captured in CUDA graphs", all(row["graph_us"] for row in rows))


# ------------------------------------------------------------------------------------------------------------ Writing
def file_name(facts: Row) -> str:
    """Named after GPU and versions: `gpu_check_nvidia-h100_cuda13.0_torch2.11.0`."""
    versions = facts.get("packages", {})
    parts = [
        "gpu_check",
        _slug(facts.get("gpu", "unknown GPU").removeprefix("NVIDIA ")),
        f"cuda{facts.get('torch_cuda') or facts.get('driver_cuda') or 'unknown'}",
        *(
            f"{name}{versions[name].partition('+')[0]}"
            for name in ("torch", "tensorrt", "tensorrt-rtx")
            if name in versions
        ),
    ]
    return "_".join(parts)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write(results: Sequence[Result], date: str, commit: str | None, folder: Path = RESULTS) -> Path:
    """Write `.json` and `.md`; returns the path without a suffix."""
    facts = facts_of(results)
    base = folder / file_name(facts)
    content = {
        "date": date,
        "commit": commit,
        "targets": [dataclasses.asdict(target) for target in judge(results)],
        "parts": [dataclasses.asdict(result) for result in results],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(base.with_name(base.name + ".json"), json.dumps(content, indent=1) + "\n")
    text = "\n".join(markdown(results, date, commit)) + "\n"
    write_text(base.with_name(base.name + ".md"), text)
    return base


def markdown(results: Sequence[Result], date: str, commit: str | None) -> Iterator[str]:
    """The report in lines."""
    facts = facts_of(results)
    yield f"# GPU check on {facts.get('gpu', 'an unknown GPU')}"
    yield ""
    yield f"{date}, commit {commit or 'unknown'}; made by `make gpu-check`."
    yield ""
    yield from _describe(facts)
    yield from _section("Targets", ("target", "measured", "met"), _target_cells(judge(results)))
    yield from _section("Parts", ("part", "result", "seconds", ""), _part_cells(results))
    heads: tuple[str, ...] = ("op", "comparisons", "good", "largest difference from")
    yield from _section("Correctness", heads, _correctness_cells(rows_of(results, "correctness")))
    heads = ("op", "case", "subject", "type, layout", "us", "us in graph", "kernels", "copies", "floor us", "of floor")
    cells = _timing_cells(rows_of(results, "timing"), facts.get("copy_gb_s"))
    yield from _section("Timing", heads, cells)
    heads = ("engine", "what", "result")
    yield from _section("Engines", heads, _engine_cells(rows_of(results, "engines")))


def summary(results: Sequence[Result]) -> Iterator[str]:
    """The targets and what went wrong, for a terminal."""
    words = {True: "met", False: "MISSED", None: "open"}
    for target in judge(results):
        yield f"{words[target.met]:7} {target.text}: {target.measured}"
    for result in results:
        bad = [row for row in result.rows if row.get("ok") is False]
        for row in bad[:MOST_FAILURES]:
            yield f"FAILED  {result.part}: {', '.join(f'{key} {value}' for key, value in row.items() if key != 'ok')}"


def _describe(facts: Row) -> Iterator[str]:
    if "sm" in facts:
        packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        yield f"{facts['gpu']} ({facts['sm']}), {facts['memory_gib']} GiB, driver {facts['driver']}; {packages}."
    if "copy_gb_s" in facts:
        yield (
            f"Copying {facts['copy_bytes'] / 1e6:.0f} MB within the GPU: {facts['copy_gb_s']:.0f} GB/s, read and "
            f"written. A tiny kernel takes the host {facts.get('host_launch_us', '?')} us to launch and "
            f"{facts.get('graph_kernel_us', '?')} us in a CUDA graph."
        )
    yield ""
    yield (
        "Times are medians. `us`: launched anew each time; `us in graph`: one call within a captured CUDA graph. The "
        "floor is the time that the bytes an op cannot avoid moving take at the copy bandwidth."
    )


def _section(title: str, heads: Sequence[str], cells: Sequence[Sequence[str]]) -> Iterator[str]:
    if not cells:
        return
    yield ""
    yield f"## {title}"
    yield ""
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in cells:
        yield f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in row)} |"


def _target_cells(targets: Sequence[Target]) -> list[list[str]]:
    words = {True: "**yes**", False: "**no**", None: "open"}
    return [[target.text, target.measured, words[target.met]] for target in targets]


def _part_cells(results: Sequence[Result]) -> list[list[str]]:
    return [[result.part, result.status, f"{result.seconds:.1f}", last_line(result.reason)] for result in results]


def last_line(text: str) -> str:
    """The last line, which says it all of a traceback, cut to what a table holds."""
    return text.strip().splitlines()[-1][:LONGEST_REASON] if text.strip() else ""


def _correctness_cells(rows: Sequence[Row]) -> list[list[str]]:
    cells = []
    for op in dict.fromkeys(row["op"] for row in rows):
        own = [row for row in rows if row["op"] == op]
        worst = dict.fromkeys((row["against"] for row in own), 0.0)
        for row in own:
            worst[row["against"]] = max(worst[row["against"]], row["worst"])
        words = ", ".join(f"{other} {value:.2g}" for other, value in worst.items())
        cells.append([op, str(len(own)), str(sum(row["ok"] for row in own)), words])
    return cells


def _timing_cells(rows: Sequence[Row], copy_gb_s: float | None) -> list[list[str]]:
    cells = []
    for row in rows:
        floor = floor_us(row["floor_bytes"], copy_gb_s) if copy_gb_s and "floor_bytes" in row else None
        share = floor / row["graph_us"] if floor and row["graph_us"] else None
        cells.append(
            [
                row["op"], row["case"], row["subject"], f"{row['dtype']} {row['layout']}", _number(row["plain_us"]),
                _number(row["graph_us"]), _number(row["kernels"]), _number(row["copies"]), _number(floor),
                "-" if share is None else f"{share:.0%}",
            ]
        )  # fmt: skip
    return cells


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.1f}"


def _engine_cells(rows: Sequence[Row]) -> list[list[str]]:
    return [[row["engine"], row["what"], row["detail"]] for row in rows]
