"""Several files as one source: one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.sources.live import Drop, SourceHealth

if TYPE_CHECKING:
    from edge_mrcnn.runtime.sources import Source


class Playlist:
    """Sources with an end, one after the other; each frame says which it is from.

    Attributes:
        uri: Those of the sources.
        fps: Of the first source that has a rate; None where none has.
        length: Frames of all, None where one does not know.
        live: False.
        drop: `never`.
        name: Of the first source. Frames carry their own source's as `Frame.camera`.

    Example:
        >>> from edge_mrcnn.runtime.sources import open_source
        >>> first, second = (open_source(f"test://64x48?frames={count}&name=last_{count}") for count in (2, 1))
        >>> with Playlist([first, second]) as both:
        ...     [(frame.camera, frame.index) for frame in both]
        [('last_2', 0), ('last_2', 1), ('last_1', 0)]
    """

    live = False
    drop: Drop = "never"

    def __init__(self, sources: Sequence[Source], names: Sequence[str] | None = None) -> None:
        """Take the sources in this order.

        Args:
            sources: Closed with the playlist.
            names: What `Frame.camera` becomes, one for each source; their own when not given.

        Raises:
            ValueError: There is no source, one is live, so that what follows would never come, or the names are not
                as many.
        """
        if not sources:
            raise ValueError("a playlist needs at least one source")
        for source in sources:
            if source.live:
                raise ValueError(f"{source.uri} has no end, so nothing after it would come; give it a lane of its own")
        if names is not None and len(names) != len(sources):
            raise ValueError(f"a playlist of {len(sources)} sources needs as many names, got {len(names)}")
        self._sources = tuple(sources)
        self._names = tuple(names or (source.name for source in sources))
        self._current = 0
        self._ended = False

    @property
    def uri(self) -> str:
        """Those of the sources."""
        return ", ".join(source.uri for source in self._sources)

    @property
    def name(self) -> str:
        """Of the first source."""
        return self._names[0]

    @property
    def fps(self) -> float | None:
        """Of the first source that has a rate."""
        return next((source.fps for source in self._sources if source.fps), None)

    @property
    def length(self) -> int | None:
        """Frames of all, None where one does not know."""
        lengths = [source.length for source in self._sources]
        return None if None in lengths else sum(length or 0 for length in lengths)

    @property
    def skipped(self) -> int:
        """Pictures that could not be read so far."""
        return sum(source.skipped for source in self._sources)

    @property
    def health(self) -> SourceHealth:
        """Of all sources together; state, size and error are those of the source being read."""
        found = [source.health for source in self._sources]
        now = found[self._current]
        return replace(
            now,
            state="ended" if self._ended else "live" if now.state == "ended" else now.state,
            frames=sum(one.frames for one in found),
            dropped=sum(one.dropped for one in found),
            damaged=sum(one.damaged for one in found),
        )

    def __iter__(self) -> Iterator[Frame]:
        """Frames of the first source, then of the second, and so on.

        Raises:
            StreamError: A source broke; those after it are not read.
        """
        self._ended = False
        for number, (source, name) in enumerate(zip(self._sources, self._names, strict=True)):
            self._current = number
            for frame in source:
                yield frame if frame.camera == name else replace(frame, camera=name)
        self._ended = True

    def close(self) -> None:
        """Close every source. A second call does nothing."""
        for source in self._sources:
            source.close()

    def __enter__(self) -> Playlist:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
