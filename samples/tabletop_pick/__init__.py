"""A robot's loop closed in simulation: camera, detector, grasp, gripper. `python -m samples.tabletop_pick`."""
