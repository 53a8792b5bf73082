"""Reading a foreign graph part by part, and writing its layers into a new one as they are found."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.raw.heads import BoxHead, DenseHead, Detected, find_box_head, find_dense_head, find_detections
from edge_mrcnn.compiler.raw.pools import Pool, Pools, find_pools
from edge_mrcnn.compiler.raw.proof import (
    prove_detections,
    prove_keypoints,
    prove_mask_choice,
    prove_pool,
    prove_proposals,
)
from edge_mrcnn.compiler.raw.regions import Regions, simplify
from edge_mrcnn.compiler.raw.rpn import Anchors, Head, Proposals, find_anchors, find_head, find_proposals
from edge_mrcnn.compiler.raw.survey import MismatchError, Survey, sure
from edge_mrcnn.compiler.raw.transform import Transform, find_inputs, find_transform
from edge_mrcnn.compiler.raw.transplant import Transplant
from edge_mrcnn.compiler.raw.writer import Writer

log = logging.getLogger(__name__)

ROIS = 7
"""RoIs that shapes behind the pools are inferred for: a number that no size of a layer is likely to be."""


@dataclass
class Layers:
    """Layers that stand in the new graph.

    Attributes:
        ends: Their last tensors there.
        nodes: How many there are.
    """

    ends: list[gs.Tensor]
    nodes: int

    def describe(self) -> str:
        """How many there are."""
        return f"{self.nodes} layers"


@dataclass
class Maps:
    """A mask or keypoint head in the new graph.

    Attributes:
        kind: `mask` or `keypoint`.
        pool: What it takes.
        pooled: That, in the new graph.
        maps: What it gives, in the new graph, `(B*D, K, S, S)`.
        channels: Number of classes or keypoints.
        size: Side of a map (S).
    """

    kind: str
    pool: Pool
    pooled: gs.Tensor
    maps: gs.Tensor
    channels: int
    size: int

    def describe(self) -> str:
        """Their size."""
        return f"{self.channels} maps of {self.size}x{self.size}"


@dataclass
class Reading:
    """A foreign graph that was understood.

    Attributes:
        writer: The new graph so far: all layers, but neither the beginning nor the custom ops nor the end.
        transform: The beginning.
        canvas: Of the new graph.
        image: What the backbone takes, in the new graph.
        levels: The pyramid there.
        objectness: Of each level.
        deltas: Of each level.
        proposals: What becomes of those.
        box_pool: The pool of the proposals.
        pooled: What it gives, in the new graph.
        outputs: Class logits and box deltas there.
        classes: With the background (K).
        detected: What becomes of those.
        heads: For masks and keypoints.
    """

    writer: Writer
    transform: Transform
    canvas: tuple[int, int]
    image: gs.Variable
    levels: list[gs.Tensor]
    objectness: list[gs.Tensor]
    deltas: list[gs.Tensor]
    proposals: Proposals
    box_pool: Pool
    pooled: gs.Variable
    outputs: list[gs.Tensor]
    classes: int
    detected: Detected
    heads: list[Maps]


class Reader:
    """Looks for one part after the other and writes the layers among them."""

    def __init__(self, graph: gs.Graph, canvas: tuple[int, int] | None) -> None:
        """Read `graph`, for a canvas that is asked for or None for the graph's own."""
        simplify(graph)
        graph.toposort(recurse_functions=False)
        self.regions = Regions(graph)
        self.wanted = canvas
        self.writer = Writer()
        self.transplant = Transplant(self.regions, self.writer)
        self.survey = Survey()

    def read(self) -> Reading:
        """Read it all.

        Raises:
            ExportError: Some part does not match; the message lists all.
        """
        find = self.survey.find
        find("inputs", find_inputs, self.regions.graph)
        transform = find("transform", find_transform, self.regions)
        pools = find("pools", find_pools, self.regions)
        head = find("rpn head", find_head, self.regions, pools)
        backbone = find("backbone", self._write_backbone, transform, head)
        layers = find("rpn layers", self._write_rpn, head, backbone)
        anchors = find("anchors", self._find_anchors, transform, head, layers)
        proposals = find("proposals", find_proposals, self.regions, head, anchors, pools)
        find("proposals run", self._prove_proposals, transform, head, proposals)
        find("box pool", self._check_pool, pools and pools.box, anchors)
        box_head = find("box head", find_box_head, self.regions, pools)
        outputs = find("box layers", self._write_box_head, pools, box_head, layers)
        detected = find("detections", self._find_detections, pools, box_head, outputs)
        find("detections run", self._prove_detections, transform, pools, box_head, outputs, detected)
        heads = [self._read_head(pool, anchors, detected) for pool in (pools.others if pools else ())]
        self.survey.conclude()
        for line in self.survey.lines:
            log.info("%s", line)
        levels = len(sure(head).objectness)
        return Reading(
            writer=self.writer,
            transform=sure(transform),
            canvas=self.wanted or sure(transform).canvas,
            image=self._image,
            levels=sure(backbone).ends,
            objectness=sure(layers).ends[:levels],
            deltas=sure(layers).ends[levels:],
            proposals=sure(proposals),
            box_pool=sure(pools).box,
            pooled=self._pooled,
            outputs=sure(outputs).ends,
            classes=self._widths(sure(outputs))[0],
            detected=sure(detected),
            heads=[each for each in heads if each is not None],
        )

    def _write_backbone(self, transform: Transform, head: Head) -> Layers:
        """The layers between the picture and the pyramid."""
        own, new = transform.canvas, self.wanted or transform.canvas
        self.regions.forget()
        self.regions.assume(transform.resized, [*[1] * (transform.rank - 3), 3, *transform.content])
        self._image = gs.Variable("normalised", "float32")
        self.transplant.begin(transform.padded, self._image, ([1, 3, *own], [1, 3, *new]))
        before = len(self.writer.graph.nodes)
        ends = self.transplant.copy(head.features, "backbone")
        return Layers(ends, len(self.writer.graph.nodes) - before)

    def _write_rpn(self, head: Head, backbone: Layers) -> Layers:
        before = len(self.writer.graph.nodes)
        ends = self.transplant.copy([*head.objectness, *head.deltas], "rpn_head")
        return Layers(ends, len(self.writer.graph.nodes) - before)

    def _find_anchors(self, transform: Transform, head: Head, layers: Layers) -> Anchors:
        return find_anchors(self.regions, head, transform.canvas)

    def _prove_proposals(self, transform: Transform, head: Head, proposals: Proposals) -> Any:
        return prove_proposals(self.regions, head, proposals, transform)

    def _prove_detections(
        self, transform: Transform, pools: Pools, head: BoxHead, outputs: Layers, detected: Detected
    ) -> Any:
        return prove_detections(self.regions, pools, head, detected, transform, self._widths(outputs))

    def _check_pool(self, pool: Pool, anchors: Anchors) -> Any:
        """The pool does what it is said to do, on the levels that the anchors say."""
        strides = anchors.attributes["strides"][: len(pool.nodes)]
        if pool.attributes["strides"] != strides:
            raise MismatchError(f"a pool of the pyramid's strides {strides}", pool.attributes["strides"])
        return prove_pool(self.regions, pool)

    def _write_box_head(self, pools: Pools, head: BoxHead, layers: Layers) -> Layers:
        before = len(self.writer.graph.nodes)
        self._pooled = self._begin_pool(pools.box, "box_roi_align")
        ends = self.transplant.copy([head.logits, head.deltas], "box_head")
        return Layers(ends, len(self.writer.graph.nodes) - before)

    def _begin_pool(self, pool: Pool, name: str) -> gs.Variable:
        """A tensor of the new graph for what a pool gives."""
        pooled = gs.Variable(self.writer.name(name), "float32")
        channels = self.regions.shapes[id(pool.features[0])][1]
        side = pool.attributes["output_size"]
        shape = (ROIS, channels, side, side)
        self.transplant.begin(pool.pooled, pooled, (shape, shape))
        return pooled

    def _widths(self, outputs: Layers) -> tuple[int, int]:
        """Numbers of class logits and of box deltas."""
        logits, deltas = (self.writer.shapes[id(tensor)][0] for tensor in outputs.ends)
        if len(logits) != 2 or len(deltas) != 2:
            raise MismatchError("class logits (N, K) and box deltas (N, 4K)", f"{logits} and {deltas}")
        return logits[1], deltas[1]

    def _find_detections(self, pools: Pools, head: BoxHead, outputs: Layers) -> Detected:
        return find_detections(self.regions, pools, head, self._widths(outputs))

    def _read_head(self, pool: Pool, anchors: Anchors | None, detected: Detected | None) -> Maps | None:
        head = self.survey.find("head", find_dense_head, pool)
        kind = head.kind if head else "further"
        self.survey.find(f"{kind} pool", self._check_pool, pool, anchors)
        maps = self.survey.find(f"{kind} layers", self._write_head, head, anchors)
        if kind == "mask":
            self.survey.find("mask choice", self._prove_choice, head, detected, maps)
        elif kind == "keypoint":
            self.survey.find("keypoints", self._prove_keypoints, head, maps)
        return maps

    def _prove_choice(self, head: DenseHead, detected: Detected, maps: Maps) -> Any:
        return prove_mask_choice(self.regions, head, detected, maps.channels, maps.size)

    def _prove_keypoints(self, head: DenseHead, maps: Maps) -> Any:
        return prove_keypoints(self.regions, head, maps.channels, maps.size)

    def _write_head(self, head: DenseHead, anchors: Anchors) -> Maps:
        pooled = self._begin_pool(head.pool, f"{head.kind}_roi_align")
        (maps,) = self.transplant.copy([head.maps], f"{head.kind}_head")
        shape = self.writer.shapes[id(maps)][0]
        if len(shape) != 4 or shape[0] != ROIS or shape[2] != shape[3]:
            raise MismatchError("square maps of each detection", shape)
        return Maps(head.kind, head.pool, pooled, maps, shape[1], shape[2])
