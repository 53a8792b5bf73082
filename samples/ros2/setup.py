"""What colcon builds: `colcon build --packages-select edge_mrcnn_ros`."""

from setuptools import setup

NAME = "edge_mrcnn_ros"

setup(
    name=NAME,
    version="0.1.0",
    description="Instance masks of a camera's pictures as ROS 2 topics, by edge_mrcnn",
    license="Apache-2.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/detector.launch.py"]),
        (f"share/{NAME}/config", ["config/detector.yaml"]),
    ],
    # edge-mrcnn itself comes by pip: the README has the line.
    install_requires=["setuptools"],
    zip_safe=True,
    entry_points={"console_scripts": [f"detector = {NAME}.detector_node:main"]},
)
