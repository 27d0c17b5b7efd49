"""Start the server of the page, and tell the address."""

import logging
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from luthier.core.endpoint import is_loopback
from luthier.core.errors import MissingExtra, install
from luthier.core.language import translated
from luthier.serving.http.settings import ServerAddress
from luthier.ui.guard import Token

GRACE = 1
"""Seconds for open requests when the server stops: streams have no end of their own."""


def serve_page(root: Path, places: Sequence[Path], host: str, port: int, *, browser: bool) -> None:
    """Serve the page until ctrl-C. Runs that were started go on.

    Raises MissingExtra without FastAPI, and InputError where the address cannot be had.
    """
    try:
        import uvicorn

        from luthier.ui.server import create_app
    except ModuleNotFoundError as missing:
        raise MissingExtra(f"luthier ui needs the package {missing.name}", fix=install("ui")) from None
    root.mkdir(parents=True, exist_ok=True)
    token = Token()
    socket = ServerAddress(host, port, token.cookie).bind()
    port = socket.getsockname()[1]

    def address() -> str:
        name = f"[{host}]" if ":" in host else host
        return f"http://{name}:{port}/?token={token.word}"

    def tell() -> None:
        print(address(), flush=True)

    token.used = tell
    if not is_loopback(host):
        warning = "Other machines can connect: whoever has this address can start training, read runs and delete them."
        print(translated(warning), file=sys.stderr)
    app = create_app(root, places, token=token, host=host, port=port)
    settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE, ws="none")

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # open requests that break off are no errors
            super().handle_exit(sig, frame)

    tell()
    if browser and is_loopback(host):
        webbrowser.open(address())
    with suppress(KeyboardInterrupt):  # uvicorn raises it again once all is closed
        Server(settings).run(sockets=[socket])
