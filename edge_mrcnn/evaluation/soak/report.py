"""What a soak found."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from edge_mrcnn.evaluation.machine import Machine
from edge_mrcnn.evaluation.soak.vitals import Growth, VitalSigns
from edge_mrcnn.runtime.metrics import CameraSummary, Percentiles, SinkStatus


@dataclass(frozen=True)
class SoakReport:
    """What a soak found.

    Attributes:
        model: Name of the network.
        backend: Who ran it where.
        seconds: How long it ran.
        cameras: What came of each camera.
        sinks: What came of each sink.
        lost: Frames that were received and neither written nor counted as dropped.
        recorded: Frames read back from each recording, by camera.
        faults: Faults injected, by kind.
        latency_ms: From receipt to the last sink, of the last 10 000 frames.
        vitals: Memory, threads and descriptors.
        machine: Where.
        problems: Limits that were broken, in words; empty when all is well.
    """

    model: str
    backend: str
    seconds: float
    cameras: tuple[CameraSummary, ...]
    sinks: tuple[SinkStatus, ...]
    lost: int
    recorded: dict[str, dict[str, int]]
    faults: dict[str, int]
    latency_ms: Percentiles
    vitals: VitalSigns
    machine: Machine
    problems: tuple[str, ...]

    def to_json(self) -> str:
        """The report as indented JSON."""
        return json.dumps(asdict(self), indent=1)

    def lines(self) -> list[str]:
        """The report as lines of text."""
        frames = [sum(getattr(one, name) for one in self.cameras) for name in ("frames_in", "frames_out", "dropped")]
        rows = [
            f"{self.model}, {self.backend}: {self.seconds / 60:.1f} minutes, {len(self.cameras)} cameras, "
            f"{sum(self.faults.values())} faults",
            f"frames: {frames[0]} in, {frames[1]} out, {frames[2]} dropped by policy, {self.lost} lost otherwise",
            f"{'camera':<12}{'in':>9}{'out':>9}{'dropped':>9}{'damaged':>9}{'reconnects':>12}",
        ]
        rows += [
            f"{one.name:<12}{one.frames_in:9}{one.frames_out:9}{one.dropped:9}{one.damaged:9}{one.reconnects:12}"
            for one in self.cameras
        ]
        rows += [f"{sink.uri}: {sink.written} written, {sink.dropped} missed" for sink in self.sinks]
        rows += [f"read back from {name}: {sum(counts.values())} frames" for name, counts in self.recorded.items()]
        rows.append("faults: " + ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items())))
        rows.append(f"latency: {self.latency_ms.p50:.0f} ms p50, {self.latency_ms.p95:.0f} ms p95")
        rows.append(
            f"after {self.vitals.warm_up_s:.0f} s of warm-up, median of the first third, of the last, growth, slope:"
        )
        for name, unit, growth in (
            ("memory", "MB", self.vitals.memory_mb),
            ("threads", "", self.vitals.threads),
            ("descriptors", "", self.vitals.descriptors),
        ):
            rows.append(_tell_growth(name, unit, growth))
        rows.append(self.machine.line())
        return rows + ([f"PROBLEM: {problem}" for problem in self.problems] or ["no limit was broken"])


def _tell_growth(name: str, unit: str, growth: Growth) -> str:
    return (
        f"{name:<12}{growth.first:10.1f}{growth.last:10.1f}{growth.percent:+9.2f} %{growth.per_hour:+10.2f} {unit}/h"
    ).replace(" /h", "/h")
