"""The step that asks TensorRT-RTX's builder, which needs no GPU, whether it takes a model."""

from __future__ import annotations

import onnx

from benchmarks.int8_tools.judge import adopt_metadata
from benchmarks.int8_tools.process import Row, serve
from edge_mrcnn.compiler.passes import apply_passes, bind_plugins, remove_function_bodies
from edge_mrcnn.gpu import plugins, tensorrt_api

BATCH = 1


def build(job: Row) -> Row:
    """Parse a model as it is, custom ops bound to plugins, and build an engine.

    Args:
        job: `path`, and `reference` with the spec.

    Returns:
        `accepted`, `reason` where not.
    """
    api = tensorrt_api.load("rtx")
    said: list[str] = []
    logger = api.make_logger(lambda severity, text: said.append(text) if "error" in severity else None)
    creators = plugins.register_plugins(api)
    builder = api.module.Builder(logger)
    network = api.create_network(builder)
    parser = api.module.OnnxParser(network, logger)
    if not parser.parse(_bound(job).SerializeToString()):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = [f"{error.desc()} (node {error.node_name()!r}, {error.node_operator()})" for error in errors]
        return {"accepted": False, "stage": "parse", "reason": (reasons or said or ["it does not say why"])[0]}
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        profile.set_shape(tensor.name, *[[BATCH, *tensor.shape[1:]]] * 3)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    del creators
    if plan is None:
        return {"accepted": False, "stage": "build", "reason": (said or ["it does not say why"])[0]}
    return {"accepted": True, "engine_bytes": plan.nbytes, "version": api.version}


def _bound(job: Row) -> onnx.ModelProto:
    model = onnx.load(job["path"])
    if not model.functions:  # ours, bound already; or inlined
        return model
    model = adopt_metadata(model, onnx.load(job["reference"]))
    return apply_passes(model, (bind_plugins, remove_function_bodies))


if __name__ == "__main__":
    serve(build)
