"""Where a server listens and its limits."""

import socket
from dataclasses import dataclass

from luthier.core.endpoint import is_loopback
from luthier.core.errors import InputError


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where to listen."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None  # API key that clients must send; required if other machines can connect

    def bind(self) -> socket.socket:
        """Return a socket that listens on host and port; InputError if that is not allowed or fails."""
        if not is_loopback(self.host) and not self.key:
            message = f"--host {self.host} lets other machines connect, so it needs an API key"
            raise InputError(message, fix="LUTHIER_API_KEY=... luthier serve ..., or --host 127.0.0.1")
        try:
            family = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0][0]
            return socket.create_server((self.host, self.port), family=family, backlog=1024)
        except OSError as error:
            message = f"{self.host}:{self.port} cannot be bound: {error.strerror}"
            raise InputError(message, fix="another --port or --host, or stop what is listening there") from None


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits of a server."""

    max_batch: int = 16  # Requests that are answered at the same time
    max_waiting: int = 64  # Requests in the queue behind them
    max_body: int = 2**20  # Bytes of a request body
    max_prompt: int | None = None  # Tokens of a prompt; None is the model's limit
    max_tokens: int = 4096  # Tokens of an answer
    grace: float = 30.0  # Seconds for running requests to finish when the server stops
    max_requests: int | None = None  # Requests in progress before clients get 503; None derives it from the others

    @property
    def requests(self) -> int:
        """Requests in progress at most."""
        return self.max_requests or 4 * (self.max_batch + self.max_waiting) + 64
