"""Where an ONNX file spends its time in ONNX Runtime: by part of the network, by op and by node.

Parts are read off the names of nodes and tensors, which are paths of modules and survive the optimiser's fusions. Nodes
of function bodies are named after their function first.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_mrcnn.evaluation.machine import Machine, describe_machine, usable_cores

CONTAINERS = ("backbone", "rpn", "roi_heads")
"""Modules that are told apart by what is in them."""

LAYOUT_OPS = ("ReorderInput", "ReorderOutput")
"""Ops that ONNX Runtime adds around convolutions, to and from the blocked layout of its kernels."""

_INLINED = re.compile(r"_inlfunc_([A-Za-z0-9]+)_")


@dataclass(frozen=True)
class Share:
    """Time of a part, an op or a node.

    Attributes:
        name: Of the part, op or node.
        ms: Milliseconds a run.
        percent: Of the time in all nodes.
        calls: Nodes executed a run.
    """

    name: str
    ms: float
    percent: float
    calls: int


@dataclass(frozen=True)
class Profile:
    """Where the time goes, largest first.

    Attributes:
        model: The file.
        total_ms: Time in all nodes, a run.
        parts: By part of the network; nodes that the optimiser added are `layout` and `other`.
        ops: By ONNX op.
        nodes: The slowest nodes.
        threads: CPU threads.
        machine: Where it was measured.
    """

    model: str
    total_ms: float
    parts: tuple[Share, ...]
    ops: tuple[Share, ...]
    nodes: tuple[Share, ...]
    threads: int
    machine: Machine

    def to_json(self) -> str:
        """The profile as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def lines(self, most: int = 12) -> list[str]:
        """The profile as lines of a text table, `most` rows of each kind."""
        rows = [f"{self.model}: {self.total_ms:.1f} ms in nodes, {self.threads} threads"]
        for title, shares in (("part", self.parts), ("op", self.ops), ("node", self.nodes)):
            rows += ["", f"{title:<44}{'ms':>9}{'%':>7}{'calls':>7}"]
            rows += [f"{one.name[:43]:<44}{one.ms:9.1f}{one.percent:7.1f}{one.calls:7d}" for one in shares[:most]]
        return rows


def profile_onnx(
    model: Path, feeds: Mapping[str, npt.NDArray[Any]], *, threads: int = 0, runs: int = 3, warmup: int = 1
) -> Profile:
    """Profile an ONNX file on the CPU.

    Args:
        model: Any ONNX file that ONNX Runtime runs; one file, without external data.
        feeds: Its inputs by name.
        threads: CPU threads; 0 for all cores.
        runs: Runs counted.
        warmup: Runs before them.

    Returns:
        The mean of the runs.
    """
    import onnx
    import onnxruntime

    proto = onnx.load(model)
    _name_body_nodes(proto)
    threads = threads or usable_cores()
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for _ in range(warmup + runs):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return _summarise(str(model), _counted(events, warmup), runs, threads)


def _name_body_nodes(proto: Any) -> None:
    """Name the nodes of function bodies, which have no names; the inliner puts the function's name before them."""
    for function in proto.functions:
        for index, node in enumerate(function.node):
            node.name = f"{node.op_type}.{index}"


def _counted(events: Iterable[Mapping[str, Any]], warmup: int) -> list[Mapping[str, Any]]:
    """Node events after the warm-up."""
    rows = list(events)
    ends = sorted(row["ts"] + row["dur"] for row in rows if row["name"] == "model_run")
    begin = ends[warmup - 1] if warmup else 0
    nodes = [row for row in rows if row.get("cat") == "Node" and row["name"].endswith("_kernel_time")]
    return [row for row in nodes if row["ts"] >= begin]


def _summarise(model: str, events: Iterable[Mapping[str, Any]], runs: int, threads: int) -> Profile:
    by_part: dict[str, list[float]] = defaultdict(list)
    by_op: dict[str, list[float]] = defaultdict(list)
    by_node: dict[str, list[float]] = defaultdict(list)
    control_flow = {"If", "Loop", "Scan"}  # their time is that of the nodes inside, which are events of their own
    for event in events:
        op = str(event["args"]["op_name"])
        if op in control_flow:
            continue
        milliseconds = event["dur"] / 1000
        name = str(event["name"]).removesuffix("_kernel_time")
        by_part[_part_of(name, op)].append(milliseconds)
        by_op[op].append(milliseconds)
        by_node[f"{op} {name}"].append(milliseconds)
    total = sum(map(sum, by_op.values()))
    tables = [_shares(table, total, runs) for table in (by_part, by_op, by_node)]
    return Profile(model, round(total / runs, 2), tables[0], tables[1], tables[2][:30], threads, describe_machine())


def _part_of(name: str, op: str) -> str:
    """The part of a node.

    Names are paths of modules: `backbone.body.conv1` here, `/model/backbone/body/conv1/Conv` from torch's exporter.
    """
    if op in LAYOUT_OPS:
        return "layout"
    inlined = _INLINED.search(name)
    if inlined:
        return inlined[1]
    bare = name.removeprefix("fused ")
    path = bare.split("/")[1:-1] if bare.startswith("/") else bare.split(".")
    path = [step for step in path if step != "model"]
    if not path or (len(path) < 2 and path[0] not in CONTAINERS):
        return "other"
    return ".".join(path[:2]) if path[0] in CONTAINERS else path[0]


def _shares(table: Mapping[str, list[float]], total: float, runs: int) -> tuple[Share, ...]:
    rows = [
        Share(name, round(sum(times) / runs, 3), round(100 * sum(times) / total, 1), round(len(times) / runs))
        for name, times in table.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.ms))


def network_feeds(picture: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
    """Inputs of one of our networks for one picture `(H, W, 3)` uint8 of its canvas size."""
    return {"images": picture[None], "image_hw": np.array([picture.shape[:2]], np.float32)}
