"""Triangle meshes made from a few numbers: lathe, tube, box and extrusion, with normals and texture coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Neighbouring faces that meet at less than this angle are shaded as one smooth surface.
SMOOTH_COSINE = float(np.cos(np.radians(50.0)))


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh whose faces are counter-clockwise seen from outside.

    Attributes:
        vertices: (V, 3) float64, metres.
        normals: (V, 3) float64, unit length, pointing outwards.
        texcoords: (V, 2) float64, u to the right and v downwards in the texture.
        faces: (F, 3) int64, vertex indices.
    """

    vertices: Array
    normals: Array
    texcoords: Array
    faces: NDArray[np.int64]

    def moved(self, offset: ArrayLike) -> Mesh:
        """The mesh shifted by `offset` (3,), metres."""
        return Mesh(self.vertices + np.asarray(offset, float), self.normals, self.texcoords, self.faces)

    def turned(self, axes: ArrayLike) -> Mesh:
        """The mesh rotated by the 3x3 matrix `axes`, whose columns are the images of x, y and z."""
        rotation = np.asarray(axes, float)
        return Mesh(self.vertices @ rotation.T, self.normals @ rotation.T, self.texcoords, self.faces)


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


def _grid_faces(rows: int, columns: int, offset: int = 0) -> NDArray[np.int64]:
    """Faces of a (rows, columns) vertex grid: columns run around the outside, rows along the surface."""
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij")
    a = (row * columns + column).ravel() + offset
    b, c, d = a + 1, a + columns, a + columns + 1
    return np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)]).astype(np.int64)


def _corner_normals(segments: Array) -> tuple[Array, Array]:
    """Normals at both ends of each profile segment, averaged with the neighbour where the corner is soft."""
    start, end = segments.copy(), segments.copy()
    for k in range(len(segments) - 1):
        if segments[k] @ segments[k + 1] > SMOOTH_COSINE:
            end[k] = start[k + 1] = _unit(segments[k] + segments[k + 1])
    return start, end


