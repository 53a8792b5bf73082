"""From `model.onnx` to an engine. onnx lives here: graph passes, engine builder, inspector."""
