"""What each op launches on the GPU: one module an op, all of the form `Plan`. Plain data, no GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edge_mrcnn.gpu.kernels import detection_nms, pyramid_roi_align, rpn_proposals
from edge_mrcnn.gpu.launches import Launch, Tensor


class Plan(Protocol):
    """The module of an op.

    Attributes:
        SOURCE: Its file below `plugins/`.
    """

    SOURCE: str

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


_PLANS: Mapping[str, Plan] = {
    "RpnProposals": rpn_proposals,
    "PyramidRoiAlign": pyramid_roi_align,
    "DetectionNms": detection_nms,
}


def plan_of(op: str) -> Plan:
    """The module of an op of edge_mrcnn/ops.py, by its name."""
    return _PLANS[op]
