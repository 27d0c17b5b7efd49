"""Middleware for vLLM that only serves the paths that need its key, and those that reveal nothing about requests.

vLLM checks its key under /v1 and a few other paths, but serves more without it, such as /invocations. This file is
alone in its folder, which is added to vLLM's PYTHONPATH, and imports nothing of Luthier.
"""

from typing import Any

OPEN = ("/health", "/metrics", "/metrics/")
BODY = b'{"error": {"message": "not served here", "type": "invalid_request_error", "param": null, "code": null}}'


class OnlyV1:
    """ASGI middleware that answers 404 to every path but /v1/..., /health and /metrics."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on the requests that are allowed."""
        path = scope.get("path", "")
        if scope["type"] == "lifespan" or path in OPEN or path.startswith("/v1/"):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
            await send({"type": "http.response.start", "status": 404, "headers": headers})
            await send({"type": "http.response.body", "body": BODY})
        else:
            await send({"type": "websocket.close", "code": 1008})
