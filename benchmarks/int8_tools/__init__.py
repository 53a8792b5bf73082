"""What INT8 by this project costs and takes, and what it does by ONNX Runtime's and NVIDIA's own tools."""
