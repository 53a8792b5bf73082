"""ROS 2 without a ROS install: frames and detections as messages, serialised as ROS 2 does.

MCAP files, DDS, Zenoh and an rclpy node all send what `messages.to_messages` makes.
"""
