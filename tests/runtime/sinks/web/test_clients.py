"""The live page's clients: what a bad one costs, and how the page talks with the server."""

import asyncio
import contextlib
import logging
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mrcnn.runtime.sinks import web_server, web_streams
from edge_mrcnn.runtime.sinks.web import WebSink
from tests.runtime.sinks.web.client import (
    Stream,
    ask,
    descriptors,
    found,
    frame,
    get,
    open_page,
    read_status,
    wait_for_camera,
    wait_until,
)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def test_a_client_that_never_reads_costs_nothing_to_others(page: WebSink) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)  # 250 kB as a JPEG
    stuck = [ask(page) for _ in range(4)]
    wait_until(lambda: read_status(page)["viewers"] == 4, "four clients")
    threads = threading.active_count()
    with Stream(page.url) as good:
        waits = []
        for number in range(80):
            page.write(frame(size=(480, 640)), found((480, 640)), noise)
            begin = time.monotonic()
            jpeg = good.read()
            waits.append(time.monotonic() - begin)
            if number == 20:
                before = resident_mb()
    assert len(jpeg) > 100_000
    assert resident_mb() - before < 20  # 4 x 60 x 250 kB would be 60 MB
    assert threading.active_count() <= threads + 1  # the encoder
    assert sorted(waits)[40] < 0.5
    for client in stuck:
        client.close()


