"""From frames to instance masks. Needs NumPy and OpenCV, and ONNX Runtime or TensorRT in the class that uses it."""
