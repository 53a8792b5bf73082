"""The errors of edge_mrcnn: each message says what happened, with the value, and then what to do about it."""


class EdgeMrcnnError(Exception):
    """Base of every error that is not a wrong argument (those raise `ValueError` or `TypeError`)."""


class ExportError(EdgeMrcnnError):
    """A checkpoint cannot become an ONNX file, or an ONNX file is not one of ours."""


class CalibrationError(EdgeMrcnnError):
    """Activation ranges cannot be measured, or do not belong to the model they are used with."""


class PluginError(EdgeMrcnnError):
    """A custom op is missing an attribute, got one it cannot take, or did not become a plugin layer."""


class EngineError(EdgeMrcnnError):
    """An engine cannot be built, loaded or run on this machine."""


class StreamError(EdgeMrcnnError):
    """A source cannot be read or a sink cannot be written."""
