"""Where a server listens and how much it takes at once."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from luthier.core.errors import InputError
from luthier.serving.http.guard import is_loopback


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    """Whoever asks must know it; needed where other machines can ask."""

    def check(self) -> None:
        """InputError where it may not or cannot be bound."""
        if not is_loopback(self.host) and not self.key:
            raise InputError(
                f"--host {self.host} lets other machines ask, so it needs an API key",
                fix="LUTHIER_API_KEY=... luthier serve ..., or --host 127.0.0.1",
            )
        self.bound().close()

    def bound(self) -> socket.socket:
        """A socket on host and port; InputError where it is taken."""
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            made = socket.socket(family, kind, protocol)
        except OSError as error:
            raise InputError(f"--host {self.host}: {error.strerror or error}") from None
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except OSError as error:
            made.close()
            raise InputError(
                f"{self.host}:{self.port} cannot be bound: {error.strerror}",
                fix="another --port, or stop what is there",
            ) from None
        return made


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much at once."""

    rows: int = 16
    waiting: int = 64
    body: int = 2**20
    prompt: int | None = None
    tokens: int = 4096
    patience: float = 30.0
    """Seconds that running answers get when the server is told to stop."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How an answer is drawn."""

    temperature: float = 0.0
    most: int = 256
    """Tokens of an answer."""
    seed: int = 0
