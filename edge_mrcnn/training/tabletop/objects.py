"""The classes of the tabletop world, each a function from a random generator to one fresh specimen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import textures
from .meshes import Mesh, box, extrude, lathe, sphere, torus, tube
from .things import Collider, Keypoint, Look, Part, Thing, ring_of_boxes

Rng = np.random.Generator

ON_ITS_SIDE = (0.7071, 0.0, 0.7071, 0.0)
"""Quaternion that lays the z axis along x."""
UPSIDE_DOWN = (0.0, 1.0, 0.0, 0.0)
METAL = Look((0.72, 0.73, 0.75), None, 0.9, 0.7)


def _wall(outer: list[tuple[float, float]], thickness: float, floor: float, sides: int = 32) -> Mesh:
    """A hollow body: up the outside along `outer`, over the rim, down the inside to `floor` above the base."""
    inner = [(max(r - thickness, 0.0), z) for r, z in reversed(outer) if z >= floor]
    return lathe([(0.0, outer[0][1]), *outer, *inner, (inner[-1][0] * 0.9, floor), (0.0, floor)], sides)


def _arc(radius: float, start: float, stop: float, count: int) -> np.ndarray:
    angle = np.linspace(start, stop, count)
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def _ends(height: float) -> list[Keypoint]:
    """The ends of the axis of a round body that stands on the origin, metres."""
    return [Keypoint("top", (0.0, 0.0, height)), Keypoint("base", (0.0, 0.0, 0.0))]


def mug(rng: Rng) -> Thing:
    """A cylinder wall with a handle swept along an arc."""
    radius, height = rng.uniform(0.036, 0.047), rng.uniform(0.08, 0.112)
    belly = rng.uniform(-0.12, 0.1)
    rows = [(radius * (0.96 + belly * np.sin(np.pi * t)), height * t) for t in np.linspace(0.05, 1.0, 7)]
    base = textures.colour(rng, (0.0, 0.95), 0.3)
    glaze = Look((1, 1, 1), textures.pattern(rng, base), 0.6, rng.uniform(0.4, 0.9))
    body = _wall([(radius * 0.85, 0.0), *rows], 0.0035, 0.006)
    arc = _arc(1.0, -0.5 * np.pi, 0.5 * np.pi, 9)
    reach, tall = rng.uniform(0.026, 0.036), height * rng.uniform(0.3, 0.38)
    path = [(radius * 0.93 + reach * c, 0.0, height * 0.52 + tall * s) for c, s in arc]
    tone = base if rng.uniform() < 0.7 else textures.contrasting(rng, base)
    thick = rng.uniform(0.0045, 0.007)
    handle = tube(path, [thick] * 9, 10)
    drink = lathe([(0.0, height * 0.7), (radius * 0.9, height * 0.7), (0.0, height * 0.7 + 0.0005)], 24)
    parts = [Part(body, glaze), Part(handle, Look(tone, None, 0.6, 0.6))]
    if rng.uniform() < 0.35:
        parts.append(Part(drink, Look((0.2, 0.1, 0.05), None, 0.5, 0.8)))
    grip = Collider("box", (reach / 2, 0.006, tall), (radius + reach / 2, 0, height * 0.52))
    solid = Collider("cylinder", (radius, height / 2), (0, 0, height / 2))
    points = [*_ends(height), Keypoint("handle", path[4], thick)]
    return Thing("mug", parts, [solid, grip], 0.3, 0.72, (ON_ITS_SIDE, UPSIDE_DOWN), points)


def bottle(rng: Rng) -> Thing:
    """A body, a shoulder, a neck and a cap, with a label around the body."""
    radius, height = rng.uniform(0.03, 0.042), rng.uniform(0.19, 0.27)
    shoulder, neck = rng.uniform(0.52, 0.68), rng.uniform(0.3, 0.46) * radius
    tint = textures.colour(rng, (0.35, 0.95), 0.2)
    curve = np.linspace(0, 1, 6)
    slope = [(radius + (neck - radius) * (0.5 - 0.5 * np.cos(np.pi * t)), height * (shoulder + 0.2 * t)) for t in curve]
    outline = [(0, 0), (radius * 0.9, 0), (radius, height * 0.03), *slope, (neck, height * 0.93), (0, height * 0.93)]
    look = Look(tint, None, 0.9, rng.uniform(0.6, 0.95))
    low, high = height * rng.uniform(0.08, 0.2), height * (shoulder - rng.uniform(0.01, 0.08))
    paper = Look((1, 1, 1), textures.label(rng, textures.contrasting(rng, tint)), 0.15, 0.3)
    wrap = lathe([(radius * 1.012, low), (radius * 1.012, high)], 32)
    wide = neck * rng.uniform(1.12, 1.35)
    top = [(0, height * 0.9), (wide, height * 0.9), (wide, height), (0, height)]
    cap = Part(lathe(top, 20), Look(textures.contrasting(rng, tint), None, 0.4, 0.4))
    solid = Collider("cylinder", (radius, height * (shoulder + 0.04) / 2), (0, 0, height * (shoulder + 0.04) / 2))
    stem = Collider("cylinder", (wide, height * 0.2), (0, 0, height * 0.8))
    parts = [Part(lathe(outline, 32), look), Part(wrap, paper), cap]
    return Thing("bottle", parts, [solid, stem], 0.5, 0.68, (ON_ITS_SIDE,), _ends(height))


def bowl(rng: Rng) -> Thing:
    """A round hollow with a foot."""
    radius, height = rng.uniform(0.062, 0.088), rng.uniform(0.042, 0.064)
    foot = radius * rng.uniform(0.4, 0.55)
    bend = rng.uniform(1.6, 2.6)
    outer = [(foot + (radius - foot) * t ** (1 / bend), 0.004 + (height - 0.004) * t) for t in np.linspace(0, 1, 9)]
    base = textures.colour(rng, (0.0, 0.85), 0.4)
    look = Look((1, 1, 1), textures.pattern(rng, base), 0.6, rng.uniform(0.3, 0.9))
    body = _wall([(foot, 0.0), *outer], 0.004, 0.009, 36)
    solids = [Collider("cylinder", (foot, 0.005), (0, 0, 0.005))]
    solids += ring_of_boxes((foot * 1.05, 0.006), (radius * 0.98, height), 0.007)
    return Thing("bowl", [Part(body, look)], solids, 0.35, 0.82, (UPSIDE_DOWN,), _ends(height))


def plate(rng: Rng) -> Thing:
    """A shallow dish with a broad rim."""
    radius, height = rng.uniform(0.085, 0.115), rng.uniform(0.014, 0.022)
    well = radius * rng.uniform(0.55, 0.72)
    outer = [(well * 0.85, 0.0), (well, 0.003), (well * 1.08, height * 0.55), (radius, height)]
    base = textures.colour(rng, (0.0, 0.6), 0.6)
    look = Look((1, 1, 1), textures.pattern(rng, base), 0.6, rng.uniform(0.3, 0.9))
    inner = [(radius * 0.985, height + 0.001), (well * 1.02, height * 0.7), (well * 0.95, 0.006), (0.0, 0.005)]
    body = lathe([(0.0, 0.0), *outer, *inner], 40)
    solids = [Collider("cylinder", (well, 0.003), (0, 0, 0.003))]
    solids += ring_of_boxes((well * 1.02, 0.004), (radius * 0.98, height), 0.005)
    # Its underside is within millimetres of its top, so that one point says it all.
    return Thing("plate", [Part(body, look)], solids, 0.4, 0.95, (UPSIDE_DOWN,), _ends(height)[:1])


def can(rng: Rng) -> Thing:
    """A tin or a drinks can: a printed wall, metal ends, a rim, a tab."""
    slim = rng.uniform() < 0.5
    radius = rng.uniform(0.029, 0.034) if slim else rng.uniform(0.034, 0.043)
    height = rng.uniform(0.1, 0.125) if slim else rng.uniform(0.06, 0.1)
    neck = radius * (0.86 if slim else 0.98)
    rim = [(neck, height * 0.985), (neck, height), (neck - 0.0025, height), (neck - 0.004, height * 0.965)]
    outline = [(0, 0), (neck, 0), (radius, height * 0.05), (radius, height * 0.92), *rim, (0, height * 0.965)]
    paper = Look((1, 1, 1), textures.label(rng, textures.colour(rng, (0.4, 0.95))), 0.7, 0.6)
    wrap = lathe([(radius * 1.006, height * 0.06), (radius * 1.006, height * 0.91)], 32)
    tab = box((0.009, 0.0045, 0.0008)).moved((0.004, 0.0, height * 0.972))
    solid = Collider("cylinder", (radius, height / 2), (0, 0, height / 2))
    parts = [Part(lathe(outline, 32), METAL), Part(wrap, paper), Part(tab, METAL)]
    return Thing("can", parts, [solid], 0.3, 0.65, (ON_ITS_SIDE, UPSIDE_DOWN))


def carton(rng: Rng) -> Thing:
    """A printed cardboard box."""
    half = np.array([rng.uniform(0.03, 0.055), rng.uniform(0.016, 0.035), rng.uniform(0.04, 0.085)])
    skin = textures.carton(rng, textures.colour(rng, (0.1, 0.95), 0.4))
    mesh = box(half, atlas=True).moved((0, 0, half[2]))
    solid = Collider("box", tuple(half), (0, 0, half[2]))
    look = Look((1, 1, 1), skin, 0.15, 0.2)
    return Thing("box", [Part(mesh, look)], [solid], 0.25, 0.6, (ON_ITS_SIDE, (0.7071, 0.7071, 0.0, 0.0)))


def ball(rng: Rng) -> Thing:
    """A striped, dotted, patched or plain ball."""
    radius = rng.uniform(0.028, 0.05)
    base = textures.colour(rng, (0.3, 0.95), 0.45)
    look = Look((1, 1, 1), textures.pattern(rng, base), rng.uniform(0.1, 0.8), rng.uniform(0.2, 0.8))
    return Thing("ball", [Part(sphere(radius), look)], [Collider("sphere", (radius,))], 0.12, 0.0)


def banana(rng: Rng) -> Thing:
    """A curved tapering tube with a stalk, five soft edges around."""
    bend, length = rng.uniform(0.9, 1.5), rng.uniform(0.16, 0.21)
    radius = length / bend
    angle = np.linspace(-bend / 2, bend / 2, 14)
    path = np.stack([radius * np.sin(angle), radius * (np.cos(angle) - np.cos(bend / 2)) - 0.02, 0 * angle], 1)
    thick = rng.uniform(0.015, 0.0195)
    swell = [0.28, 0.3, 0.42, 0.68, 0.86, 0.96, 1.0, 1.0, 0.98, 0.94, 0.84, 0.66, 0.42, 0.24]
    look = Look((1, 1, 1), textures.peel(rng), 0.2, 0.3)
    ends = path[[2, 4, 7, 10, 12]]
    solids = [
        Collider("capsule", (thick * s,), fromto=(*ends[k], *ends[k + 1]))
        for k, s in enumerate((0.72, 0.95, 0.95, 0.7))
    ]
    skin = [Part(tube(path, [thick * s for s in swell], 7), look)]
    return Thing("banana", skin, solids, 0.15, 0.85, keypoints=[Keypoint("stalk", tuple(path[0]), thick * swell[0])])


def book(rng: Rng) -> Thing:
    """Two covers, a spine and the block of pages between them."""
    half = np.array([rng.uniform(0.045, 0.075), rng.uniform(0.065, 0.105), rng.uniform(0.009, 0.02)])
    base = textures.colour(rng, (0.1, 0.95), 0.2)
    cloth = Look((1, 1, 1), textures.cover(rng, base), 0.2, 0.3)
    plain = Look(base, None, 0.2, 0.3)
    board = 0.0016
    lids = [Part(box((half[0], half[1], board)).moved((0, 0, z)), cloth) for z in (board, 2 * half[2] - board)]
    spine = Part(box((board, half[1], half[2])).moved((-half[0] - board, 0, half[2])), plain)
    block = box((half[0] - 0.003, half[1] - 0.004, half[2] - 2 * board)).moved((-0.002, 0, half[2]))
    sheets = Part(block, Look((1, 1, 1), textures.pages(rng), 0.05, 0.1))
    solid = Collider("box", tuple(half), (0, 0, half[2]))
    stood = ((0.7071, 0.7071, 0.0, 0.0), ON_ITS_SIDE)
    back = Keypoint("spine", (-half[0] - 2 * board, 0.0, half[2]))
    return Thing("book", [*lids, spine, sheets], [solid], 0.4, 0.85, stood, [back])


def hammer(rng: Rng) -> Thing:
    """A handle with a grip, a cheek, a striking face and a claw or peen."""
    length, grip = rng.uniform(0.2, 0.28), rng.uniform(0.013, 0.017)
    steel = Look((rng.uniform(0.3, 0.75),) * 3, None, 0.9, 0.6)
    timber = Look((1, 1, 1), textures.wood(rng, 64), 0.2, 0.3)
    rubber = Look(textures.colour(rng, (0.5, 0.95), 0.25), None, 0.2, 0.2)
    along = np.linspace(0, length, 8)
    swell = np.array([0.95, 1.05, 1.05, 0.98, 0.85, 0.75, 0.7, 0.7]) * grip
    flat = np.zeros(8)
    parts = [Part(tube(np.stack([along, flat, flat], 1), swell, 12), timber if rng.uniform() < 0.5 else rubber)]
    if rng.uniform() < 0.5:
        hold = np.stack([along[:4], flat[:4], flat[:4]], 1)
        parts.append(Part(tube(hold, swell[:4] * 1.12, 12), rubber))
    face, reach = rng.uniform(0.013, 0.018), rng.uniform(0.042, 0.055)
    cheek = box((face * 0.95, reach * 0.55, face * 0.85)).moved((length, 0, 0))
    poll = tube(
        [(length, reach * 0.4, 0), (length, reach * 0.7, 0), (length, reach * 0.72, 0), (length, reach, 0)],
        [face * 0.8, face * 0.8, face, face],
        16,
    )
    parts += [Part(cheek, steel), Part(poll, steel)]
    curve = np.linspace(0, 1, 6)
    for sign in (-1, 1):
        claw = [(length - 0.022 * t**2, -reach * (0.45 + 0.75 * t), sign * face * (0.35 + 0.2 * t)) for t in curve]
        parts.append(Part(tube(claw, [face * (0.55 - 0.4 * t) for t in curve], 8), steel))
    solids = [
        Collider("capsule", (grip,), fromto=(grip, 0, 0, length, 0, 0)),
        Collider("box", (face, reach * 1.05, face * 0.95), (length, -reach * 0.05, 0)),
    ]
    points = [Keypoint("handle", (0.0, 0.0, 0.0), swell[0] * 1.12), Keypoint("head", (length, 0.0, 0.0), face)]
    return Thing("hammer", parts, solids, 0.6, 0.9, keypoints=points)


MAKERS: dict[str, Callable[[Rng], Thing]] = {
    "mug": mug,
    "bottle": bottle,
    "bowl": bowl,
    "plate": plate,
    "can": can,
    "box": carton,
    "ball": ball,
    "banana": banana,
    "book": book,
    "hammer": hammer,
}
"""How to make a specimen of each class."""

CLASS_NAMES: tuple[str, ...] = tuple(MAKERS)
"""Class names in the order of their COCO category ids, which start at 1."""

_WEIGHTS = np.array([1.15, 1.1, 0.9, 0.65, 1.1, 1.1, 0.95, 1.05, 0.85, 1.1])


def labelled(rng: Rng) -> Thing:
    """A specimen of a random class."""
    return MAKERS[CLASS_NAMES[int(rng.choice(len(CLASS_NAMES), p=_WEIGHTS / _WEIGHTS.sum()))]](rng)


def distractor(rng: Rng) -> Thing:
    """A thing of no class: a cone, ring, star, cog, pen or pebble, unlike any of the classes."""
    look = Look(textures.colour(rng, (0.0, 0.95), 0.2), None, rng.uniform(0, 0.8), rng.uniform(0.1, 0.8))
    kind = rng.integers(5)
    if kind == 0:
        radius, height = rng.uniform(0.02, 0.04), rng.uniform(0.04, 0.09)
        mesh = lathe([(0, 0), (radius, 0), (0, height)], int(rng.choice([4, 5, 24])))
        return Thing(
            None, [Part(mesh, look)], [Collider("cylinder", (radius * 0.8, height / 3), (0, 0, height / 3))], 0.1, 0.8
        )
    if kind == 1:
        radius, thick = rng.uniform(0.025, 0.045), rng.uniform(0.008, 0.016)
        solid = Collider("cylinder", (radius + thick / 2, thick / 2))
        return Thing(None, [Part(torus(radius, thick), look)], [solid], 0.08, 0.9)
    if kind == 2:
        points, radius, height = int(rng.integers(4, 9)), rng.uniform(0.022, 0.04), rng.uniform(0.01, 0.03)
        angle = np.arange(2 * points) * np.pi / points
        reach = np.where(np.arange(2 * points) % 2, rng.uniform(0.4, 0.8), 1.0) * radius
        mesh = extrude(np.stack([reach * np.cos(angle), reach * np.sin(angle)], 1), height)
        solid = Collider("cylinder", (radius * 0.9, height / 2), (0, 0, height / 2))
        return Thing(None, [Part(mesh, look)], [solid], 0.08, 0.9)
    if kind == 3:
        length, thick = rng.uniform(0.05, 0.075), rng.uniform(0.0035, 0.006)
        body = tube([(-length, 0, 0), (0, 0, 0), (length * 0.8, 0, 0), (length, 0, 0)], [thick] * 3 + [thick * 0.25], 8)
        return Thing(
            None, [Part(body, look)], [Collider("capsule", (thick,), fromto=(-length, 0, 0, length, 0, 0))], 0.02, 1.0
        )
    radius = rng.uniform(0.018, 0.034)
    squash = np.diag([1.0, rng.uniform(0.5, 0.75), rng.uniform(0.4, 0.55)])
    pebble = sphere(radius).turned(squash)
    stone = Look((1, 1, 1), textures.noise(rng, 64), 0.1, 0.2)
    return Thing(None, [Part(pebble, stone)], [Collider("box", tuple(radius * np.diag(squash) * 0.75))], 0.1, 1.0)
