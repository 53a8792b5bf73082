from __future__ import annotations

import dataclasses
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from edge_mrcnn.compiler import engine_files
from edge_mrcnn.compiler.engine_files import EngineCache, default_cache_folder, publish, unfinished
from edge_mrcnn.errors import EngineError
from edge_mrcnn.sidecar import EngineSidecar, hash_file, sidecar_path
from tests.test_sidecar import make_sidecar


def sidecar_for(part: Path) -> EngineSidecar:
    return make_sidecar(engine_sha256=hash_file(part))


def make_engine(path: Path, content: bytes = b"an engine") -> EngineSidecar:
    with unfinished(path) as part:
        part.write_bytes(content)
        publish(part, path, sidecar := sidecar_for(part))
    return sidecar


def test_an_engine_appears_with_its_sidecar_and_nothing_else(tmp_path: Path) -> None:
    engine = tmp_path / "deep" / "model.rtx.fp16.engine"
    make_engine(engine)
    assert sorted(path.name for path in engine.parent.iterdir()) == ["model.rtx.fp16.engine", "model.rtx.fp16.json"]
    EngineSidecar.load_for(engine)


def test_what_is_not_finished_vanishes_and_what_was_there_stays(tmp_path: Path) -> None:
    engine = tmp_path / "a.engine"
    make_engine(engine, b"old")

    def fail() -> None:
        with unfinished(engine) as part:
            part.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert engine.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.engine", "a.json"]


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["the engine", "the sidecar"])
def test_on_a_full_disk_neither_name_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    if step == "the engine":
        monkeypatch.setattr(Path, "replace", full)
    else:
        monkeypatch.setattr(engine_files, "write_text", full)
    with pytest.raises(EngineError, match=r"No space left on device.*free some space"):
        make_engine(tmp_path / "a.engine")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(EngineError, match=r"cannot write to the folder .*Permission denied.*-o DIR"):
        make_engine(tmp_path / "a.engine")


def test_a_cache_gives_back_what_it_was_given(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache", 1.0)
    engine, copy = tmp_path / "a.engine", tmp_path / "out" / "b.engine"
    sidecar = make_engine(engine)
    assert cache.fetch("key", copy) is None
    cache.keep("key", engine, sidecar)
    assert cache.fetch("other", copy) is None
    assert cache.fetch("key", copy) == sidecar
    assert copy.read_bytes() == engine.read_bytes()
    EngineSidecar.load_for(copy)


def test_a_cache_copies_where_disks_have_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "hardlink_to", full)
    test_a_cache_gives_back_what_it_was_given(tmp_path)


def test_the_engines_not_used_for_longest_go(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache", 350 / engine_files.GIB)
    for age, key in enumerate(["c", "b", "a"]):
        engine = tmp_path / f"{key}.engine"
        sidecar = make_engine(engine, key.encode() * 100)
        cache.keep(key, engine, sidecar)
        then = time.time() - 1000 * (age + 1)
        os.utime(tmp_path / "cache" / f"{key}.engine", (then, then))
    assert cache.fetch("a", tmp_path / "used.engine") is not None, "so that it was used last"
    sidecar = make_engine(tmp_path / "d.engine", b"d" * 100)
    cache.keep("d", tmp_path / "d.engine", sidecar)
    assert sorted(path.stem for path in (tmp_path / "cache").glob("*.engine")) == ["a", "c", "d"]
    assert sorted(path.stem for path in (tmp_path / "cache").glob("*.json")) == ["a", "c", "d"]


def test_an_engine_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache", 0.0)
    cache.keep("key", tmp_path / "a.engine", make_engine(tmp_path / "a.engine"))
    assert not (tmp_path / "cache").exists()


def test_a_damaged_entry_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = EngineCache(tmp_path / "cache", 1.0)
    engine = tmp_path / "a.engine"
    cache.keep("key", engine, dataclasses.replace(make_engine(engine), engine_sha256="0" * 64))
    assert cache.fetch("key", tmp_path / "b.engine") is None
    assert not (tmp_path / "b.engine").exists()
    assert not list((tmp_path / "cache").iterdir())
    assert "built again" in caplog.text


def test_the_cache_lies_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "edge_mrcnn" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / ".cache" / "edge_mrcnn" / "engines"


def test_a_sidecar_path_keeps_target_and_precision() -> None:
    assert sidecar_path(Path("x/model.rtx-sm_86.fp16.engine")) == Path("x/model.rtx-sm_86.fp16.json")
