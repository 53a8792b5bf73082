"""Files are written whole or not at all."""

import os
from pathlib import Path

import pytest

from edge_mrcnn.files import atomic_path, write_text


def test_writes_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "é\n")
    assert (tmp_path / "a.json").read_bytes() == "é\n".encode()
    assert os.listdir(tmp_path) == ["a.json"]


def test_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "clip.mp4") as partial:
        assert partial.suffix == ".mp4"
        assert partial.parent == tmp_path
        partial.write_bytes(b"x")


def test_a_failure_keeps_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_text(target, "old")

    def fail() -> None:
        with atomic_path(target) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_text(tmp_path / "none" / "a.json", "x")


def test_a_device_is_written_and_not_replaced() -> None:
    write_text(Path("/dev/null"), "x")
    assert not Path("/dev/null").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.json"

    def fail() -> None:
        with atomic_path(target) as partial:
            partial.symlink_to("/dev/full")
            partial.write_text("x" * 100_000)

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert os.listdir(tmp_path) == []
