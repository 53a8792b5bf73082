"""Instance masks of a camera's pictures as ROS 2 topics."""
