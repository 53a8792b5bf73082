"""Playlists: files one after the other."""

from pathlib import Path

import pytest

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sources.playlist import Playlist
from tests.runtime.sources.test_lane import Numbers


def test_one_after_the_other() -> None:
    first, second = Numbers(2), Numbers(1)
    second.name = "second"
    both = Playlist([first, second])
    assert (both.length, both.live, both.drop, both.name, both.uri) == (
        3,
        False,
        "never",
        "numbers",
        "numbers, numbers",
    )
    assert [(frame.camera, frame.index) for frame in both] == [("numbers", 0), ("numbers", 1), ("second", 0)]
    assert both.health.frames == 3
    assert both.health.state == "ended"


def test_names_that_a_run_chose() -> None:
    playlist = Playlist([Numbers(1), Numbers(1)], ["numbers", "numbers_2"])
    assert [frame.camera for frame in playlist] == ["numbers", "numbers_2"]
    with pytest.raises(ValueError, match="2 sources needs as many names, got 1"):
        Playlist([Numbers(1), Numbers(1)], ["one"])


def test_an_unknown_length_makes_that_of_all_unknown() -> None:
    endless = Numbers(1)
    endless.length = None  # type: ignore[assignment]
    assert Playlist([Numbers(3), endless]).length is None


def test_a_source_that_breaks_ends_it() -> None:
    playlist = Playlist([Numbers(1, fails=True), Numbers(1)])
    found = iter(playlist)
    assert next(found).index == 0
    assert playlist.health.state != "ended"
    with pytest.raises(StreamError, match="the numbers broke"):
        next(found)


def test_closing_closes_all() -> None:
    closed = []
    sources = [Numbers(1), Numbers(1)]
    for source in sources:
        source.close = lambda source=source: closed.append(source)  # type: ignore[method-assign, misc]
    with Playlist(sources):
        pass
    assert closed == sources


def test_live_sources_and_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="numbers has no end"):
        Playlist([Numbers(1), Numbers(1, live=True)])
    with pytest.raises(ValueError, match="at least one source"):
        Playlist([])
