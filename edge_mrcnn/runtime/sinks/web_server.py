"""The server behind the page: one thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import json
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

from edge_mrcnn.runtime.metrics import RunStatus
from edge_mrcnn.runtime.sinks.web_access import Gate, add_headers
from edge_mrcnn.runtime.sinks.web_metrics import RunCollector, exposition
from edge_mrcnn.runtime.sinks.web_pictures import Pictures
from edge_mrcnn.runtime.sinks.web_status import StatusBoard
from edge_mrcnn.runtime.sinks.web_streams import Streams

with contextlib.suppress(ModuleNotFoundError):  # web.py says how to install it
    from aiohttp import web
    from aiohttp.http import HttpProcessingError

logger = logging.getLogger(__name__)

_CONNECTIONS = 128
"""Open at once, whoever they are: they must never take the run's file descriptors. A page takes up to six at first."""

_BURST = 16
"""So many more may slip in at once: asyncio counts a connection a moment after it has accepted it."""

_STOP_S = 5.0
"""How long closing waits for the thread."""

_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
"""Of the page's files; what Python guesses depends on the system."""


class PageServer:
    """Serves the page, its streams, `/status.json`, `/metrics` and `/healthz` from a thread, until closed."""

    def __init__(
        self,
        listener: socket.socket,
        token: str | None,
        clients: int,
        pictures: Pictures,
        status: Callable[[], RunStatus],
        class_names: tuple[str, ...],
    ) -> None:
        """Start to serve.

        Args:
            listener: Bound socket; closed with the server.
            token: What clients have to show, or None.
            clients: Pages and streams open at once.
            pictures: Of the cameras; closed with the server.
            status: Gives the run's status.
            class_names: `class_names[class_id]`, for the colours.
        """
        self._listener = listener
        self._pictures = pictures
        self._board = StatusBoard(status, class_names)
        self._streams = Streams(pictures, self._board, clients)
        self._collector = RunCollector(lambda: self._board.run, lambda: self._streams.viewers)
        self._files = _read_page()
        host, port = listener.getsockname()[:2]
        self._gate = Gate(host, port, token, self._files["login.html"].decode())
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="edge-mrcnn-web", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it serves."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Send all clients away and free the port. A second call does nothing."""
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            logger.warning("the page's thread did not end within %.0f s; it is left behind", _STOP_S)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception:
            logger.exception("the page's server ended; the run goes on without it")
        finally:
            self._pictures.close()  # while there is a loop that a picture just finished can be handed to
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            self._listener.close()

    async def _serve(self) -> None:
        runner = web.AppRunner(
            self._make_app(),
            access_log=None,  # it would hold tokens
            logger=_log_of_requests(),
            handler_cancellation=True,  # a stream ends when its client leaves
            shutdown_timeout=0.1,  # then streams, which never end, are cut off
        )
        await runner.setup()

        accept = runner.server
        assert accept is not None

        def admit() -> asyncio.Protocol:
            return _TurnAway() if len(accept.connections) >= _CONNECTIONS else accept()

        server = await self._loop.create_server(admit, sock=self._listener, backlog=_BURST)
        look = self._loop.create_task(self._board.keep())
        await self._over.wait()
        server.close()
        transports = [connection.transport for connection in accept.connections]
        look.cancel()
        await runner.cleanup()
        await _hang_up(transports)

    def _make_app(self) -> web.Application:
        @web.middleware
        async def gate(request: web.Request, handler: Any) -> Any:
            return await self._gate.check(request, handler)

        app = web.Application(middlewares=[gate], client_max_size=4096)
        app.on_response_prepare.append(add_headers)
        app.add_routes([
            web.get("/", self._index),
            web.post("/", self._index),
            web.get("/page/{name}", self._file),
            web.get("/live", self._streams.page, allow_head=False),
            web.get("/cameras/{name}.mjpeg", self._streams.mjpeg, allow_head=False),
            web.get("/cameras/{name}.jpg", self._streams.still),
            web.get("/status.json", self._status),
            web.get("/metrics", self._metrics),
            web.get("/healthz", self._health),
        ])  # fmt: skip
        return app

    async def _index(self, request: web.Request) -> web.Response:
        return web.Response(body=self._files["index.html"], content_type="text/html", charset="utf-8")

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._files:
            raise web.HTTPNotFound(text=f"there is no file {name!r}\n")
        return web.Response(body=self._files[name], content_type=_TYPES[name.rpartition(".")[2]], charset="utf-8")

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(text=self._board.to_json(self._streams.viewers))

    async def _metrics(self, request: web.Request) -> web.Response:
        content_type, body = exposition(self._collector)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _health(self, request: web.Request) -> web.Response:
        healthy = self._board.run.healthy
        text = json.dumps({"healthy": healthy, "problems": self._board.problems()}) + "\n"
        return web.json_response(text=text, status=200 if healthy else 503)


class _TurnAway(asyncio.Protocol):
    """Closes a connection for which there is no room."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


async def _hang_up(transports: list[asyncio.Transport | None]) -> None:
    """End what would outlive its loop and hold a descriptor until Python collects it.

    That is a connection just being accepted, and one that waits for a client to read what was sent.
    """
    begun = asyncio.all_tasks() - {asyncio.current_task()}
    for task in begun:
        task.cancel()
    await asyncio.gather(*begun, return_exceptions=True)
    for transport in transports:
        if transport is not None:
            transport.abort()
    await asyncio.sleep(0)  # the transports close their sockets in the loop's next turns
    await asyncio.sleep(0)


def _log_of_requests() -> logging.Logger:
    """A log of our mistakes alone: aiohttp would log clients that leave, and bad requests whole, with the token."""
    log = logging.getLogger(f"{__name__}.requests")
    theirs = (HttpProcessingError, ConnectionError)
    if not log.filters:
        log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], theirs)))
    return log


def _read_page() -> dict[str, bytes]:
    """The page's files by name."""
    folder = importlib.resources.files("edge_mrcnn.runtime.sinks") / "page"
    return {item.name: item.read_bytes() for item in folder.iterdir() if item.name.rpartition(".")[2] in _TYPES}
