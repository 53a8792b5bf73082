"""For the tests of the live page."""

from collections.abc import Iterator

import pytest

from edge_mrcnn.runtime.sinks import web_status
from edge_mrcnn.runtime.sinks.web import WebSink
from tests.runtime.sinks.web.client import found, frame, open_page, wait_for_camera


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at the run often, and no token from outside."""
    pytest.importorskip("aiohttp", reason="aiohttp, which serves the live page, is not installed")
    pytest.importorskip("prometheus_client", reason="prometheus_client, which writes the metrics, is not installed")
    monkeypatch.setattr(web_status, "SAMPLE_S", 0.05)
    monkeypatch.delenv("EDGE_MRCNN_TOKEN", raising=False)


@pytest.fixture
def page() -> Iterator[WebSink]:
    with open_page() as sink:
        sink.write(frame(), found())
        wait_for_camera(sink)
        yield sink
