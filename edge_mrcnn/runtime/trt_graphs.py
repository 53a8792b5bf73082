"""CUDA graphs of frames that come again and again."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable

from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu.cuda import Graph, Stream

_log = logging.getLogger(__name__)

KEPT_GRAPHS = 8
"""Per slot: batch sizes times picture sizes that take turns. The one not used for longest goes."""


class GraphSwitch:
    """Whether frames are captured, for all slots of a runner: a capture that fails once is not tried again."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def give_up(self, error: EngineError) -> None:
        """Go on without CUDA graphs."""
        self.on = False
        _log.warning("frames run without a CUDA graph, a little slower: %s", str(error))  # not with its frames


class FrameGraphs:
    """The graphs of one stream, by what makes frames the same work on the same memory."""

    def __init__(self, stream: Stream, switch: GraphSwitch) -> None:
        self._stream, self._switch = stream, switch
        self._graphs: OrderedDict[Hashable, Graph | None] = OrderedDict()

    def run(self, key: Hashable | None, work: Callable[[], None], can_be_captured: Callable[[], bool]) -> None:
        """Give a frame's work to the stream: as a graph from the second frame of its kind on.

        The first one runs as it is, because TensorRT and the driver prepare what they do not allow during a capture.

        Args:
            key: Same work, same addresses; None for what will not come again.
            work: Gives the work to the stream.
            can_be_captured: Asked before the capture.

        Raises:
            EngineError: The work fails.
        """
        if key is None or not self._switch.on:
            work()
            return
        graph = self._graphs.get(key)
        if graph is None and key in self._graphs and can_be_captured():
            graph = self._capture(work)
        if graph is None:
            work()
        else:
            graph.launch(self._stream)
        self._graphs[key] = graph
        self._graphs.move_to_end(key)
        self._forget_oldest()

    def clear(self) -> None:
        """Drop every graph: an address that they hold is about to change. Nothing may be running."""
        while self._graphs:
            _, graph = self._graphs.popitem()
            if graph is not None:
                graph.close()

    def _capture(self, work: Callable[[], None]) -> Graph | None:
        try:
            with Graph.capture(self._stream) as graph:
                work()
        except EngineError as error:
            self._switch.give_up(error)
            return None
        return graph

    def _forget_oldest(self) -> None:
        while len(self._graphs) > KEPT_GRAPHS:
            _, graph = self._graphs.popitem(last=False)
            if graph is not None:
                graph.close()
