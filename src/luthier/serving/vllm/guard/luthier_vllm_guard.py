"""What vLLM loads before its own application: only what needs its key, and what tells nothing of a request.

vLLM asks for its key under /v1 and a few other paths, and serves more, /invocations among them, which answers anybody.
This file stands alone in its folder, for that folder becomes a part of vLLM's PYTHONPATH; it imports nothing of ours.
"""

from typing import Any

OPEN = ("/health", "/metrics", "/metrics/")
BODY = b'{"error": {"message": "not served here", "type": "invalid_request_error", "param": null, "code": null}}'


class OnlyV1:
    """ASGI middleware that answers 404 to every path but /v1/..., /health and /metrics."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Hand on what may pass."""
        path = scope.get("path", "")
        if scope["type"] == "lifespan" or path in OPEN or path.startswith("/v1/"):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
            await send({"type": "http.response.start", "status": 404, "headers": headers})
            await send({"type": "http.response.body", "body": BODY})
        else:
            await send({"type": "websocket.close", "code": 1008})
