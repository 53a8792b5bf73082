"""Puts things on a table in a room: the MuJoCo model, its lights, and the physics that lets everything come to rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from . import textures
from .gl import load_mujoco
from .meshes import Array, Mesh, box, lathe
from .objects import CLASS_NAMES, ON_ITS_SIDE, distractor, labelled
from .things import Collider, Look, Thing

Rng = np.random.Generator

SETTLE_S = 1.4
"""Simulated seconds after which things lie still."""
_HIDDEN_GROUP = 3  # MuJoCo's default view shows the geom groups 0 to 2 only.
_FLOOR = -0.75
_MAX_STACK = 0.28  # Metres; what would be put higher than this is left out.


@dataclass(frozen=True)
class Placed:
    """A thing with its starting pose.

    Attributes:
        thing: what it is.
        pos: (3,) metres, in the world: z up, the table's top at z = 0.
        quat: (4,) w, x, y, z.
    """

    thing: Thing
    pos: Array
    quat: Array


@dataclass(frozen=True)
class Scene:
    """A compiled world.

    Attributes:
        model: `mujoco.MjModel`, with one camera whose id is 0.
        data: `mujoco.MjData`.
        placed: the movable things, in the order of their bodies.
        bodies: MuJoCo body id of each of `placed`.
    """

    model: Any
    data: Any
    placed: list[Placed]
    bodies: list[int]

    def class_ids(self) -> list[int]:
        """Category id of each of `placed`, 0 for distractors."""
        return [CLASS_NAMES.index(p.thing.class_name) + 1 if p.thing.class_name else 0 for p in self.placed]


def rotation(quat: Array) -> Array:
    """The 3x3 matrix of a quaternion (w, x, y, z)."""
    w, x, y, z = np.asarray(quat, float) / np.linalg.norm(quat)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _product(a: Array, b: Array) -> Array:
    """The quaternion that turns by `b` first and then by `a`."""
    vector = a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:])
    return np.array([a[0] * b[0] - a[1:] @ b[1:], *vector])


def random_pose(rng: Rng, thing: Thing) -> Array:
    """A starting quaternion: upright, on the side, or any rotation, with a random heading."""
    heading = rng.uniform(0, 2 * np.pi)
    turn = np.array([np.cos(heading / 2), 0, 0, np.sin(heading / 2)])
    if rng.uniform() < thing.upright:
        return turn
    if thing.reclined and rng.uniform() < 0.8:
        spin = rng.uniform(0, np.pi)
        chosen = np.asarray(thing.reclined[int(rng.integers(len(thing.reclined)))], float)
        # Round things lie on any side; boxes and books on a face.
        rolls = np.allclose(chosen, ON_ITS_SIDE) and thing.class_name not in ("box", "book")
        return (
            _product(turn, _product(chosen, np.array([np.cos(spin), 0, 0, np.sin(spin)])))
            if rolls
            else _product(turn, chosen)
        )
    free = rng.normal(size=4)
    return np.asarray(free / np.linalg.norm(free))


def _free_spot(
    rng: Rng, low: Array, high: Array, boxes: list[tuple[Array, Array]], spread: float
) -> tuple[float, Array]:
    """Where a thing with corners `low` and `high` (3,) goes: the height of what is under it, and its position (2,)."""
    spots: list[tuple[float, Array]] = []
    for _ in range(10):
        xy = rng.normal(0, spread, 2) * (1.15, 1.0)
        # Bounding boxes overstate a round or slanting thing, hence a little overlap is allowed.
        inner_low, inner_high = xy + 0.9 * low[:2], xy + 0.9 * high[:2]
        under = [top[2] for bottom, top in boxes if (bottom[:2] < inner_high).all() and (top[:2] > inner_low).all()]
        spots.append((float(max(under, default=0.0)), xy))
        if spots[-1][0] == 0.0:
            break
    return min(spots, key=lambda spot: spot[0])


def place(rng: Rng, things: list[Thing], spread: float, drop: tuple[float, float] = (0.002, 0.02)) -> list[Placed]:
    """Finds starting poses without overlap: side by side where there is room, otherwise on top.

    Args:
        rng: random generator.
        things: what to place; what would be stacked too high is left out.
        spread: standard deviation of the positions on the table, metres.
        drop: range of the clearance below a thing, metres.
    """
    placed: list[Placed] = []
    boxes: list[tuple[Array, Array]] = []
    for thing in things:
        quat = random_pose(rng, thing)
        corners = thing.vertices() @ rotation(quat).T
        low, high = corners.min(0), corners.max(0)
        height, xy = _free_spot(rng, low, high, boxes, spread)
        if height > _MAX_STACK:
            continue
        pos = np.array([*xy, height - low[2] + rng.uniform(*drop)])
        placed.append(Placed(thing, pos, quat))
        boxes.append((pos + low, pos + high))
    return placed


class _Builder:
    """Writes meshes, textures and bodies into an `MjSpec` under running names."""

    def __init__(self, size: tuple[int, int], timestep_s: float) -> None:
        self.mujoco = load_mujoco()
        self.spec = self.mujoco.MjSpec()
        self.spec.option.timestep = timestep_s
        self.spec.option.integrator = self.mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        self.spec.option.iterations = 30
        self.spec.compiler.usethread = False
        visual = self.spec.visual
        visual.global_.offheight, visual.global_.offwidth = size
        visual.quality.shadowsize, visual.quality.offsamples = 2048, 4
        visual.map.znear, visual.map.zfar = 0.02, 12.0
        # Distances that MuJoCo derives from the size of the model are fixed by this one to plain metres.
        self.spec.stat.extent = 1.0
        self.spec.stat.center = (0, 0, 0)
        self._count = 0

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"

    def material(self, look: Look) -> str:
        """Adds a material with its texture, and returns its name."""
        name = self._name("material")
        material = self.spec.add_material(
            name=name, rgba=[*look.rgb, 1.0], specular=look.specular, shininess=look.shininess
        )
        if look.texture is not None:
            # OpenGL's helpers rescale other sizes than powers of two on the CPU, which took most of a picture's time.
            height, width = (2 ** round(np.log2(side)) for side in look.texture.shape[:2])
            pixels = cv2.resize(look.texture, (width, height), interpolation=cv2.INTER_LINEAR)
            texture = self.spec.add_texture(name=name, type=self.mujoco.mjtTexture.mjTEXTURE_2D)
            texture.height, texture.width, texture.nchannel = height, width, 3
            texture.data = pixels.tobytes()
            material.textures[self.mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
        return name

    def mesh(self, body: Any, mesh: Mesh, material: str, shadow: bool = True) -> None:
        """Adds a visible mesh that does not collide to `body`."""
        name = self._name("mesh")
        self.spec.add_mesh(
            name=name,
            uservert=mesh.vertices.ravel(),
            usernormal=mesh.normals.ravel(),
            usertexcoord=mesh.texcoords.ravel(),
            userface=mesh.faces.ravel(),
            inertia=self.mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,
        )
        kind = self.mujoco.mjtGeom.mjGEOM_MESH
        geom = body.add_geom(type=kind, meshname=name, contype=0, conaffinity=0, mass=0.0, material=material, group=1)
        # Older MuJoCo has no switch for the shadow of a single geom.
        if not shadow and hasattr(geom, "castshadow"):
            geom.castshadow = False

    def collider(self, body: Any, solid: Collider, mass: float) -> None:
        """Adds an invisible solid of `mass` kilograms to `body`."""
        kind = getattr(self.mujoco.mjtGeom, f"mjGEOM_{solid.kind.upper()}")
        size = [*solid.size, 0.0, 0.0][:3]
        where = {"fromto": solid.fromto} if solid.fromto is not None else {"pos": solid.pos, "quat": solid.quat}
        # Rolling friction lets balls, cans and bottles on their side come to rest.
        grip = {"condim": 6, "friction": [0.7, 0.005, 0.0012]}
        body.add_geom(type=kind, size=size, mass=mass, group=_HIDDEN_GROUP, **grip, **where)

    def movable(self, item: Placed) -> None:
        """Adds a thing as a free body."""
        body = self.spec.worldbody.add_body(name=self._name("thing"), pos=item.pos, quat=item.quat)
        body.add_freejoint()
        for solid in item.thing.colliders:
            self.collider(body, solid, item.thing.mass / len(item.thing.colliders))
        for part in item.thing.parts:
            self.mesh(body, part.mesh, self.material(part.look))


def _room(builder: _Builder, rng: Rng) -> None:
    """Adds the table, the floor and two or more walls."""
    world = builder.spec.worldbody
    half = np.array([rng.uniform(0.5, 0.9), rng.uniform(0.45, 0.7), 0.02])
    shine = {"specular": rng.uniform(0, 0.5), "shininess": rng.uniform(0.1, 0.9)}
    table = builder.material(Look((1, 1, 1), textures.surface(rng, 256), **shine))
    if rng.uniform() < 0.25:
        radius = float(half[1])
        disc = lathe([(0, -0.04), (radius, -0.04), (radius, 0), (0, 0)], 48)
        flat = 0.5 + 0.5 * disc.vertices[:, :2] / radius
        builder.mesh(world, Mesh(disc.vertices, disc.normals, flat, disc.faces), table)
        builder.collider(world, Collider("cylinder", (radius, 0.02), (0, 0, -0.02)), 0.0)
    else:
        builder.mesh(world, box(half, repeat=float(rng.choice([1.0, 1.0, 2.0, 3.0]))).moved((0, 0, -0.02)), table)
        builder.collider(world, Collider("box", tuple(half), (0, 0, -0.02)), 0.0)
    floor = builder.material(Look((1, 1, 1), textures.surface(rng), 0.1, 0.2))
    builder.mesh(world, box((4, 4, 0.05), repeat=rng.uniform(3, 8)).moved((0, 0, _FLOOR - 0.05)), floor)
    builder.collider(world, Collider("box", (4, 4, 0.05), (0, 0, _FLOOR - 0.05)), 0.0)
    for sign, axis in ((-1, 0), (1, 0), (-1, 1), (1, 1)):
        wall = builder.material(Look((1, 1, 1), textures.surface(rng, 64), 0.05, 0.1))
        middle, extent = np.array([0.0, 0.0, 1.2]), np.array([4.0, 4.0, 2.0])
        middle[axis], extent[axis] = sign * rng.uniform(1.3, 3.0), 0.05
        builder.mesh(world, box(extent, repeat=rng.uniform(1, 4)).moved(middle), wall, shadow=False)


def _lights(builder: _Builder, rng: Rng) -> None:
    """Adds a lamp that casts shadows, a fill light from elsewhere and some ambient light."""
    kinds = builder.mujoco.mjtLightType
    warmth = rng.uniform(-1, 1)
    tint = np.clip([1 + 0.12 * warmth, 1.0, 1 - 0.16 * warmth], 0, 1.1)
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.9, 1.9)
    pos = np.array([np.cos(azimuth), np.sin(azimuth), 0]) * rng.uniform(0.2, 1.3) + [0, 0, height]
    strong = rng.uniform(0.45, 0.85)
    lamp = {"castshadow": True, "diffuse": tint * strong, "specular": tint * 0.5, "ambient": [0, 0, 0]}
    if rng.uniform() < 0.65:
        beam = {"cutoff": rng.uniform(45, 60), "exponent": rng.uniform(0, 6)}
        builder.spec.worldbody.add_light(type=kinds.mjLIGHT_SPOT, pos=pos, dir=-pos, **beam, **lamp)
    else:
        builder.spec.worldbody.add_light(type=kinds.mjLIGHT_DIRECTIONAL, pos=pos, dir=-pos, **lamp)
    other = np.array([-pos[0], -pos[1], height]) + rng.normal(0, 0.4, 3)
    weak = {"castshadow": False, "diffuse": [rng.uniform(0.05, 0.3)] * 3, "specular": [0.1] * 3, "ambient": [0, 0, 0]}
    builder.spec.worldbody.add_light(type=kinds.mjLIGHT_DIRECTIONAL, pos=other, dir=-other, **weak)
    head = builder.spec.visual.headlight
    head.ambient, head.diffuse, head.specular = [rng.uniform(0.22, 0.42)] * 3, [rng.uniform(0, 0.2)] * 3, [0.05] * 3
    builder.spec.visual.map.shadowclip, builder.spec.visual.map.shadowscale = 1.2, 0.95


def build(
    rng: Rng,
    size: tuple[int, int],
    placed: list[Placed],
    fovy_deg: float,
    timestep_s: float = 0.004,
    furnish: Callable[[Any], None] | None = None,
) -> Scene:
    """Compiles a room with `placed` things, lights, and one camera with the vertical field of view `fovy_deg`.

    `furnish`, when given, adds bodies of its own, such as a robot's, to the `mujoco.MjSpec`.
    """
    builder = _Builder(size, timestep_s)
    _room(builder, rng)
    _lights(builder, rng)
    builder.spec.worldbody.add_camera(name="eye", fovy=fovy_deg)
    if furnish is not None:
        furnish(builder.spec)
    for item in placed:
        builder.movable(item)
    model = builder.spec.compile()
    model.dof_damping[:] = 0.0004
    first = model.nbody - len(placed)
    return Scene(model, builder.mujoco.MjData(model), placed, list(range(first, model.nbody)))


def settle(scene: Scene, duration_s: float = SETTLE_S) -> None:
    """Lets physics run for `duration_s` simulated seconds."""
    load_mujoco().mj_step(scene.model, scene.data, nstep=round(duration_s / scene.model.opt.timestep))


def random_things(rng: Rng, count: tuple[int, int] = (4, 12)) -> list[Thing]:
    """Between `count[0]` and `count[1]` things of random classes, and up to four distractors, shuffled."""
    number = int(rng.integers(count[0], count[1] + 1))
    things = [labelled(rng) for _ in range(number)] + [distractor(rng) for _ in range(int(rng.integers(0, 5)))]
    order = rng.permutation(len(things))
    # Broad, flat things first: others then stand beside them, or on them, and not under them.
    return sorted((things[k] for k in order), key=lambda thing: thing.class_name != "plate")
