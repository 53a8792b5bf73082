"""A live page in the browser: `mjpeg://127.0.0.1:8080`."""

from __future__ import annotations

import errno
import functools
import importlib
import logging
import os
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from edge_mrcnn.detections import Detections
from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import AnnotatedPicture, Picture, annotated_picture
from edge_mrcnn.runtime.sinks.web_access import is_loopback
from edge_mrcnn.runtime.uri import redact, take_options

if TYPE_CHECKING:
    from edge_mrcnn.runtime.sinks import SinkOptions

logger = logging.getLogger(__name__)

_TOKEN_VARIABLE = "EDGE_MRCNN_TOKEN"
_TOKEN_LENGTH = 16
_MAKE_TOKEN = "python3 -c 'import secrets; print(secrets.token_urlsafe())'"
_DEFAULT_PORT = 8080
_SEND_BUFFER = 256 * 1024


@dataclass(frozen=True)
class _Address:
    """A `mjpeg://` URI, taken apart and checked."""

    host: str
    port: int
    token: str | None
    width: int = 1280
    quality: int = 80
    clients: int = 16


class WebSink:
    """A page that shows every camera, how the run is doing, and the same for programs.

    | path | what |
    |---|---|
    | `/` | the page |
    | `/cameras/NAME.mjpeg`, `/cameras/NAME.jpg` | a stream for other programs, the newest picture |
    | `/status.json` | the run's status and the last two minutes |
    | `/metrics` | the same for Prometheus |
    | `/healthz` | 200, or 503 with the reasons |

    Options in the query: `width` (1280; wider pictures are made this wide), `quality` (80; of the JPEGs), `clients`
    (16; pages and streams open at once), `token`. Frames are drawn and encoded while somebody watches, once for all.

    Attributes:
        uri: The address it is bound to, without the token.
        url: What to open in a browser.
        wants_picture: Whether anybody watches.
        wants_stop: False.
    """

    kind: Literal["view", "record"] = "view"
    main_thread = False
    wants_stop = False

    def __init__(self, uri: str, options: SinkOptions | None = None) -> None:
        """Bind the port and serve.

        Args:
            uri: `mjpeg://HOST:PORT`, 127.0.0.1 and 8080 where left out; port 0 takes a free one.
            options: Names of the classes, and who tells how the run is doing; outside a run, what this sink sees is
                shown.

        Raises:
            StreamError: The port is taken, the address is not this machine's, aiohttp or prometheus_client is missing,
                or an address that others can reach has no token.
            ValueError: The URI is wrong.
        """
        from edge_mrcnn.runtime.sinks import SinkOptions

        options = options or SinkOptions()
        address = _parse(uri)
        _check_packages()
        from edge_mrcnn.runtime.sinks.web_pictures import Pictures
        from edge_mrcnn.runtime.sinks.web_server import PageServer
        from edge_mrcnn.runtime.sinks.web_status import SeenCameras

        listener = _bind(address)
        host, port = listener.getsockname()[:2]
        self.uri = f"mjpeg://{_bracket(host)}:{port}"
        self.url = f"http://{_bracket(socket.gethostname() if host in ('0.0.0.0', '::') else host)}:{port}/"
        self._class_names = options.class_names
        self._look = options.look
        self._pictures = Pictures(address.width, address.quality)
        self._seen: SeenCameras | None = None
        status = options.status
        if status is None:
            self._seen = SeenCameras(options.class_names)
            status = self._seen.status
        self._server: PageServer | None = PageServer(
            listener, address.token, address.clients, self._pictures, status, options.class_names
        )
        logger.info("the live page is at %s%s", self.url, " (it asks for the token)" if address.token else "")

    @property
    def wants_picture(self) -> bool:
        """Whether anybody watches."""
        return self._pictures.watched

    def write(self, frame: Frame, detections: Detections, annotated: AnnotatedPicture = None) -> None:
        """Show a frame to whoever watches. Returns at once.

        Raises:
            StreamError: The sink is closed, or its server died.
        """
        if self._server is None:
            raise StreamError(f"{self.uri} is closed; open a new sink")
        if not self._server.alive:
            raise StreamError(f"the server of {self.uri} ended; the log says why")
        camera = frame.camera or "camera"
        if self._seen is not None:
            self._seen.add(camera, frame, detections)
        self._pictures.put(camera, functools.partial(self._draw, frame, detections, annotated))

    def _draw(self, frame: Frame, detections: Detections, annotated: AnnotatedPicture) -> Picture:
        return annotated_picture(frame, detections, annotated, self._class_names, self._look)

    def close(self) -> None:
        """Send the viewers away, end the threads and free the port. A second call does nothing."""
        if self._server is not None:
            server, self._server = self._server, None
            server.close()

    def __enter__(self) -> WebSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _parse(uri: str) -> _Address:
    rest, options = take_options(uri, {"token": str, "width": int, "quality": int, "clients": int})
    parts = urlsplit(rest)
    try:
        port = _DEFAULT_PORT if parts.port is None else parts.port
    except ValueError as error:
        raise ValueError(f"the port of {redact(uri)!r} must be a number from 0 to 65535") from error
    if parts.path not in ("", "/") or parts.username is not None:
        raise ValueError(f"{redact(uri)!r} must be mjpeg://HOST:PORT; a secret goes into the query: ?token=...")
    for name, least, most in (("width", 16, 65535), ("quality", 1, 100), ("clients", 1, 100)):
        if name in options and not least <= options[name] <= most:
            raise ValueError(f"{name} in {redact(uri)!r} must be from {least} to {most}, got {options[name]}")
    host = parts.hostname or "127.0.0.1"
    token = options.pop("token", None) or os.environ.get(_TOKEN_VARIABLE) or None
    if not is_loopback(host) and (token is None or len(token) < _TOKEN_LENGTH):
        raise StreamError(
            f"{redact(uri)} lets other machines see the cameras, which needs a token of {_TOKEN_LENGTH} characters or "
            f"more; make one, which is read from there: export {_TOKEN_VARIABLE}=$({_MAKE_TOKEN}), or add ?token=..."
        )
    return _Address(host, port, token, **options)


def _check_packages() -> None:
    for package in ("aiohttp", "prometheus_client"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise StreamError(
                f"the live page needs {package} ({error}); install it with: pip install 'edge-mrcnn[web]'"
            ) from error


def _bind(address: _Address) -> socket.socket:
    place = f"mjpeg://{_bracket(address.host)}:{address.port}"
    try:
        family, _, _, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        both = address.host == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(where[:2], family=family, dualstack_ipv6=both)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = f"mjpeg://{_bracket(address.host)}:{address.port + 1}"
            remedy = f"take another port, such as {other}, or find who has this one: ss -ltnp"
        elif error.errno == errno.EACCES:
            remedy = "take a port from 1024 on"
        else:
            remedy = "take an address of this machine (ip addr lists them), such as mjpeg://127.0.0.1:8080"
        # Python adds the address to the reason, which the message has already.
        reason = str(error.strerror or error).partition(" (while")[0]
        raise StreamError(f"cannot serve at {place} ({reason}); {remedy}") from error
    # Connections inherit it: what a slow client has not read yet is old, and shall not be seconds old.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    return listener


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
