"""A short soak from end to end, as a person types it."""

import json
from pathlib import Path

import pytest

from edge_mrcnn.cli import main
from edge_mrcnn.evaluation.soak.faults import CLIENT_FAULTS, HTTP_FAULTS, SINK_FAULTS


@pytest.mark.slow
def test_a_short_soak_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx", reason="onnx, which makes the tiny detector, is not installed")
    from tests.runtime.tiny_detector import save_detector

    model, target, kept = save_detector(tmp_path / "model.onnx"), tmp_path / "soak.json", tmp_path / "kept"
    kept.mkdir()
    # Memory settles over minutes: the limit is for a long soak.
    arguments = ["--minutes", "0.35", "--timeout-s", "1", "--most-growth-percent", "50", "--keep", str(kept)]
    try:
        code = main(["soak", str(model), *arguments, "--json", str(target)])
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    report = json.loads(target.read_text())
    assert report["problems"] == []
    assert code == 0
    assert report["lost"] == 0
    assert report["faults"].keys() >= {*HTTP_FAULTS, *CLIENT_FAULTS, *SINK_FAULTS}
    assert sum(camera["reconnects"] for camera in report["cameras"]) >= 2
    assert sum(camera["frames_out"] for camera in report["cameras"]) > 50
    assert {path.suffix for path in kept.iterdir()} == {".mkv", ".jsonl", ".mcap"}
    assert len(list(kept.glob("*.jsonl"))) >= 2  # segments
    assert "no limit was broken" in capsys.readouterr().out


def test_a_limit_that_is_broken_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from edge_mrcnn.commands import soak as verb

    class Report:
        problems = ("memory grew",)

        def lines(self) -> list[str]:
            return list(self.problems)

        def to_json(self) -> str:
            return "{}"

    monkeypatch.setattr(verb, "soak", lambda model, options: Report())
    with pytest.raises(SystemExit) as leaving:
        main(["soak", "model.onnx"])
    assert leaving.value.code == 1
