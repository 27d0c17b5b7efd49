"""What stands before the application: who may ask, and how much."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from luthier.core.strict_json import to_json

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN = ("/health",)
"""Paths that need no key."""
PATIENCE = 30.0
"""Seconds that a body may take to arrive."""


class Guard:
    """Checks host, key and size of every request, and hands it on with its whole body.

    On loopback without a key the Host header must be a name of this machine, else a page in the user's browser could
    ask under a name that it has pointed here (DNS rebinding).
    """

    def __init__(self, app: Any, *, key: str | None, body: int, local: bool, requests: int) -> None:
        self.app, self.key, self.body, self.local = app, key, body, local
        self.requests, self.running = requests, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            self._admit(scope["path"], headers)
            body = await self._whole(headers, receive)
        except Refusal as no:
            await refuse(send, no.status, no.message, no.code, no.headers)
            return
        if body is None:  # gone before it had asked
            return
        given = False

        async def once() -> MutableMapping[str, Any]:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        self.running += 1  # not while its body was on the way: a slow one is no work
        try:
            await self.app(scope, once, send)
        finally:
            self.running -= 1

    def _admit(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Refusal of who may not ask, or not now."""
        if self.local and self.key is None and not is_loopback(_host(headers.get(b"host", b""))):
            raise Refusal(403, "this server answers only under a name of this machine", "invalid_host")
        if path in OPEN:
            return
        if self.key is not None and not self._knows(headers.get(b"authorization", b"")):
            message = "no API key, or a wrong one; send it as Authorization: Bearer KEY"
            raise Refusal(401, message, "invalid_api_key", {"www-authenticate": "Bearer"})
        if self.running >= self.requests:
            message = f"{self.running} requests are in work, and more are not taken: ask again in a moment"
            raise Refusal(503, message, "overloaded", {"retry-after": "1", "connection": "close"})

    def _knows(self, header: bytes) -> bool:
        assert self.key is not None
        scheme, _, key = header.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self.key.encode())

    async def _whole(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """The body, None where the client has left; Refusal as soon as it is too long, too slow, or no text."""
        length, closes = headers.get(b"content-length", b"0"), {"connection": "close"}
        too_large = Refusal(413, f"the body has more than {self.body} bytes", "request_too_large", closes)
        if not length.isdigit() or int(length) > self.body:
            raise too_large
        parts = bytearray()
        try:
            async with asyncio.timeout(PATIENCE):
                while (message := await receive())["type"] != "http.disconnect":
                    parts += message.get("body", b"")
                    if len(parts) > self.body:
                        raise too_large
                    if not message.get("more_body"):
                        break
                else:
                    return None
        except TimeoutError:
            raise Refusal(408, "the body did not arrive in time", "timeout", closes) from None
        if b"\\u" in parts and _half_characters(parts):
            half = "a text of the body holds half a character (a lone surrogate such as \\ud800)"
            raise Refusal(400, half, "invalid_unicode")
        return bytes(parts)


class Refusal(Exception):
    """A request that is answered by an error before it reaches the application."""

    def __init__(self, status: int, message: str, code: str, headers: dict[str, str] | None = None) -> None:
        self.status, self.message, self.code, self.headers = status, message, code, headers
        super().__init__(message)


def _half_characters(body: bytearray) -> bool:
    """Does JSON escape a surrogate without its other half? No tokenizer can encode that."""
    try:
        to_json(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):  # no JSON: whoever reads it will say so
        return False
    return False


async def refuse(send: Send, status: int, message: str, code: str, headers: dict[str, str] | None = None) -> None:
    """Answer with an error in OpenAI's form."""
    kind = "authentication_error" if status == 401 else "server_error" if status >= 500 else "invalid_request_error"
    body = to_json({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
    told = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def is_loopback(host: str) -> bool:
    """Is it a name or address that only this machine answers to?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(header: bytes) -> str:
    """Name or address of a Host header, without its port."""
    text = header.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
