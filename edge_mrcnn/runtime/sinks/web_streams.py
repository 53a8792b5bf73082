"""What goes on and on: the page's WebSocket and MJPEG streams. A client that does not read costs one picture."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import Awaitable, Iterator
from typing import Any

from edge_mrcnn.runtime.sinks.web_pictures import Pictures
from edge_mrcnn.runtime.sinks.web_status import StatusBoard

with contextlib.suppress(ModuleNotFoundError):  # web.py says how to install it
    from aiohttp import WSMsgType, web

SEND_TIMEOUT_S = 10.0
"""A client that takes nothing for this long is dropped."""

_STILL_TIMEOUT_S = 5.0
"""How long a still waits for a camera's first picture."""

_REPEAT_S = 5.0
"""A camera without new pictures sends its last one again, which shows whether the client is still there."""

_IN_FLIGHT = 2
"""Pictures of a camera sent to a page that it has not painted yet: one travels while the other is painted."""

_BOUNDARY = "frame"


class Streams:
    """Live pictures and status for every client that is let in.

    Attributes:
        viewers: Pages and streams that are open.
    """

    def __init__(self, pictures: Pictures, board: StatusBoard, limit: int) -> None:
        """Nobody watches yet.

        Args:
            pictures: Of the cameras.
            board: Status of the run.
            limit: Pages and streams open at once.
        """
        self._pictures = pictures
        self._board = board
        self._limit = limit
        self.viewers = 0

    async def still(self, request: web.Request) -> web.Response:
        """The newest picture of a camera."""
        camera = self._camera_of(request)
        try:
            with self._pictures.watching():
                _, jpeg = await asyncio.wait_for(self._pictures.newer(camera), _STILL_TIMEOUT_S)
        except asyncio.TimeoutError as error:
            raise web.HTTPServiceUnavailable(text=f"camera {camera} has sent no picture yet\n") from error
        return web.Response(body=jpeg, content_type="image/jpeg")

    async def mjpeg(self, request: web.Request) -> web.StreamResponse:
        """Pictures of a camera without end, as `multipart/x-mixed-replace`."""
        camera = self._camera_of(request)
        content_type = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
        response = web.StreamResponse(headers={"Content-Type": content_type})
        with self._viewer(), self._pictures.watching():
            await response.prepare(request)
            number, jpeg = 0, b""
            while True:
                with contextlib.suppress(asyncio.TimeoutError):
                    number, jpeg = await asyncio.wait_for(self._pictures.newer(camera, number), _REPEAT_S)
                if jpeg:
                    head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    await _send(request, response.write(head.encode() + jpeg + b"\r\n"))

    async def page(self, request: web.Request) -> web.WebSocketResponse:
        """All that a page shows, over one WebSocket: browsers open six connections a host at most.

        Text to the page is the status. Bytes to it are a picture: length of the camera's name (uint16, big endian), the
        name in UTF-8, a JPEG. The page sends `{"watch": [names]}` for what is on the screen, and `{"painted": name}`
        when it can take another picture of a camera.
        """
        socket = web.WebSocketResponse(heartbeat=SEND_TIMEOUT_S, compress=False, max_msg_size=65536)
        with self._viewer():
            await socket.prepare(request)
            await _PageView(request, socket, self._pictures, self._board, self).run()
        return socket

    @contextlib.contextmanager
    def _viewer(self) -> Iterator[None]:
        """One more viewer, where there is room."""
        if self.viewers >= self._limit:
            text = f"{self._limit} pages and streams are open, as many as may be: clients=N in the sink's URI\n"
            raise web.HTTPServiceUnavailable(text=text, headers={"Retry-After": "5"})
        self.viewers += 1
        try:
            yield
        finally:
            self.viewers -= 1

    def _camera_of(self, request: web.Request) -> str:
        camera = request.match_info["name"]
        names = [known.name for known in self._board.run.cameras]
        if camera not in names:
            raise web.HTTPNotFound(text=f"there is no camera {camera!r}; there are: {', '.join(names) or 'none yet'}\n")
        return camera


class _PageView:
    """One open page."""

    def __init__(
        self,
        request: web.Request,
        socket: web.WebSocketResponse,
        pictures: Pictures,
        board: StatusBoard,
        streams: Streams,
    ) -> None:
        self._request = request
        self._socket = socket
        self._pictures = pictures
        self._board = board
        self._streams = streams
        self._feeds: dict[str, asyncio.Task[None]] = {}
        self._room: dict[str, asyncio.Semaphore] = {}

    async def run(self) -> None:
        """Serve the page until it is closed."""
        tell = asyncio.create_task(self._tell())
        try:
            async for message in self._socket:
                if message.type == WSMsgType.TEXT:
                    self._obey(message.data)
        finally:
            tasks = [tell, *self._feeds.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _obey(self, text: str) -> None:
        try:
            wish = json.loads(text)
            painted, watch = wish.get("painted"), wish.get("watch")
        except (ValueError, AttributeError):
            return
        if isinstance(painted, str) and painted in self._room:
            self._room[painted].release()
        if isinstance(watch, list):
            self._watch({camera.name for camera in self._board.run.cameras if camera.name in watch})

    def _watch(self, cameras: set[str]) -> None:
        for camera in set(self._feeds) - cameras:
            self._feeds.pop(camera).cancel()
        for camera in cameras - set(self._feeds):
            self._room[camera] = asyncio.Semaphore(_IN_FLIGHT)
            self._feeds[camera] = asyncio.create_task(self._feed(camera, self._room[camera]))

    async def _tell(self) -> None:
        while True:
            await _send(self._request, self._socket.send_str(self._board.to_json(self._streams.viewers)))
            await self._board.change()

    async def _feed(self, camera: str, room: asyncio.Semaphore) -> None:
        number, name = 0, camera.encode()
        head = struct.pack(">H", len(name)) + name
        with self._pictures.watching():
            while True:
                await room.acquire()
                number, jpeg = await self._pictures.newer(camera, number)
                await _send(self._request, self._socket.send_bytes(head + jpeg))


async def _send(request: web.Request, sending: Awaitable[Any]) -> None:
    """Wait until a client has taken something; cut it off when that lasts too long.

    Not `asyncio.wait_for`: before Python 3.12 that may swallow a cancellation, and a camera that is no longer watched
    would be sent for ever.
    """
    timer = asyncio.get_running_loop().call_later(SEND_TIMEOUT_S, _cut_off, request)
    try:
        await sending
    finally:
        timer.cancel()


def _cut_off(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()  # close() would wait for what the client never reads
