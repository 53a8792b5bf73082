"""What each op launches on the GPU: one module an op, all of the form `Plan`. Plain data, no GPU."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from edge_mrcnn.gpu.launches import Launch, Tensor

_MODULES = {
    "RpnProposals": "rpn_proposals",
    "PyramidRoiAlign": "pyramid_roi_align",
    "DetectionNms": "detection_nms",
}


class Plan(Protocol):
    """The module of an op.

    Attributes:
        SOURCE: Its file below `plugins/`.
        Args: The parameter of its kernels, as the C++ struct of that name lays it out.
    """

    SOURCE: str
    Args: type[ctypes.Structure]

    def workspace_bytes(
        self, attributes: Mapping[str, Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> int:
        """Bytes of workspace for tensors of these shapes; never more for smaller ones.

        Raises:
            PluginError: They are out of the kernels' range.
        """

    def launches(
        self, attributes: Mapping[str, Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int
    ) -> list[Launch]:
        """The launches in order.

        Args:
            attributes: Of the node, as edge_mrcnn/ops.py has them.
            inputs: In the order of the contract.
            outputs: Likewise.
            workspace: Address of `workspace_bytes`, aligned to `launches.ALIGNMENT`.

        Raises:
            PluginError: As `workspace_bytes`.
        """


def plan_of(op: str) -> Plan:
    """The module of an op of edge_mrcnn/ops.py, by its name."""
    return cast(Plan, importlib.import_module(f"{__name__}.{_MODULES[op]}"))
