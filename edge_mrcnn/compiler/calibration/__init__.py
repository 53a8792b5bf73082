"""Ranges of activations, measured on the FP32 graph in ONNX Runtime, and the file that holds them."""
