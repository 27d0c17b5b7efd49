"""The embedded base with a moved adapter on it, and servers in threads, for tests of what asks them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from luthier.builtin import BASE


def tuned_adapter(folder: Path) -> Path:
    """A LoRA adapter for the embedded base, in PEFT's format, with tokenizer, template and end tokens."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    base = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    torch.manual_seed(3)
    model = get_peft_model(base, LoraConfig(r=12, lora_alpha=24, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "builtin"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    transformers.AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2], "pad_token_id": 0}')
    return folder


@contextmanager
def served(engine: Any, key: str | None = None) -> Iterator[str]:
    """Luthier's own server over an engine; its address, which ends in /v1."""
    import uvicorn

    from luthier.serving.http.server import application

    server = uvicorn.Server(uvicorn.Config(application(engine, key=key), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(20)


class Stub:
    """An endpoint that says what it is told to: `plan` has an entry for each request for an answer, the last stays.

    An entry is a list of pieces that are streamed ("" ends in order, None breaks off, a number waits so many seconds,
    bytes go out as they are), or (status, headers, body).
    """

    def __init__(self, *plan: Any, models: tuple[str, ...] = ("one", "two")) -> None:
        self.plan, self.models = list(plan), models
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stub.headers.append(dict(self.headers))
                body = json.dumps({"data": [{"id": model} for model in stub.models]}).encode()
                if not self.path.endswith("/v1/models"):
                    self.send_error(404)
                    return
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                stub.headers.append(dict(self.headers))
                stub.seen.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                step = stub.plan.pop(0) if len(stub.plan) > 1 else stub.plan[0]
                if isinstance(step, tuple):
                    status, headers, body = step
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(json.dumps(body).encode())
                    return
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                self.stream(step)

            def stream(self, pieces: list[Any]) -> None:
                for piece in pieces:
                    if piece is None:
                        self.connection.close()
                        return
                    if isinstance(piece, int | float):
                        time.sleep(piece)
                    elif isinstance(piece, bytes):
                        self.wfile.write(piece)
                    elif piece == "":
                        self.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
                        self.wfile.write(b"data: [DONE]\n\n")
                    else:
                        self.event({"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
                    self.wfile.flush()

            def event(self, value: Any) -> None:
                self.wfile.write(f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
