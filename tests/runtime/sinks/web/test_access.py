"""Who may see the live page."""

import logging

import pytest

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sinks.web import WebSink
from tests.runtime.sinks.web.client import (
    ask,
    found,
    frame,
    get,
    open_page,
)

TOKEN = "a-token-of-more-than-16-characters"


def test_a_token_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with open_page(f"?token={TOKEN}") as sink:
        sink.write(frame(), found())
        for path in ("/", "/status.json", "/metrics", "/healthz", "/live", "/cameras/front.jpg", "/page/page.js"):
            assert get(sink.url, path)[0] == 401, path
            assert get(sink.url, f"{path}?token=wrong")[0] == 401, path
            assert get(sink.url, path, {"Authorization": "Bearer wrong"})[0] == 401, path
            assert get(sink.url, path, {"Cookie": f"edge_mrcnn_{sink.url.split(':')[2][:-1]}={TOKEN}"})[0] == 401, path
        assert b"<form" in get(sink.url, "/")[2]
        assert get(sink.url, "/metrics", {"Authorization": f"Bearer {TOKEN}"})[0] == 200
        assert get(sink.url, f"/status.json?token={TOKEN}")[0] == 200
        for broken in (
            f"GET /?token={TOKEN} HTTP/9.9\r\n\r\n",
            f"GET /?token={TOKEN} b c\r\n\r\n",
            f"G{TOKEN}\x01\r\n\r\n",
        ):
            with ask(sink, broken) as client:
                client.recv(100)
        assert TOKEN not in sink.uri + sink.url
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("way", ["link", "form"])
def test_the_token_is_changed_for_a_cookie(way: str) -> None:
    with open_page(f"?token={TOKEN}") as sink:
        if way == "link":
            code, headers, _ = get(sink.url, f"/?token={TOKEN}")
        else:
            kind = {"Content-Type": "application/x-www-form-urlencoded", "Origin": sink.url.rstrip("/")}
            assert get(sink.url, "/", kind, "POST", "token=wrong")[0] == 401
            code, headers, _ = get(sink.url, "/", kind, "POST", f"token={TOKEN}")
        assert (code, headers["location"]) == (303, ".")
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert TOKEN not in cookie
        sent = {"Cookie": cookie.partition(";")[0]}
        assert b"page/page.js" in get(sink.url, "/", sent)[2]
        assert get(sink.url, "/status.json", sent)[0] == 200


def test_the_token_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_MRCNN_TOKEN", TOKEN)
    with WebSink("mjpeg://0.0.0.0:0") as sink:
        url = sink.url.replace(sink.url.split(":")[1], "//127.0.0.1")
        assert get(url, "/status.json")[0] == 401
        assert get(url, "/status.json", {"Authorization": f"Bearer {TOKEN}", "Host": "robot.local"})[0] == 200


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost:9000", 200),  # through a tunnel
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("evil.example", 421),  # a name that its owner has pointed at 127.0.0.1
        ("127.0.0.1.evil.example", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_only_names_of_this_machine_are_answered(page: WebSink, host: str, code: int) -> None:
    assert get(page.url, "/status.json", {"Host": host})[0] == code


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:1", "null"])
def test_other_web_sites_are_refused(page: WebSink, origin: str) -> None:
    upgrade = {
        "Origin": origin,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert get(page.url, "/live", upgrade)[0] == 403


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("mjpeg://0.0.0.0:0", StreamError, r"needs a token of 16 .*export EDGE_MRCNN_TOKEN=\$\(python3"),
        ("mjpeg://[::]:0", StreamError, "needs a token"),
        ("mjpeg://0.0.0.0:0?token=short", StreamError, r"token=\*\*\* lets other machines"),
        ("mjpeg://robot:0", StreamError, "needs a token"),
        (f"mjpeg://192.0.2.1:0?token={TOKEN}", StreamError, "take an address of this machine"),
        ("mjpeg://127.0.0.1:99999", ValueError, "from 0 to 65535"),
        ("mjpeg://127.0.0.1:0?quality=101", ValueError, "quality .* from 1 to 100, got 101"),
        ("mjpeg://user:short@127.0.0.1:0", ValueError, "a secret goes into the query"),
        ("mjpeg://127.0.0.1:0/page", ValueError, "must be mjpeg://HOST:PORT"),
        ("mjpeg://127.0.0.1:0?size=3", ValueError, "unknown option 'size'"),
    ],
)
def test_mistakes_are_explained(uri: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        WebSink(uri)
    assert "short" not in str(raised.value)


def test_a_port_in_use_is_explained(page: WebSink) -> None:
    port = int(page.url.split(":")[2][:-1])
    with pytest.raises(StreamError, match=f"Address already in use.*mjpeg://127.0.0.1:{port + 1}"):
        WebSink(page.uri)


def test_ipv6() -> None:
    try:
        sink = WebSink("mjpeg://[::1]:0")
    except StreamError:
        pytest.skip("this machine has no IPv6")
    with sink:
        assert sink.url.startswith("http://[::1]:")
        assert get(sink.url, "/status.json")[0] == 200
