"""The guard in front of the application: who may send requests, and how many bytes."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from luthier.serving.http.settings import is_loopback

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_SECONDS = 30.0
"""Time limit for the body of a request to arrive."""


class ApiError(Exception):
    """A request that is answered with an error in OpenAI's format."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, **headers: str
    ) -> None:
        """Names of `headers` have an underscore for each dash."""
        super().__init__(message)
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status)
        kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, headers=self.headers)


class Guard:
    """ASGI middleware that checks host, key and size of each request and passes it on with its complete body.

    On loopback without a key, the Host header must be a name of this machine. Otherwise a web page in the user's
    browser could send requests under a name that it points here (DNS rebinding).
    """

    def __init__(self, app: Any, *, key: str | None, max_body: int, local: bool, requests: int) -> None:
        self.app, self.key, self.max_body, self.local = app, key, max_body, local
        self.requests, self.running = requests, 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            self._check(scope["path"], headers)
            body = await self._body(headers, receive)
        except ApiError as error:
            await error.response(scope, receive, send)
            return
        if body is None:  # disconnected before the request was complete
            return
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def once() -> Message:
            return next(messages, None) or await receive()

        self.running += 1  # not while its body is still arriving
        try:
            await self.app(scope, once, send)
        finally:
            self.running -= 1

    def _check(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Raise ApiError if the client may not send requests, or not now."""
        host = headers.get(b"host", b"").decode("latin-1").strip().lower()
        host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if self.local and self.key is None and not is_loopback(host):
            raise ApiError(403, "this server only answers under a name of this machine", "invalid_host")
        if path == "/health":
            return
        if self.key is not None:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self.key.encode()):
                message = "missing or wrong API key; send it as Authorization: Bearer KEY"
                raise ApiError(401, message, "invalid_api_key", www_authenticate="Bearer")
        if self.running >= self.requests:
            message = f"{self.running} requests are in progress, which is the limit: retry in a moment"
            raise ApiError(503, message, "overloaded", retry_after="1", connection="close")

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes | None:
        """Read the body; None if the client disconnects, ApiError if it is too long or too slow."""
        length = headers.get(b"content-length", b"0")
        message = f"the body has more than {self.max_body} bytes"
        too_large = ApiError(413, message, "request_too_large", connection="close")
        if not length.isdigit() or int(length) > self.max_body:
            raise too_large
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    part = await receive()
                    if part["type"] == "http.disconnect":
                        return None
                    body += part.get("body", b"")
                    if len(body) > self.max_body:
                        raise too_large
                    more = part.get("more_body", False)
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time", "timeout", connection="close") from None
        return bytes(body)
