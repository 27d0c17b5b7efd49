"""The guards in front of the application: who may connect, who may send requests, and how many bytes.

uvicorn gives a client without a complete request unlimited time, so a few hundred silent ones would shut out everybody
else. Here it has a time limit, and if too many connections are open, the one idle for the longest time is closed.
"""

import asyncio
import hmac
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.core.endpoint import is_loopback

HEADER_SECONDS, BODY_SECONDS = 10.0, 30.0
"""Time limits for head and body of a request to arrive."""
SPARE = 128  # Connections beyond those with a request in progress


class ApiError(HTTPException):
    """A request that is answered with an error in OpenAI's format."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None, **headers: str):
        """Names of `headers` have an underscore for each dash."""
        super().__init__(status, message, {name.replace("_", "-"): value for name, value in headers.items()})
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status)
        kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status_code, headers=self.headers)


class Guard:
    """ASGI middleware that checks host, key and size of each request and passes it on with its complete body.

    On loopback without a key, the Host header must be a name of this machine. Otherwise a web page in the user's
    browser could send requests under a name that it points here (DNS rebinding).
    """

    def __init__(self, app: Any, *, key: str | None, max_body: int, local: bool, requests: int) -> None:
        self.app, self.key, self.max_body, self.local = app, key, max_body, local
        self.requests, self.running = requests, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            self._check(request)
            body = await self._body(request)
        except ApiError as error:
            await error.response(scope, receive, send)
            return
        except ClientDisconnect:
            return
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def once() -> Message:
            return next(messages, None) or await receive()

        self.running += 1  # not while its body is still arriving
        try:
            await self.app(scope, once, send)
        finally:
            self.running -= 1

    def _check(self, request: Request) -> None:
        """Raise ApiError if the client may not send requests, or not now."""
        host = request.headers.get("host", "").strip().lower()
        host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if self.local and self.key is None and not is_loopback(host):
            raise ApiError(403, "this server only answers under a name of this machine", "invalid_host")
        if request.scope["path"] == "/health":
            return
        if self.key is not None:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            given = key.strip().encode("latin-1")  # as headers are decoded
            if scheme.lower() != "bearer" or not hmac.compare_digest(given, self.key.encode()):
                message = "missing or wrong API key; send it as Authorization: Bearer KEY"
                raise ApiError(401, message, "invalid_api_key", www_authenticate="Bearer")
        if self.running >= self.requests:
            message = f"{self.running} requests are in progress, which is the limit: retry in a moment"
            raise ApiError(503, message, "overloaded", retry_after="1", connection="close")

    async def _body(self, request: Request) -> bytes:
        """Read the body; ApiError if it is too long or too slow."""
        length, body = request.headers.get("content-length", "0"), bytearray()
        message = f"the body has more than {self.max_body} bytes"
        too_large = ApiError(413, message, "request_too_large", connection="close")
        if not length.isdecimal() or int(length) > self.max_body:
            raise too_large
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    body += part
                    if len(body) > self.max_body:
                        raise too_large
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time", "timeout", connection="close") from None
        return bytes(body)


class LimitedProtocol(H11Protocol):
    """Closes a connection that sends no request in `seconds`, and the longest idle one if more than `most` are open."""

    timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, most: int, seconds: float = HEADER_SECONDS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.most, self.seconds = most, seconds

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.since = self.loop.time()
        self._watch()
        if len(self.connections) > self.most:
            idle = [each for each in self.connections if isinstance(each, LimitedProtocol) and each.idle]
            min(idle, key=lambda each: (each is self, each.since)).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()

    @property
    def idle(self) -> bool:
        """Has it no complete request that is being answered?"""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()  # the head has arrived; Guard limits the time for the body
        elif self.timer is None and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self.timer = self.loop.call_later(self.seconds, self.transport.abort)

    def _unwatch(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def send_400_response(self, msg: str) -> None:
        """Send the error in OpenAI's format."""
        response = ApiError(400, msg, "invalid_http", connection="close").response
        head = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head + b"\r\n" + bytes(response.body))
        self.transport.close()