def lathe(profile: Sequence[tuple[float, float]], sides: int = 28) -> Mesh:
    """Turns a profile around the z axis.

    Args:
        profile: (radius, height) points in metres, from the bottom over the outside to the top (and on to the inside
            of a hollow body), so that the solid lies to the left.
        sides: how many facets go around.

    Returns:
        The mesh; u runs once around, v from the last profile point (0) to the first (1) by arc length.
    """
    points = np.asarray(profile, float)
    steps = np.diff(points, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    start, end = _corner_normals(_unit(np.stack([steps[:, 1], -steps[:, 0]], 1)))
    along = np.concatenate([[0.0], np.cumsum(lengths)]) / lengths.sum()
    angle = np.linspace(0.0, 2.0 * np.pi, sides + 1)
    around = np.stack([np.cos(angle), np.sin(angle)], 1)
    vertices, normals, texcoords, faces = [], [], [], []
    for k in range(len(steps)):
        for point, normal, v in ((points[k], start[k], along[k]), (points[k + 1], end[k], along[k + 1])):
            vertices.append(np.column_stack([around * point[0], np.full(sides + 1, point[1])]))
            normals.append(np.column_stack([around * normal[0], np.full(sides + 1, normal[1])]))
            texcoords.append(np.column_stack([angle / (2.0 * np.pi), np.full(sides + 1, 1.0 - v)]))
        faces.append(_grid_faces(2, sides + 1, 2 * k * (sides + 1)))
    return _without_slivers(np.concatenate(vertices), np.concatenate(normals), np.concatenate(texcoords), faces)


def _without_slivers(vertices: Array, normals: Array, texcoords: Array, faces: list[NDArray[np.int64]]) -> Mesh:
    """A mesh without the zero-area triangles that arise where a profile touches the axis."""
    triangles = np.concatenate(faces)
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    solid = np.linalg.norm(np.cross(b - a, c - a), axis=1) > 1e-12
    return Mesh(vertices, normals, texcoords, triangles[solid])


def sphere(radius: float, sides: int = 28) -> Mesh:
    """A ball of `radius` metres around the origin."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, sides // 2 + 1)
    return lathe([(max(radius * np.cos(a), 0.0), radius * np.sin(a)) for a in angle], sides)


def tube(path: ArrayLike, radii: ArrayLike, sides: int = 12) -> Mesh:
    """Sweeps a circle along a path; both ends are closed.

    Args:
        path: (N, 3) centre line, metres.
        radii: (N,) radius at each point, metres.
        sides: how many facets go around.
    """
    centre = np.asarray(path, float)
    centre = np.concatenate([centre[:1], centre, centre[-1:]])
    radius = np.concatenate([[1e-5], np.asarray(radii, float), [1e-5]])
    tangent = _unit(np.gradient(centre, axis=0))
    tangent[0], tangent[-1] = tangent[1], tangent[-2]
    side = np.cross(tangent[0], [0.0, 0.0, 1.0] if abs(tangent[0][2]) < 0.9 else [1.0, 0.0, 0.0])
    angle = np.linspace(0.0, 2.0 * np.pi, sides + 1)
    vertices, normals = [], []
    for k in range(len(centre)):
        side = _unit(side - (side @ tangent[k]) * tangent[k])
        up = np.cross(tangent[k], side)
        ring = np.outer(np.cos(angle), side) + np.outer(np.sin(angle), up)
        cap = -tangent[k] if k == 0 else tangent[k] if k == len(centre) - 1 else np.zeros(3)
        vertices.append(centre[k] + radius[k] * ring)
        normals.append(_unit(ring * (0.0 if cap.any() else 1.0) + cap))
    v = np.repeat(np.linspace(0.0, 1.0, len(centre)), sides + 1)
    texcoords = np.column_stack([np.tile(angle / (2.0 * np.pi), len(centre)), v])
    return Mesh(np.concatenate(vertices), np.concatenate(normals), texcoords, _grid_faces(len(centre), sides + 1))


def torus(radius: float, thickness: float, sides: int = 24) -> Mesh:
    """A ring in the xy plane: `radius` to the middle of the rim, which is `thickness` thick, metres."""
    angle = np.linspace(0.0, 2.0 * np.pi, 13)
    return lathe([(radius + thickness / 2 * np.sin(a), -thickness / 2 * np.cos(a)) for a in angle], sides)


def box(half: ArrayLike, atlas: bool = False, repeat: float = 1.0) -> Mesh:
    """A box around the origin.

    Args:
        half: half extents along x, y and z, metres.
        atlas: when true, the texture holds 3x2 cells: front, side, top and back, side, bottom; otherwise each face
            shows the whole texture.
        repeat: how often the texture repeats along a face.
    """
    # Each row: outward normal, the direction of u and the direction of v (downwards in the texture).
    frames = np.array(
        [
            [[0, -1, 0], [1, 0, 0], [0, 0, -1]],
            [[1, 0, 0], [0, 1, 0], [0, 0, -1]],
            [[0, 0, 1], [1, 0, 0], [0, -1, 0]],
            [[0, 1, 0], [-1, 0, 0], [0, 0, -1]],
            [[-1, 0, 0], [0, -1, 0], [0, 0, -1]],
            [[0, 0, -1], [1, 0, 0], [0, 1, 0]],
        ],
        float,
    )
    corners = np.array([[0, 0], [0, 1], [1, 1], [1, 0]], float)
    vertices, normals, texcoords, faces = [], [], [], []
    for k, (normal, u, v) in enumerate(frames):
        vertices.append(
            (normal + (2 * corners[:, :1] - 1) * u + (2 * corners[:, 1:] - 1) * v) * np.asarray(half, float)
        )
        normals.append(np.tile(normal, (4, 1)))
        texcoords.append((corners + np.array([k % 3, k // 3])) / [3, 2] if atlas else corners * repeat)
        faces.append(np.array([[0, 1, 2], [0, 2, 3]], np.int64) + 4 * k)
    return Mesh(np.concatenate(vertices), np.concatenate(normals), np.concatenate(texcoords), np.concatenate(faces))


def extrude(outline: ArrayLike, height: float) -> Mesh:
    """Raises a star-shaped outline, counter-clockwise in the xy plane around the origin, by `height` metres."""
    ring = np.asarray(outline, float)
    count = len(ring)
    following = np.roll(ring, -1, axis=0)
    edge = following - ring
    outward = np.column_stack([_unit(np.stack([edge[:, 1], -edge[:, 0]], 1)), np.zeros(count)])
    low, high = np.zeros((count, 1)), np.full((count, 1), height)
    quads = [np.hstack([ring, low]), np.hstack([following, low]), np.hstack([following, high]), np.hstack([ring, high])]
    vertices, normals = [*quads], [outward] * 4
    index = np.arange(count)
    a, b, c, d = (index + k * count for k in range(4))
    faces = [np.stack([a, b, c], 1), np.stack([a, c, d], 1)]
    for z, sign in ((low, -1.0), (high, 1.0)):
        base = sum(len(v) for v in vertices)
        vertices += [np.hstack([ring, z]), np.array([[0.0, 0.0, z[0, 0]]])]
        normals += [np.tile([0.0, 0.0, sign], (count + 1, 1))]
        first, second = (index, np.roll(index, -1)) if sign > 0 else (np.roll(index, -1), index)
        faces.append(np.stack([base + first, base + second, np.full(count, base + count)], 1))
    points = np.concatenate(vertices)
    texcoords = 0.5 + 0.5 * points[:, :2] / np.abs(ring).max()
    return Mesh(points, np.concatenate(normals), texcoords, np.concatenate(faces).astype(np.int64))
