"""`Pending`: a batch under way on the GPU, and how its results are got."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge_mrcnn.errors import EngineError
from edge_mrcnn.runtime.preprocess import Geometry

if TYPE_CHECKING:
    from edge_mrcnn.runtime.trt_runner import TrtRunner

Outputs = Mapping[str, Any]


class Pending:
    """A batch under way. It may be forgotten: what it holds on the GPU goes to the next batch all the same.

    Attributes:
        geometries: Where each picture lies on the canvas; none for inputs that were letterboxed already.
    """

    def __init__(self, runner: TrtRunner, geometries: tuple[Geometry, ...] = ()) -> None:
        self.geometries = geometries
        self._runner = runner
        self._outputs: Outputs | None = None
        self._error: EngineError | None = None

    def result(self) -> dict[str, Any]:
        """Wait for the batch, and for those submitted before it.

        Returns:
            Every output by name, as after `TrtRunner.infer`; the same each time it is asked.

        Raises:
            EngineError: It failed on the GPU.
        """
        if not self.settled:
            self._runner.settle(self)
        if self._error is not None:
            raise self._error
        return dict(self._outputs or {})

    def done(self) -> bool:
        """Whether `result` would give the results at once."""
        return self.settled or self._runner.is_done(self)

    @property
    def settled(self) -> bool:
        """Whether results or an error have been fetched from the GPU."""
        return self._outputs is not None or self._error is not None

    def resolve(self, outputs: Outputs) -> None:
        """Set the results; for the runner."""
        self._outputs = outputs

    def reject(self, error: EngineError) -> None:
        """Set the error; for the runner."""
        self._error = error
