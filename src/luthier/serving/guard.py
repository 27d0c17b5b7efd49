"""What stands before the application: who may ask, and how much."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from luthier.strict_json import to_json

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

    def __init__(self, app: Any, *, key: str | None, body: int, local: bool) -> None:
        self.app, self.key, self.body, self.local = app, key, body, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self.local and self.key is None and not is_loopback(_host(headers.get(b"host", b""))):
            await refuse(send, 403, "this server answers only under a name of this machine", "invalid_host")
            return
        if self.key is not None and scope["path"] not in OPEN and not self._knows(headers.get(b"authorization", b"")):
            message = "no API key, or a wrong one; send it as Authorization: Bearer KEY"
            await refuse(send, 401, message, "invalid_api_key", {"www-authenticate": "Bearer"})
            return
        length = headers.get(b"content-length", b"0")
        try:
            if not length.isdigit() or int(length) > self.body:
                raise OverflowError
            body = await asyncio.wait_for(self._whole(receive), PATIENCE)
        except OverflowError:
            message = f"the body has more than {self.body} bytes"
            await refuse(send, 413, message, "request_too_large", {"connection": "close"})
            return
        except TimeoutError:
            await refuse(send, 408, "the body did not arrive in time", "timeout", {"connection": "close"})
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

        await self.app(scope, once, send)

    def _knows(self, header: bytes) -> bool:
        assert self.key is not None
        scheme, _, key = header.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self.key.encode())

    async def _whole(self, receive: Receive) -> bytes | None:
        """The body; OverflowError as soon as it is too long, None where the client has left."""
        parts = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts += message.get("body", b"")
            if len(parts) > self.body:
                raise OverflowError
            if not message.get("more_body"):
                return bytes(parts)


async def refuse(send: Send, status: int, message: str, code: str, headers: dict[str, str] | None = None) -> None:
    """Answer with an error in OpenAI's form."""
    kind = "authentication_error" if status == 401 else "invalid_request_error"
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
