"""Which detection belongs to which track: overlaps and the exact assignment."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]


def pairwise_iou(boxes: Array, others: Array) -> Array:
    """Intersection over union of each pair of boxes.

    Args:
        boxes: `(T, 4)`, x0, y0, x1, y1 in pixels.
        others: `(D, 4)`, likewise.

    Returns:
        `(T, D)`, 0 to 1; 0 where both have no area.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    sides = np.maximum(high - low, 0.0)
    shared = sides[..., 0] * sides[..., 1]
    area, other_area = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (boxes, others))
    union = area[:, None] + other_area[None] - shared
    return np.asarray(shared / np.maximum(union, 1e-9))


def assign(cost: Array, limit: float) -> tuple[Rows, Rows]:
    """Pair rows with columns so that the sum of the costs is least, where a row left alone costs `limit`.

    Exact. Rows first take their cheapest column; only those whose column is taken search on, so that well separated
    things cost next to nothing.

    Args:
        cost: `(T, D)`; infinite for pairs that are not allowed.
        limit: No pair costs more than this.

    Returns:
        Rows and columns of the pairs, by row.

    Source: Jonker, Volgenant, A shortest augmenting path algorithm for dense and sparse linear assignment problems
    (1987).
    """
    rows, columns = cost.shape
    if not cost.size:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    if rows > columns:  # the fewer search
        chosen, given = assign(cost.T, limit)
        order = np.argsort(given)
        return given[order], chosen[order]
    alone = np.full((rows, rows), np.inf)
    np.fill_diagonal(alone, limit)
    padded = np.concatenate([np.where(cost <= limit, cost, np.inf), alone], axis=1)
    first = padded.argmin(axis=1)
    row_price, column_price = padded.min(axis=1), np.zeros(columns + rows)
    owner = np.full(columns + rows, -1)
    owner[first[::-1]] = np.arange(rows)[::-1]  # of several rows the lowest
    for row in np.flatnonzero(owner[first] != np.arange(rows)):
        _augment(padded, int(row), owner, row_price, column_price)
    pairs = np.flatnonzero(owner[:columns] >= 0)
    pairs = pairs[np.argsort(owner[pairs])]
    return owner[pairs], pairs


def _augment(padded: Array, row: int, owner: Rows, row_price: Array, column_price: Array) -> None:
    """Give `row` a column by the cheapest chain of exchanges. Changes owner and prices."""
    reached_from = np.full(len(owner), row)
    distance = padded[row] - row_price[row] - column_price
    open_distance = distance.copy()  # infinite for the columns that are settled
    settled: list[int] = []
    while True:
        column = int(open_distance.argmin())
        length, holder = distance[column], int(owner[column])
        if holder < 0:
            break
        settled.append(column)
        open_distance[column] = np.inf
        through = length + padded[holder] - row_price[holder] - column_price
        through[settled] = np.inf
        better = through < open_distance
        distance[better] = open_distance[better] = through[better]
        reached_from[better] = holder
    gain = length - distance[settled]
    row_price[row] += length
    row_price[owner[settled]] += gain
    column_price[settled] -= gain
    while column >= 0:  # hand the columns on, from the end of the chain to its start
        holder = int(reached_from[column])
        given_up = np.flatnonzero(owner == holder)
        owner[column] = holder
        column = int(given_up[0]) if holder != row else -1
