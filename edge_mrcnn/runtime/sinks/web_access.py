"""Who may see the page: everybody on this machine, or whoever has the token."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

with contextlib.suppress(ModuleNotFoundError):  # web.py says how to install it
    from aiohttp import web

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "Server": "edge-mrcnn",
    "X-Content-Type-Options": "nosniff",
}

_OPEN = ("/page/page.css", "/page/icon.svg")
"""What the page that asks for the token needs."""

_COOKIE_S = 30 * 24 * 3600


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, seen from itself.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Gate:
    """Lets requests in, or not.

    On a loopback address every user of this machine may look, but no web site that the browser has open: the name in
    `Host` must be this machine's (against DNS rebinding) and requests of other sites are refused. Where there is a
    token, it must come in `Authorization: Bearer`, as `?token=`, or in the cookie that the page gives for it.
    """

    def __init__(self, host: str, port: int, token: str | None, login_page: str) -> None:
        """Set the rules.

        Args:
            host: Address that the server is bound to.
            port: Its port.
            token: What has to be shown, or None.
            login_page: HTML of the page that asks for it.
        """
        self._loopback = is_loopback(host)
        self._token = token
        self._login_page = login_page
        self._cookie = f"edge_mrcnn_{port}"  # browsers share cookies among the ports of a host
        self._pass = hmac.new((token or "").encode(), b"edge-mrcnn page", hashlib.sha256).hexdigest()

    async def check(self, request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]) -> Any:
        """Answer a request, or refuse it."""
        if self._loopback and not is_loopback(_hostname(f"//{request.host}")):
            raise web.HTTPMisdirectedRequest(
                text=f"{_hostname(f'//{request.host}')!r} is not this machine's name: ask for 127.0.0.1 or localhost\n"
            )
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
            raise web.HTTPForbidden(text="requests of other web sites are refused\n")
        if self._token is None or request.path in _OPEN:
            return await handler(request)
        given = request.query.get("token")
        if request.path == "/":
            if request.method == "POST":
                given = str((await request.post()).get("token", ""))
            if given is not None and self._is_token(given.strip()):
                return self._welcome()
        if self._has_pass(request) or (given is not None and self._is_token(given)):
            return await handler(request)
        return self._refuse(request)

    def _has_pass(self, request: web.Request) -> bool:
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(value.strip()):
            return True
        return hmac.compare_digest(request.cookies.get(self._cookie, "").encode(), self._pass.encode())

    def _is_token(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(given.encode(), self._token.encode())

    def _welcome(self) -> web.Response:
        """Give the cookie, and take the token out of the address bar."""
        response = web.Response(status=303, headers={"Location": "."})
        # Lax, not Strict: a link to the page from a chat or a mail must find the cookie.
        response.set_cookie(self._cookie, self._pass, max_age=_COOKIE_S, httponly=True, samesite="Lax")
        return response

    def _refuse(self, request: web.Request) -> web.Response:
        if request.path == "/":
            return web.Response(status=401, text=self._login_page, content_type="text/html")
        text = "the token is missing or wrong: send 'Authorization: Bearer TOKEN' or add ?token=TOKEN\n"
        return web.Response(status=401, text=text, headers={"WWW-Authenticate": "Bearer"})


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Forbid browsers what the page does not need."""
    for name, value in _HEADERS.items():
        response.headers[name] = value


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