def test_a_client_that_never_reads_is_dropped(
    page: WebSink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(web_streams, "SEND_TIMEOUT_S", 0.3)
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    client = ask(page)

    def gone() -> bool:
        page.write(frame(size=(480, 640)), found((480, 640)), noise)
        return read_status(page)["viewers"] == 0

    wait_until(lambda: read_status(page)["viewers"] == 1, "the client")
    wait_until(gone, "the client to be dropped")
    client.close()
    assert warnings(caplog) == []


def test_a_page_that_never_answers_is_dropped(page: WebSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_streams, "SEND_TIMEOUT_S", 0.3)
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n"
    text = f"GET /live HTTP/1.1\r\nHost: localhost\r\n{upgrade.format('dGhlIHNhbXBsZSBub25jZQ==')}\r\n"
    with ask(page, text):
        wait_until(lambda: read_status(page)["viewers"] == 1, "the page")
        wait_until(lambda: read_status(page)["viewers"] == 0, "the page to be dropped")


def test_there_is_room_for_so_many_viewers() -> None:
    with open_page("?clients=1") as sink:
        sink.write(frame(), found())
        wait_for_camera(sink)
        with Stream(sink.url):
            code, headers, body = get(sink.url, "/cameras/front.mjpeg")
            assert (code, headers["retry-after"]) == (503, "5")
            assert b"clients=N" in body
            assert get(sink.url, "/healthz")[0] == 200
        wait_until(lambda: read_status(sink)["viewers"] == 0, "room")
        with Stream(sink.url) as stream:
            stream.read()


def test_viewers_may_leave_in_the_middle(page: WebSink, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    for _ in range(10):
        client = ask(page)
        for _ in range(5):
            page.write(frame(size=(480, 640)), found((480, 640)), noise)
        client.recv(100)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, as of a crash
        client.close()

    def gone() -> bool:
        page.write(frame(size=(480, 640)), found((480, 640)), noise)
        return read_status(page)["viewers"] == 0

    wait_until(gone, "the viewers to have left")
    assert warnings(caplog) == []


def test_a_viewer_that_leaves_is_noticed_without_new_pictures(page: WebSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_streams, "_REPEAT_S", 1000)
    with Stream(page.url) as stream:
        stream.read()
        assert read_status(page)["viewers"] == 1
    wait_until(lambda: read_status(page)["viewers"] == 0, "the viewer to have left")
    assert not page.wants_picture


def test_connections_that_say_nothing_are_bounded(page: WebSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "_CONNECTIONS", 8)
    before = len(descriptors())
    silent = [ask(page, "") for _ in range(40)]
    wait_until(lambda: len(descriptors()) - before - len(silent) <= 8 + web_server._BURST, "the rest to be turned away")
    for client in silent:
        client.close()
    wait_until(lambda: get_or_none(page) == 200, "room for others")


def get_or_none(page: WebSink) -> int | None:
    try:
        return get(page.url, "/healthz")[0]
    except OSError:
        return None


@pytest.mark.parametrize("text", ["\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "x" * 100_000, "GET / HTTP/1.1\r\n\r\n"])
def test_garbage_is_survived(page: WebSink, text: str) -> None:
    with ask(page, "") as client, contextlib.suppress(OSError):  # it may be cut off in the middle of it
        client.sendall(text.encode())
    assert get(page.url, "/status.json")[0] == 200


# The page's WebSocket


async def talk(url: str, conversation: Any) -> Any:
    import aiohttp

    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}live") as live:
        return await asyncio.wait_for(conversation(live), 40)


def name_of(data: bytes) -> str:
    length = int.from_bytes(data[:2], "big")
    assert data[2 + length : 4 + length] == b"\xff\xd8"
    return data[2 : 2 + length].decode()


def test_a_page_gets_the_status_and_the_pictures_it_watches(page: WebSink) -> None:
    page.write(frame(camera="left"), found())
    wait_for_camera(page, 2)

    async def conversation(live: Any) -> None:
        assert [each["name"] for each in (await live.receive_json())["cameras"]] == ["front", "left"]
        assert not page.wants_picture
        await live.send_json({"watch": ["left", "unknown"]})
        for text in ("[]", "garbage", '{"watch": 3, "painted": 4}', '{"painted": "nobody"}'):
            await live.send_str(text)
        pictures = []
        while not pictures:
            message = await live.receive()
            pictures += [message.data] if isinstance(message.data, bytes) else []
        assert name_of(pictures[0]) == "left"
        assert page.wants_picture
        await live.send_json({"watch": []})
        while page.wants_picture:
            await asyncio.sleep(0.01)

    asyncio.run(talk(page.url, conversation))
    wait_until(lambda: read_status(page)["viewers"] == 0, "the page to have left")


def test_a_page_that_does_not_paint_gets_two_pictures(page: WebSink) -> None:
    async def count(live: Any, seconds: float) -> int:
        pictures, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            page.write(frame(), found())
            try:
                pictures += isinstance((await live.receive(timeout=0.02)).data, bytes)
            except asyncio.TimeoutError:
                continue
        return pictures

    async def conversation(live: Any) -> tuple[int, int]:
        await live.send_json({"watch": ["front"]})
        stuck = await count(live, 0.7)
        await live.send_json({"painted": "front"})
        return stuck, await count(live, 0.7)

    assert asyncio.run(talk(page.url, conversation)) == (2, 1)


def test_what_is_no_longer_watched_is_no_longer_sent(page: WebSink) -> None:
    names = [f"camera_{number}" for number in range(8)]
    over = threading.Event()

    def film() -> None:
        while not over.wait(0.002):
            for name in names:
                page.write(frame(camera=name), found())

    async def conversation(live: Any) -> None:
        async def paint() -> None:
            async for message in live:
                if isinstance(message.data, bytes):
                    await live.send_json({"painted": name_of(message.data)})

        painting = asyncio.create_task(paint())
        for turn in range(80):
            await live.send_json({"watch": names})
            await asyncio.sleep(0.01 + turn % 7 * 0.002)  # in the middle of something else each time
            await live.send_json({"watch": []})
            end = time.monotonic() + 10
            await asyncio.sleep(0.005)
            while page.wants_picture:
                assert time.monotonic() < end, f"a camera is watched for ever after turn {turn}"
                await asyncio.sleep(0.005)
        painting.cancel()

    camera_thread = threading.Thread(target=film)
    camera_thread.start()
    try:
        wait_for_camera(page, 9)
        asyncio.run(talk(page.url, conversation))
    finally:
        over.set()
        camera_thread.join()
