"""`luthier serve`: checks first, then loads, then listens."""

from __future__ import annotations

import gc
import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from luthier.core.errors import MissingExtra, install
from luthier.core.events import Progress
from luthier.kernels.threads import sleep_soon
from luthier.recipe.consent import Allow
from luthier.serving.http.guard import is_loopback
from luthier.serving.settings import Place, Sizes


def serve(
    given: Sequence[str], place: Place, sizes: Sizes, *, dtype: str, progress: Progress, allow_code: Allow = False
) -> None:
    """Serve until a signal says stop. What cannot work is said before anything is loaded."""
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError:
        raise MissingExtra("serve needs FastAPI and uvicorn", fix=install("serve")) from None
    place.check()
    sleep_soon()
    from luthier.serving.engine.engine import Engine
    from luthier.serving.http.connections import SPARE, protocol
    from luthier.serving.http.server import Limits, application

    engine = Engine.open(
        given, rows=sizes.rows, waiting=sizes.waiting, dtype=dtype, progress=progress, allow_code=allow_code
    )
    requests = 4 * (sizes.rows + sizes.waiting) + 64
    limits = Limits(sizes.prompt, sizes.tokens, sizes.body, requests)
    app = application(engine, key=place.key, limits=limits, local=is_loopback(place.host), patience=sizes.patience)
    socket_ = place.bound()
    socket_.listen(1024)  # from here on whoever asks waits, and is not sent away
    for variant in engine.variants.values():
        progress.note(f"{variant.name} ({variant.kind}): {variant.how}; {variant.limit} tokens")
    host, port = socket_.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    progress.note(f"listening on http://{shown}:{port}/v1  (ctrl-C stops)")
    logging.getLogger("uvicorn.error").addFilter(_no_noise)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, int(sizes.patience)),
        http=protocol(requests + SPARE),
        ws="none",
    )
    server = uvicorn.Server(config)
    # The collector need not look at what is loaded, for it stays. So a full collection is short, and comes before
    # closed connections, which stand in cycles, have piled up.
    gc.freeze()
    with _until_told(server):
        server.run(sockets=[socket_])
    progress.note("stopped")


@contextmanager
def _until_told(server: Any) -> Iterator[None]:
    """SIGTERM and ctrl-C stop the server, a second one at once. uvicorn itself would end the process by the signal."""
    server.capture_signals = nullcontext
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _no_noise(record: Any) -> bool:
    """What uvicorn says of requests that a client broke off is left out."""
    return "Cancel" not in record.getMessage()
