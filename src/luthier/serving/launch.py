"""`luthier serve`: check the options first, then load the models, then listen."""

import gc
import logging
import signal
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from luthier.core.endpoint import is_loopback
from luthier.core.errors import MissingExtra, install
from luthier.core.events import Progress
from luthier.recipe.consent import Allow
from luthier.serving.http.settings import ServerAddress, ServerLimits


def serve(
    runs: Sequence[str],
    address: ServerAddress,
    limits: ServerLimits,
    *,
    dtype: str,
    progress: Progress,
    allow_code: Allow,
    base: str | None = None,
    drop_layers: int = 0,
) -> None:
    """Serve until SIGTERM or ctrl-C. Errors in the options are reported before anything is loaded."""
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError:
        raise MissingExtra("serve needs FastAPI and uvicorn", fix=install("serve")) from None
    address.bind().close()
    from luthier.serving.engine.engine import Engine
    from luthier.serving.http.guard import SPARE, LimitedProtocol
    from luthier.serving.http.server import application

    rows, waiting = limits.max_batch, limits.max_waiting
    own: Any = {"dtype": dtype, "progress": progress, "allow_code": allow_code, "base": base}
    own["drop_layers"] = drop_layers
    engine = Engine.open(runs, rows=rows, waiting=waiting, **own)
    app = application(engine, limits, key=address.key, local=is_loopback(address.host))
    bound = address.bind()  # from here on clients wait instead of being refused
    for model in engine.models.values():
        progress.note(f"{model.name} ({model.kind}): {model.how}; {model.limit} tokens")
    host, port = bound.getsockname()[:2]
    progress.note(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}/v1  (ctrl-C stops)")
    # uvicorn logs requests that a client cancels as errors.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "Cancel" not in record.getMessage())
    options: Any = {"log_level": "warning", "access_log": False, "server_header": False, "timeout_keep_alive": 30}
    protocol: Any = partial(LimitedProtocol, most=limits.requests + SPARE)
    grace = max(1, int(limits.grace))
    server = uvicorn.Server(uvicorn.Config(app, http=protocol, ws="none", timeout_graceful_shutdown=grace, **options))
    # Nothing loaded so far will be freed, so the collector can skip it. Then a full collection is quick, and comes
    # before too many closed connections, which are reference cycles, have accumulated.
    gc.freeze()
    # SIGTERM and ctrl-C stop the server, a second one at once. uvicorn itself would end the process by the signal.
    server.capture_signals = nullcontext  # type: ignore[method-assign, assignment]
    handlers = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[bound])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    progress.note("stopped")
