"""URIs of sources and sinks: their options, and what of them may be shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_SECRET = re.compile(r"(pass|pwd|token|secret|auth|key|user|login|sig)", re.IGNORECASE)
_ANY_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")
HIDDEN = "***"


def take_options(
    uri: str, kinds: Mapping[str, Callable[[str], Any]], *, foreign: bool = False
) -> tuple[str, dict[str, Any]]:
    """Take our options out of a URI's query.

    Args:
        uri: A URI; errors name it without its credentials.
        kinds: What converts each known option.
        foreign: The query may hold what is somebody else's, as of an RTSP server: that stays in the URI.

    Returns:
        The URI without our options, and these, converted.

    Raises:
        ValueError: An option is unknown or its value cannot be converted.

    Example:
        >>> take_options("rtsp://cam/live?channel=1&timeout_s=5", {"timeout_s": float}, foreign=True)
        ('rtsp://cam/live?channel=1', {'timeout_s': 5.0})
    """
    parts = urlsplit(uri)
    options: dict[str, Any] = {}
    rest = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in kinds:
            if not foreign:
                raise ValueError(f"unknown option {name!r} in {redact(uri)!r}; known: {', '.join(kinds)}")
            rest.append((name, value))
            continue
        try:
            options[name] = kinds[name](value)
        except ValueError as error:
            expected = kinds[name].__doc__ if kinds[name].__module__ != "builtins" else kinds[name].__name__
            raise ValueError(f"option {name} in {redact(uri)!r} cannot be {value!r}; expected {expected}") from error
    query = urlencode(rest) if options else parts.query
    return urlunsplit(parts._replace(query=query)), options


def redact(uri: str) -> str:
    """A URI that may be shown: without user, password, and options whose names sound secret.

    Example:
        >>> redact("rtsp://admin:pa55@10.0.0.7:554/live?channel=1&token=abc")
        'rtsp://***@10.0.0.7:554/live?channel=1&token=***'
    """
    shown = _ANY_CREDENTIALS.sub(f"{HIDDEN}@", uri)
    return re.sub(
        r"([?&])([^=&\s]+)=([^&\s]*)",
        lambda found: f"{found[1]}{found[2]}={HIDDEN}" if _SECRET.search(found[2]) else found[0],
        shown,
    )


def scrub(text: str, uri: str) -> str:
    """Somebody else's message about a URI, without the URI's credentials wherever they stand in it."""
    parts = urlsplit(uri)
    secrets = [parts.password, parts.username if parts.password else None]
    secrets += [value for name, value in parse_qsl(parts.query) if _SECRET.search(name)]
    for secret in secrets:
        if secret:
            text = text.replace(secret, HIDDEN)
    return redact(text)
