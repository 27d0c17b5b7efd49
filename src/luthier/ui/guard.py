"""Who may use the page: one browser, which was given the address that the terminal printed.

A page on the web can send requests to this machine, under a name of its own that it points here (DNS rebinding) or by a
form or a script (CSRF). So each request must name this server in `Host`, one that changes something must come from the
page itself (`Origin`), and all need a cookie that only the printed address gives. WebSockets are refused.
"""

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import Message, Receive, Scope, Send

from luthier.core.endpoint import is_loopback

MAX_JSON = 2**21
"""Bytes of a request's body, but for files."""
UPLOAD = "/api/upload"
"""Takes a file, and counts its bytes itself."""
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""On every response that does not set them itself."""


class Token:
    """The secret of this start: its cookie, and the word in the printed address, which works once."""

    def __init__(self, used: Callable[[], object] = lambda: None) -> None:
        """`used` is called when the word was used and there is a new one."""
        self.used = used
        self.cookie, self.word = secrets.token_urlsafe(32), secrets.token_urlsafe(24)

    def take(self, given: str) -> bool:
        """Is it the word? It is not any more."""
        if not hmac.compare_digest(given.encode(), self.word.encode()):
            return False
        self.word = secrets.token_urlsafe(24)
        self.used()
        return True

    def holds(self, cookie: str) -> bool:
        """Is it the cookie of this start?"""
        return hmac.compare_digest(cookie.encode("utf-8", "surrogateescape"), self.cookie.encode())


class Gate:
    """ASGI middleware in front of every route, of files as well."""

    def __init__(self, app: Any, *, token: Token, host: str, port: int) -> None:
        self.app, self.token, self.host, self.port = app, token, host, port
        self.cookie = f"luthier-{port}"
        """Cookies know no ports: another `luthier ui` has one of its own."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":  # a WebSocket: nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
        elif (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, _with_headers(send))
        elif scope["path"] == UPLOAD:
            await self.app(scope, receive, _with_headers(send))
        elif (body := await _body(receive)) is None:
            await _plain(413, f"the request has more than {MAX_JSON} bytes")(scope, receive, _with_headers(send))
        else:
            first = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def once() -> Message:
                return next(first, None) or await receive()

            await self.app(scope, once, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """The response where the request is not let through."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        names = [name for name, _ in scope["headers"]]
        host = headers.get("host", "").lower()
        if names.count(b"host") != 1 or not self.answers_to(host):
            return _plain(403, f"this server does not answer as {host[:100]!r}: open the address in the terminal")
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return _plain(403, "another site sent this request: open the address in the terminal")
        if scope["method"] not in ("GET", "HEAD") and headers.get("origin", "") != f"http://{host}":
            return _plain(403, "requests that change something must come from the page")
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if scope["path"] == "/" and scope["method"] == "GET" and given:
            return self._enter(given[0])
        if not self.token.holds(self._cookie(headers.get("cookie", ""))):
            return _plain(401, "open the address that `luthier ui` printed in the terminal; each address works once")
        return None

    def answers_to(self, host: str) -> bool:
        """Does the Host header name this server? Open to a network, also by any address, or by the machine's name."""
        name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "80")
        name = name.strip("[]")
        if port != str(self.port):
            return False
        if is_loopback(name) or name == self.host:
            return True
        return not is_loopback(self.host) and (_is_address(name) or name == socket.gethostname().lower())

    def _enter(self, word: str) -> Response:
        if not self.token.take(word):
            return _plain(401, "this address was used before: open the one that the terminal printed last")
        response = RedirectResponse("/", 303)
        response.set_cookie(self.cookie, self.token.cookie, httponly=True, samesite="strict")
        return response

    def _cookie(self, header: str) -> str:
        try:
            found = SimpleCookie(header).get(self.cookie)
        except CookieError:
            return ""
        return found.value if found else ""


async def _body(receive: Receive) -> bytes | None:
    """The body of a request; None where it is too long."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_JSON:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _plain(status: int, text: str) -> Response:
    return PlainTextResponse(text, status)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_headers(send: Send) -> Send:
    """`send` that adds HEADERS to a response where it has none of them."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower() for name, _ in message.get("headers", [])}
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return sending


def error(status: int, message: str, fix: str = "", **more: Any) -> JSONResponse:
    """What the page shows: what is wrong, and how to fix it."""
    return JSONResponse({"error": {"message": message, "fix": fix, **more}}, status)


def spoken_by(request: Request) -> str:
    """The language of the page that sent a request: `zh`, else `en`."""
    return "zh" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"
