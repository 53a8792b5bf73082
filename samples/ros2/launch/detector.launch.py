"""`ros2 launch edge_mrcnn_ros detector.launch.py model:=model.onnx image:=/camera/image_raw`."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = {
    "model": ("model.onnx", "model.onnx, or an engine built on this device"),
    "image": ("/camera/image_raw", "topic of the pictures, sensor_msgs/Image"),
    "depth": ("/camera/depth/image_rect_raw", "topic of depth aligned to them; boxes in space need it"),
    "camera_info": ("/camera/camera_info", "topic of their camera matrix"),
    "namespace": ("", "namespace of the node"),
}


def generate_launch_description() -> LaunchDescription:
    """The node, its parameters from config/detector.yaml."""
    parameters = PathJoinSubstitution([FindPackageShare("edge_mrcnn_ros"), "config", "detector.yaml"])
    node = Node(
        package="edge_mrcnn_ros",
        executable="detector",
        name="edge_mrcnn",
        namespace=LaunchConfiguration("namespace"),
        parameters=[parameters, {"model": LaunchConfiguration("model")}],
        remappings=[(name, LaunchConfiguration(name)) for name in ("image", "depth", "camera_info")],
        output="screen",
    )
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, node])
