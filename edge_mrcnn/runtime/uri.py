"""URIs of sources and sinks: their options, the name that a camera gets, and what of them may be shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote, unquote_plus

_SECRET = re.compile(r"(pass|pwd|token|secret|auth|key|user|login|sig|cred)", re.IGNORECASE)
"""Options whose names contain one of these are not shown."""

_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<rest>[^\s'\"<>]*)")
HIDDEN = "***"


def take_options(
    uri: str, kinds: Mapping[str, Callable[[str], Any]], *, foreign: bool = False
) -> tuple[str, dict[str, Any]]:
    """Take our options out of a URI's query.

    Args:
        uri: A URI; errors name it without its credentials.
        kinds: What converts each known option; the first line of its docstring says what is expected.
        foreign: The query may hold what is somebody else's, as of an RTSP server: that stays in the URI as it is.

    Returns:
        The URI without our options, and these, converted.

    Raises:
        ValueError: An option is unknown or its value cannot be converted.

    Example:
        >>> take_options("rtsp://cam/live?channel=1&timeout_s=5", {"timeout_s": float}, foreign=True)
        ('rtsp://cam/live?channel=1', {'timeout_s': 5.0})
    """
    before, _, query = uri.partition("?")
    options: dict[str, Any] = {}
    rest = []
    for part in filter(None, query.split("&")):
        name, _, value = (unquote_plus(text) for text in part.partition("="))
        if name in kinds:
            options[name] = _convert(uri, name, value, kinds[name])
        elif foreign:
            rest.append(part)
        else:
            raise ValueError(f"unknown option {name!r} in {redact(uri)!r}; known: {', '.join(kinds)}")
    return "?".join(filter(None, (before, "&".join(rest)))), options


def _convert(uri: str, name: str, value: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        described = (kind.__doc__ or "").partition("\n")[0].rstrip(".")
        expected = kind.__name__ if kind.__module__ == "builtins" else described[:1].lower() + described[1:]
        raise ValueError(f"option {name} in {redact(uri)!r} cannot be {value!r}; expected {expected}") from error


def as_flag(text: str) -> bool:
    """0 or 1.

    Raises:
        ValueError: It is neither.
    """
    if text not in ("0", "1"):
        raise ValueError(f"a switch is 0 or 1, got {text!r}")
    return text == "1"


def as_one_of(*words: str) -> Callable[[str], str]:
    """What takes one of a few words, as an option's converter."""

    def convert(text: str) -> str:
        if text not in words:
            raise ValueError(f"expected one of {', '.join(words)}, got {text!r}")
        return text

    convert.__doc__ = f"one of {', '.join(words)}"
    return convert


def camera_name(text: str) -> str:
    """A name for a camera that is fit for file names and ROS topics: `[a-z][a-z0-9_]*`.

    Raises:
        ValueError: There is no letter and no digit in it.

    Example:
        >>> camera_name("Front Left"), camera_name("10.0.0.7")
        ('front_left', 'cam_10_0_0_7')
    """
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    if not name:
        raise ValueError(f"a camera's name needs letters or digits, got {text!r}")
    return name if name[0].isalpha() else f"cam_{name}"


def host_of(uri: str) -> str:
    """The host that a URI names, without user, password and port.

    Example:
        >>> host_of("rtsp://admin:pa55@10.0.0.7:554/live")
        '10.0.0.7'
    """
    host = _authority(uri.partition("://")[2]).rpartition("@")[2]
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def redact(text: str) -> str:
    """A URI, or a text with URIs in it, that may be shown: without users, passwords and options that sound secret.

    Where a password holds characters that should have been escaped (`/ ? #`), rather too much is hidden than too
    little.

    Example:
        >>> redact("rtsp://admin:pa55@10.0.0.7:554/live?channel=1&token=abc")
        'rtsp://***@10.0.0.7:554/live?channel=1&token=***'
    """
    return _URI.sub(lambda found: found["scheme"] + _redact_rest(found["rest"]), text)


def scrub(text: str, uri: str) -> str:
    """Somebody else's message about a URI, without the URI's credentials wherever they stand in it."""
    rest = uri.partition("://")[2]
    user, _, password = _userinfo(rest).partition(":")
    secrets = {password, f"{user}:{password}" if password else ""}
    for part in rest.partition("?")[2].split("&"):
        name, _, value = part.partition("=")
        if _SECRET.search(unquote_plus(name)):
            secrets |= {value, unquote_plus(value)}
    secrets |= {unquote(secret) for secret in secrets}  # as a server gets them
    for secret in sorted(secrets - {""}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    if user:  # a word of its own: many a user is called `a`
        text = re.sub(rf"(?<!\w){re.escape(unquote(user))}(?!\w)", HIDDEN, text)
    return redact(text)


def _redact_rest(rest: str) -> str:
    userinfo = _userinfo(rest)
    if userinfo:
        rest = HIDDEN + rest[len(userinfo) :]
    return re.sub(
        r"([?&#;])([^=&\s]+)=([^&#\s]*)",
        lambda found: f"{found[1]}{found[2]}={HIDDEN}" if _SECRET.search(unquote_plus(found[2])) else found[0],
        rest,
    )


def _userinfo(rest: str) -> str:
    """User and password in what follows `://`: up to the last `@`, unless that belongs to a query."""
    before = rest.rpartition("@")[0]
    return "" if "?" in before and ":" not in _authority(before) else before


def _authority(rest: str) -> str:
    """User, password, host and port of what follows `://`."""
    return re.split("[/?#]", rest, maxsplit=1)[0]
