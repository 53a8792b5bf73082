"""A run keeps weak detections where they continue a track, and only there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_mrcnn.runtime.pipeline import RunOptions, run_pipeline

TABLETOP = Path(__file__).parents[2] / "samples" / "tabletop"


@pytest.mark.parametrize("track", [False, True])
def test_weak_detections(track: bool, tmp_path: Path) -> None:
    records = tmp_path / "out.jsonl"
    run_pipeline(TABLETOP / "model.onnx", [TABLETOP / "clip.mp4"], [records], RunOptions(max_frames=30, track=track))
    found = [entry for line in records.read_text().splitlines() for entry in json.loads(line)["detections"]]
    weak = [entry for entry in found if entry["score"] < 0.5]
    assert all(entry.get("track_id") for entry in weak)
    assert all(entry["score"] >= 0.1 for entry in found)
    assert bool(weak) == track
