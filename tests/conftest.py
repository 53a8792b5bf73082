"""For all tests."""

import signal

import pytest

# Started in the background, as by `make test &`, a process ignores Ctrl-C, and so does every child it starts: the tests
# that interrupt one would wait for nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
