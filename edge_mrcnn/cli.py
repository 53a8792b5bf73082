"""`edge-mrcnn`: one command, a verb a stage.

Exit codes: 0 done, 1 it failed (the message says why and what to do), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence

from edge_mrcnn.errors import EdgeMrcnnError

VERBS = {
    "train": "fine-tune a model on a COCO-format data set",
    "export": "write model.onnx from a checkpoint",
    "import": "write model.onnx from a model trained elsewhere",
    "calibrate": "measure activation ranges for INT8",
    "sensitivity": "rank layers by what INT8 costs them",
    "build": "build a TensorRT engine from model.onnx",
    "run": "find instances in pictures, videos and cameras",
    "eval": "measure COCO AP of boxes, masks and keypoints",
    "compare": "what FP16 and INT8 cost: accuracy, agreement, size, speed",
    "bench": "measure latency, alone or against torchvision",
    "soak": "run for long while cameras, clients and sinks misbehave",
    "inspect": "show layers, precisions and I/O of a model",
    "doctor": "tell what this machine can run and build",
}
"""Each verb lives in `edge_mrcnn.commands.<verb>`, imported when it is called, so that `run` never loads torch."""

MODULES = {"import": "import_model"}
"""Modules of the verbs that are words of Python's."""

EXTRA_OF = {
    "torch": "train",
    "torchvision": "train",
    "onnxscript": "train",
    "onnx": "compile",
    "onnx_graphsurgeon": "compile",
    "onnxruntime": "cpu",
    "cv2": "vision",
    "av": "video",
    "aiohttp": "web",
    "prometheus_client": "web",
    "rosbags": "ros",
    "mcap": "ros",
    "cyclonedds": "dds",
    "zenoh": "zenoh",
    "pycocotools": "eval",
    "jinja2": "eval",
    "matplotlib": "eval",
    "mujoco": "tabletop",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
}
"""The extra that brings each optional package."""

SYSTEM_LIBRARIES = "sudo apt-get install libgl1 libglib2.0-0"
"""What OpenCV's wheels need of the system."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Arguments after the program's name; those of the process when None.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("edge_mrcnn").setLevel(logging.DEBUG if debug else logging.INFO)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())  # noqa: T201
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"edge-mrcnn {importlib.import_module('edge_mrcnn').__version__}")  # noqa: T201
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        return _fail(_unknown(verb), 2)
    return _guarded(lambda: _run(verb, rest), debug)


def _run(verb: str, arguments: list[str]) -> None:
    import tyro

    command = importlib.import_module(f"edge_mrcnn.commands.{MODULES.get(verb, verb)}").command
    tyro.cli(command, prog=f"edge-mrcnn {verb}", args=arguments, config=(tyro.conf.OmitArgPrefixes,))


def _guarded(action: Callable[[], None], debug: bool) -> int:
    """Turn whatever `action` raises into a message and an exit code; with `debug`, let it through."""
    try:
        action()
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # `edge-mrcnn ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        return _explain(error)
    return 0


def _explain(error: Exception) -> int:
    if isinstance(error, EdgeMrcnnError):
        return _fail(str(error), 1)
    if isinstance(error, (ValueError, TypeError)):
        return _fail(str(error), 2)
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] in EXTRA_OF:
        package = error.name.partition(".")[0]
        return _fail(f"{package} is not installed; install it with: pip install 'edge-mrcnn[{EXTRA_OF[package]}]'", 1)
    if isinstance(error, ImportError) and ".so" in str(error):
        return _fail(f"a system library is missing: {error}; on Debian or Ubuntu: {SYSTEM_LIBRARIES}", 1)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}; check the path, its permissions and the free space", 1)
    return _fail(f"unexpected {type(error).__name__}: {error}; run again with --debug for the traceback", 1)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"edge-mrcnn: {message}\n")
    return code


def _unknown(verb: str) -> str:
    near = difflib.get_close_matches(verb, VERBS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"there is no verb {verb!r}; {hint}verbs: {', '.join(VERBS)}"


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {summary}" for verb, summary in VERBS.items()]
    return "\n".join(
        [
            "usage: edge-mrcnn VERB ...",
            "",
            "Mask R-CNN from a torch checkpoint to live instance masks on an edge device.",
            "",
            *lines,
            "",
            "edge-mrcnn VERB --help tells the rest; --debug shows tracebacks; --version.",
        ]
    )


def entry_point() -> None:
    """What the installed `edge-mrcnn` calls."""
    sys.exit(main())
