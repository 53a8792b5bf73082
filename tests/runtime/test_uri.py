"""URIs: options, names, and credentials that nobody gets to see."""

from urllib.parse import quote, unquote

import pytest

from edge_mrcnn.runtime.uri import camera_name, host_of, redact, scrub, take_options

KINDS = {"name": camera_name, "timeout_s": float, "loop": int}


@pytest.mark.parametrize(
    ("uri", "rest", "options"),
    [
        ("rtsp://cam/live", "rtsp://cam/live", {}),
        ("rtsp://cam/live?timeout_s=2", "rtsp://cam/live", {"timeout_s": 2.0}),
        ("rtsp://u:p%40@cam/?a=b%20c&name=Front+Left&x", "rtsp://u:p%40@cam/?a=b%20c&x", {"name": "front_left"}),
        ("rtsp://cam/?a=1?2&timeout_s=3", "rtsp://cam/?a=1?2", {"timeout_s": 3.0}),
        ("test://", "test://", {}),
        ("file:///a%3Fb.mp4?loop=1", "file:///a%3Fb.mp4", {"loop": 1}),
        ("http://cam/?", "http://cam/", {}),
    ],
)
def test_our_options_are_taken_and_the_rest_stays_as_it_is(uri: str, rest: str, options: dict[str, object]) -> None:
    assert take_options(uri, KINDS, foreign=True) == (rest, options)


def test_wrong_options_are_told_without_credentials() -> None:
    with pytest.raises(ValueError, match=r"unknown option 'fps' in 'csi://0\?fps=3'; known: name, timeout_s, loop"):
        take_options("csi://0?fps=3", KINDS)
    with pytest.raises(
        ValueError, match=r"option timeout_s in 'rtsp://\*\*\*@cam/\?timeout_s=x' cannot be 'x'; .* float"
    ):
        take_options("rtsp://me:pa55@cam/?timeout_s=x", KINDS)
    with pytest.raises(ValueError, match="cannot be 'yes'; expected int"):
        take_options("file:///a.mp4?loop=yes", KINDS)


PASSWORDS = ["pa55", "p@55", "p:a:5", "p/a5", "p%2Fa%40", "50%off", "p?a5", "p#a5", "p?a=b@c/d", "1/2", "äö", "a"]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("path", ["", "/", "/live?channel=1", "/live?a=1&b=2#c"])
def test_passwords_are_hidden_escaped_or_not(password: str, path: str) -> None:
    shown = redact(f"rtsp://admin:{password}@10.0.0.7:554{path}")
    assert shown == f"rtsp://***@10.0.0.7:554{path}"
    assert redact(shown) == shown


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://10.0.0.7:554/live", "rtsp://10.0.0.7:554/live"),
        ("rtsp://admin@cam/live", "rtsp://***@cam/live"),
        ("http://cam/video?token=abc&channel=1", "http://cam/video?token=***&channel=1"),
        ("http://cam/video?user=u&Password=p&PWD=q", "http://cam/video?user=***&Password=***&PWD=***"),
        ("http://cam/video?api%4Bey=abc&x=1", "http://cam/video?api%4Bey=***&x=1"),
        ("http://cam/video?mail=a@b", "http://cam/video?mail=a@b"),
        ("http://cam/video#access_token=abc", "http://cam/video#access_token=***"),
        ("mjpeg://0.0.0.0:80?token=s", "mjpeg://0.0.0.0:80?token=***"),
        ("clip@home.mp4", "clip@home.mp4"),
        ("/data/a:b@c/clip.mp4", "/data/a:b@c/clip.mp4"),
    ],
)
def test_what_is_shown(uri: str, shown: str) -> None:
    assert redact(uri) == shown


def test_every_uri_in_a_text_is_redacted() -> None:
    text = "cannot open 'rtsp://a:b@one/x' nor \"http://two/?key=c\" (see https://ffmpeg.org/ for help)"
    assert (
        redact(text) == "cannot open 'rtsp://***@one/x' nor \"http://two/?key=***\" (see https://ffmpeg.org/ for help)"
    )


@pytest.mark.parametrize("password", PASSWORDS[:-1])
@pytest.mark.parametrize(
    "message",
    [
        "[Errno 5] Input/output error: '{uri}'",
        "401 for {user} with {password}",
        "DESCRIBE {uri} RTSP/1.0: {user}:{password} was refused",
        "bad userinfo {user}:{password}@cam",
    ],
)
def test_messages_of_libraries_lose_the_credentials(message: str, password: str) -> None:
    for written in {password, quote(password, safe="")}:
        uri = f"rtsp://admin:{written}@cam/live?token=t0ken"
        for said in {written, unquote(written)}:
            text = scrub(message.format(uri=uri, user="admin", password=said), uri)
            assert said not in text
            assert "admin" not in text
            assert "t0ken" not in text


def test_scrubbing_leaves_the_rest_of_a_message() -> None:
    assert scrub("could not reach cam: user u is unknown", "rtsp://u:pa55@cam/") == (
        "could not reach cam: user *** is unknown"
    )
    assert scrub("no such file: clip.mp4", "clip.mp4") == "no such file: clip.mp4"


def test_names() -> None:
    assert [camera_name(text) for text in ("Front Left", "10.0.0.7", "__a--b__", "video0", "Küche")] == [
        "front_left",
        "cam_10_0_0_7",
        "a_b",
        "video0",
        "k_che",
    ]
    with pytest.raises(ValueError, match="letters or digits, got '!'"):
        camera_name("!")


@pytest.mark.parametrize(
    ("uri", "host"),
    [
        ("rtsp://admin:p%40@cam.local:554/live", "cam.local"),
        ("rtsp://admin:p@55@cam/live", "cam"),
        ("rtsp://[fe80::1]:554/live", "fe80::1"),
        ("http://cam:8080/?mail=a@b", "cam"),
        ("csi://0?width=2", "0"),
    ],
)
def test_hosts(uri: str, host: str) -> None:
    assert host_of(uri) == host
