"""From a checkpoint to `model.onnx`. torch lives in this package and nowhere else."""
