"""Connections that wait for nothing: who connects must ask, and who asks must come to the end of it.

uvicorn counts every connection as work and gives a client without a whole request as long as it likes, so a few hundred
silent ones shut out everybody else. Here a connection without a whole request has a time limit, and where too many are
open, the one that has been idle for longest makes room.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.core.strict_json import to_json

HEADERS = 10.0
"""Seconds that the head of a request may take to arrive."""
SPARE = 128
"""Connections beyond those with a request in work."""


def protocol(most: int, patience: float = HEADERS) -> type[H11Protocol]:
    """H11Protocol for at most `most` open connections."""

    class Bounded(H11Protocol):
        """Closes a connection that does not ask in time, and the one idle for longest where there are too many."""

        waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.since = self.loop.time()
            self._watch()
            if len(self.connections) > most:
                idle = [
                    each for each in self.connections if isinstance(each, Bounded) and each.idle and each is not self
                ]
                (min(idle, key=lambda each: each.since) if idle else self).transport.abort()

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
            """Has it no whole request that is being answered?"""
            return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self._unwatch()  # its head is there; Guard limits the time of its body
            elif self.waiting is None and self.timeout_keep_alive_task is None and not self.transport.is_closing():
                self.waiting = self.loop.call_later(patience, self.transport.abort)

        def _unwatch(self) -> None:
            if self.waiting is not None:
                self.waiting.cancel()
                self.waiting = None

        def send_400_response(self, msg: str) -> None:
            """In OpenAI's form, as every other error."""
            error = {"message": msg, "type": "invalid_request_error", "param": None, "code": "invalid_http"}
            body = to_json({"error": error}).encode()
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
            self.transport.close()

    return Bounded
