"""A connection limit for uvicorn: idle connections are closed in favour of those that send requests.

uvicorn counts every connection and gives a client without a complete request unlimited time, so a few hundred silent
ones would shut out everybody else. Here a connection without a complete request has a time limit, and if too many are
open, the one that has been idle for the longest time is closed.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.serving.http.guard import ApiError

HEADER_SECONDS = 10.0
"""Time limit for the head of a request to arrive."""
SPARE = 128
"""Connections beyond those with a request in progress."""


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
