"""What torchvision does with boxes, in the RPN and behind the box head alike: decode, drop, suppress, take the best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.raw.regions import Regions, constant_of, producer, readers
from edge_mrcnn.compiler.raw.survey import MismatchError

_SHAPERS = frozenset({"Reshape", "Flatten", "Concat", "Cast", "Unsqueeze", "Squeeze", "Transpose"})


@dataclass
class Decoder:
    """A `BoxCoder` that decodes.

    Attributes:
        references: Anchors or proposals `(N, 4)`, from which the deltas are counted.
        weights: The 4 numbers the deltas are divided by.
        clip: Upper limit of dw and dh.
    """

    references: gs.Tensor
    weights: list[float]
    clip: float

    def describe(self) -> str:
        """Its numbers."""
        return f"box weights {self.weights}, clip {self.clip:.4f}"


def find_decoder(regions: Regions, deltas: gs.Tensor) -> Decoder:
    """Read the numbers of `BoxCoder.decode_single` behind a tensor of deltas.

    Source: torchvision models/detection/_utils.py.

    Raises:
        MismatchError: The deltas are used in another way.
    """
    slices = _coordinate_slices(regions, deltas)
    divided = [_divide(regions, node) for node in slices]
    limits = [_limit(regions, tensor) for tensor, _ in divided[2:]]
    if limits[0] != limits[1]:
        raise MismatchError("dw and dh to be clipped at the same number", limits)
    shifts = [tensor for tensor, _ in divided[:2]]
    folded = _folded_references(regions, shifts)
    references = {id(tensor): tensor for tensor in ([folded] if folded else [_reference(shift) for shift in shifts])}
    if len(references) != 1:
        raise MismatchError("dx and dy to be multiplied by sides of the same boxes", f"{len(references)} tensors")
    return Decoder(next(iter(references.values())), [weight for _, weight in divided], limits[0])


def _coordinate_slices(regions: Regions, deltas: gs.Tensor) -> list[gs.Node]:
    """The four nodes that take dx, dy, dw and dh: each fourth column, from 0, 1, 2 and 3 on."""
    seen: set[int] = set()
    waiting, slices = [deltas], {}
    while waiting:
        for node in readers(waiting.pop()):
            if id(node) in seen:
                continue
            seen.add(id(node))
            if node.op == "Slice":
                start, steps = (
                    regions.number(node.inputs[1]),
                    regions.value(node.inputs[4]) if len(node.inputs) > 4 else None,
                )
                if start is not None and steps is not None and steps.reshape(-1).tolist() == [4]:
                    slices[int(start)] = node
            elif node.op in _SHAPERS:
                waiting.append(node.outputs[0])
    if sorted(slices) != [0, 1, 2, 3]:
        raise MismatchError(
            "each fourth delta to be taken from 0, 1, 2 and 3 on", sorted(slices) or "nothing of the kind"
        )
    return [slices[start] for start in range(4)]


def _divide(regions: Regions, node: gs.Node) -> tuple[gs.Tensor, float]:
    """The coordinate behind its division, and the divisor; 1 where an optimiser has removed that."""
    following = readers(node.outputs[0])
    if len(following) == 1 and following[0].op in ("Div", "Mul"):
        number = regions.number(following[0].inputs[1])
        if number:
            return following[0].outputs[0], number if following[0].op == "Div" else 1 / number
    return node.outputs[0], 1.0


def _limit(regions: Regions, tensor: gs.Tensor) -> float:
    """What dw or dh is clipped at before the exponential."""
    following = readers(tensor)
    if len(following) == 1 and following[0].op in ("Clip", "Min"):
        node = following[0]
        numbers = [regions.number(each) for each in node.inputs[1:] if not each.is_empty()]
        limits = [number for number in numbers if number is not None]
        behind = [reader.op for reader in readers(node.outputs[0])]
        if len(limits) == 1 and behind == ["Exp"] and (node.op == "Min" or node.inputs[1].is_empty()):
            return limits[0]
    raise MismatchError("dw and dh to be clipped from above and then to go to Exp", [node.op for node in following])


def _folded_references(regions: Regions, shifts: Sequence[gs.Tensor]) -> gs.Constant | None:
    """Anchors of which an optimiser, such as onnxsim, has left the sides and the centres as weights, else None."""
    sides, centres = [], []
    for shift in shifts:
        scaled = _only_reader(shift, "Mul")
        moved = _only_reader(scaled.outputs[0], "Add") if scaled else None
        if scaled is None or moved is None:
            return None
        side = next(each for each in scaled.inputs if each is not shift)
        centre = next(each for each in moved.inputs if each is not scaled.outputs[0])
        if not isinstance(side, gs.Constant) or not isinstance(centre, gs.Constant):
            return None
        sides.append(side.values.reshape(-1))
        centres.append(centre.values.reshape(-1))
    if len({each.size for each in (*sides, *centres)}) != 1:
        return None
    half, middle = np.stack(sides, axis=1) / 2, np.stack(centres, axis=1)
    return gs.Constant("anchors", np.concatenate([middle - half, middle + half], axis=1).astype(np.float32))


def _only_reader(tensor: gs.Tensor, op: str) -> gs.Node | None:
    """The one node that reads a tensor, if it is of this op."""
    following = readers(tensor)
    return following[0] if len(following) == 1 and following[0].op == op else None


def _reference(tensor: gs.Tensor) -> gs.Tensor:
    """The boxes whose width or height a shift is multiplied by."""
    following = readers(tensor)
    if len(following) == 1 and following[0].op == "Mul":
        sides = next(each for each in following[0].inputs if each is not tensor)
        node = producer(sides)
        while node is not None and node.op in ("Unsqueeze", "Reshape"):
            node = producer(node.inputs[0])
        picks = [producer(each) for each in node.inputs] if node is not None and node.op == "Sub" else []
        if len(picks) == 2 and all(pick is not None and pick.op in ("Gather", "Slice") for pick in picks):
            (first, second) = (pick.inputs[0] for pick in picks if pick is not None)
            if first is second:
                return first
    raise MismatchError("dx and dy to be multiplied by the sides of a box", [node.op for node in following])


# -------------------------------------------------------------------------------------------------------- suppression
@dataclass
class Suppression:
    """An NMS and what is kept of it.

    Attributes:
        node: The NonMaxSuppression itself, or the If that has it in a branch.
        threshold: Of the IoU.
        kept: How many boxes stay.
        index: The places of those, best first.
    """

    node: gs.Node
    threshold: float
    kept: int
    index: gs.Tensor

    def describe(self) -> str:
        """Its numbers."""
        return f"NMS at IoU {self.threshold:g}, best {self.kept}"


def find_suppression(regions: Regions, nodes: Iterable[gs.Node], where: str) -> Suppression:
    """The NMS among some nodes.

    Raises:
        MismatchError: There is none, or several, or it is used in another way.
    """
    holders = [node for node in nodes if _suppressors(node)]
    if len(holders) != 1:
        raise MismatchError(f"one NMS (NonMaxSuppression) {where}", len(holders))
    return _read_suppression(regions, holders[0])


def _suppressors(node: gs.Node) -> dict[str, gs.Node]:
    """The NMS that a node is, or that the branches of an If hold, by the attribute that holds it."""
    if node.op == "NonMaxSuppression":
        return {"": node}
    if node.op != "If":
        return {}
    found = {}
    for name, branch in node.attrs.items():
        inner = (
            [each for each in branch.nodes if each.op == "NonMaxSuppression"] if isinstance(branch, gs.Graph) else []
        )
        if inner:
            found[name] = inner[0]
    return found


def _read_suppression(regions: Regions, holder: gs.Node) -> Suppression:
    found = _suppressors(holder)
    if set(found) not in ({""}, {"else_branch"}):
        raise MismatchError("an If that suppresses in its else branch, where there are boxes", f"in {', '.join(found)}")
    (node,) = found.values()
    threshold = _inner_number(regions, node.inputs[3]) if len(node.inputs) > 3 else None
    if threshold is None or not 0 <= threshold <= 1:
        raise MismatchError("a NonMaxSuppression with an IoU threshold from 0 to 1", threshold)
    waiting, seen = list(holder.outputs), set()
    while waiting:
        for reader in readers(waiting.pop()):
            if id(reader) in seen:
                continue
            seen.add(id(reader))
            if reader.op == "Slice":
                first, last = (regions.number(each) for each in reader.inputs[1:3])
                if first == 0 and last is not None and last > 0:
                    return Suppression(holder, threshold, int(last), reader.outputs[0])
            elif reader.op in ("Gather", "Squeeze", "Cast", "Reshape"):
                waiting.append(reader.outputs[0])
    raise MismatchError("an NMS of which a Slice keeps the first ones", f"none behind a {holder.op}")


def _inner_number(regions: Regions, tensor: gs.Tensor) -> float | None:
    """A number that may stand in a nested graph."""
    if tensor.inputs and tensor.inputs[0].op == "Constant":
        value = constant_of(tensor.inputs[0])
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None
    return regions.number(tensor)


# --------------------------------------------------------------------------------------------------------- thresholds
@dataclass
class Thresholds:
    """What boxes are dropped by, before the NMS.

    Attributes:
        min_size: Both sides are at least this.
        scores: Of the comparisons of scores: op and number; none where a graph drops none.
    """

    min_size: float
    scores: list[tuple[str, float]]


def find_thresholds(regions: Regions, nodes: Sequence[gs.Node]) -> Thresholds:
    """Read the comparisons with a number among some nodes.

    Raises:
        MismatchError: Sides are not compared, or with different numbers.
    """
    sides: list[float] = []
    scores: list[tuple[str, float]] = []
    for node in nodes:
        if node.op not in ("GreaterOrEqual", "Greater", "Less", "LessOrEqual"):
            continue
        number, maker = regions.number(node.inputs[1]), producer(node.inputs[0])
        if number is None or regions.value(node.inputs[0]) is not None:
            continue
        op = _comparison(node)
        if maker is not None and maker.op == "Sub" and op == "GreaterOrEqual":
            sides.append(number)
        else:
            scores.append((op, number))
    if len(sides) != 2 or len(set(sides)) != 1:
        raise MismatchError("both sides of a box to be compared with a least size", sides or "no comparison")
    return Thresholds(sides[0], scores)


def _comparison(node: gs.Node) -> str:
    """The comparison; older opsets write `>=` as not `<`."""
    following = readers(node.outputs[0])
    if [each.op for each in following] == ["Not"]:
        return {"Less": "GreaterOrEqual", "LessOrEqual": "Greater"}.get(node.op, f"not {node.op}")
    return str(node.op)
