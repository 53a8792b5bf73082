"""What compiler and runtime share of CUDA and TensorRT: kernels, plugins, memory. Needs NumPy; no onnx, no torch.

CUDA and TensorRT are imported by the function that uses them, so that a CPU-only machine can import all of it.
"""
