"""A gripper with two parallel jaws for MuJoCo: five sliding joints, servos with limited force, rubber pads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_mrcnn.runtime.grasp import Hand
from edge_mrcnn.training.tabletop.gl import load_mujoco

Array = NDArray[np.float64]

HAND = Hand(opening_m=0.14, finger_length_m=0.09, finger_width_m=0.022, finger_thickness_m=0.012)
"""About the size of the wide one of the common two-finger grippers."""

SHOWN_GROUP = 4
"""MuJoCo's default view does not show this group of geoms: the robot's camera never sees the gripper."""

_GRIP_N = 40.0
_ARM_N = 150.0  # What a small arm can push with; more would throw things about in a collision.
_PALM_HALF_M = 0.03
_PARKED = (0.0, 0.0, 5.0)
_JOINTS = ("hand_x", "hand_y", "hand_z", "finger_right", "finger_left")


def add_gripper(spec: Any) -> None:
    """Adds the gripper to an `MjSpec`, parked high above the table.

    The base never moves by itself: `Gripper.aim` puts it where a grasp is to be, with x along the closing direction and
    z along the approach, and the sliding joints do the rest; so the arm gives way in position, but not in rotation.
    """
    mujoco = load_mujoco()
    box, slide = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtJoint.mjJNT_SLIDE
    base = spec.worldbody.add_body(name="hand_base", pos=_PARKED)
    palm = base.add_body(name="hand_palm", gravcomp=1)
    for name, axis in zip(_JOINTS[:3], np.eye(3), strict=True):
        palm.add_joint(name=name, type=slide, axis=axis)
    steel = {"group": SHOWN_GROUP, "rgba": [0.25, 0.27, 0.3, 1]}
    length, thick, wide = HAND.finger_length_m, HAND.finger_thickness_m / 2, HAND.finger_width_m / 2
    size = [HAND.opening_m / 2 + 2 * thick, HAND.palm_width_m / 2, _PALM_HALF_M]
    palm.add_geom(type=box, size=size, pos=[0, 0, -length - _PALM_HALF_M], mass=0.6, **steel)
    wrist = [0, 0, -length - 2 * _PALM_HALF_M - 0.1, 0, 0, -length - 2 * _PALM_HALF_M]
    kind = mujoco.mjtGeom.mjGEOM_CYLINDER
    palm.add_geom(type=kind, size=[0.03, 0, 0], fromto=wrist, mass=0.3, contype=0, conaffinity=0, **steel)
    rubber = {"friction": [1.0, 0.02, 0.002], "condim": 6, "group": SHOWN_GROUP, "rgba": [0.95, 0.5, 0.1, 1]}
    for name, sign in zip(_JOINTS[3:], (1, -1), strict=True):
        finger = palm.add_body(name=name, gravcomp=1)
        finger.add_joint(name=name, type=slide, axis=[sign, 0, 0], range=[0, HAND.opening_m / 2], limited=1)
        finger.add_geom(
            type=box, size=[thick, wide, length / 2], pos=[sign * thick, 0, -length / 2], mass=0.1, **rubber
        )
    for name in _JOINTS:
        force = _GRIP_N if name.startswith("finger") else _ARM_N
        spec.add_actuator(
            name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT, forcelimited=1, forcerange=[-force, force]
        )
    # One motor moves both jaws.
    spec.add_equality(
        name="jaws", type=mujoco.mjtEq.mjEQ_JOINT, objtype=mujoco.mjtObj.mjOBJ_JOINT, name1=_JOINTS[3], name2=_JOINTS[4]
    )


class Gripper:
    """Moves the gripper of a compiled world."""

    def __init__(self, model: Any, data: Any) -> None:
        self._mujoco = load_mujoco()
        self._model, self._data = model, data
        joints = [model.joint(name) for name in _JOINTS]
        self._qpos = [int(joint.qposadr[0]) for joint in joints]
        self._dof = [int(joint.dofadr[0]) for joint in joints]
        self._bodies = {int(model.body(name).id) for name in ("hand_palm", *_JOINTS[3:])}
        self._fingers = [int(model.body(name).id) for name in _JOINTS[3:]]
        model.equality("jaws").data[:5] = 0, 1, 0, 0, 0
        for name in _JOINTS:
            number, stiffness, damping = model.actuator(name).id, *((3000, 60) if "finger" in name else (20000, 400))
            model.actuator_gainprm[number, 0] = stiffness
            model.actuator_biastype[number] = int(self._mujoco.mjtBias.mjBIAS_AFFINE)
            model.actuator_biasprm[number, 1:3] = -stiffness, -damping

    def aim(self, pose: Array, opening_m: float, back_m: float) -> None:
        """Puts the open gripper `back_m` before a grasp.

        Args:
            pose: (4, 4) world_from_hand, as `Grasp.pose` gives it.
            opening_m: between the jaws.
            back_m: metres back along the approach.
        """
        base = int(self._model.body("hand_base").id)
        self._model.body_pos[base] = pose[:3, 3]
        self._mujoco.mju_mat2Quat(self._model.body_quat[base], pose[:3, :3].ravel())
        self._data.qpos[self._qpos] = [0, 0, -back_m, opening_m / 2, opening_m / 2]
        self._data.qvel[self._dof] = 0
        self.command([0, 0, -back_m], opening_m)
        self._mujoco.mj_forward(self._model, self._data)

    def command(self, offset_m: Any, opening_m: float) -> None:
        """Tells the servos where to go: (3,) metres from the grasp in the hand's axes, and the jaws' opening."""
        self._data.ctrl[:] = [*offset_m, opening_m / 2, opening_m / 2]

    def touching(self, newtons: float = 0.0) -> dict[int, set[int]]:
        """Bodies that a part of the gripper touches with more than `newtons`: body of the part -> bodies."""
        touched: dict[int, set[int]] = {}
        pairs = self._model.geom_bodyid[self._data.contact.geom]
        for number, (first, second) in enumerate(pairs):
            ours = {int(first), int(second)} & self._bodies
            if len(ours) != 1 or self._force(number) <= newtons:
                continue
            part = ours.pop()
            touched.setdefault(part, set()).add(int(second if part == first else first))
        return touched

    def held(self) -> set[int]:
        """Bodies that both fingers touch."""
        touched = self.touching()
        right, left = (touched.get(finger, set()) for finger in self._fingers)
        return right & left

    def _force(self, number: int) -> float:
        """Normal force of a contact, newtons."""
        force = np.zeros(6)
        self._mujoco.mj_contactForce(self._model, self._data, number, force)
        return float(force[0])
