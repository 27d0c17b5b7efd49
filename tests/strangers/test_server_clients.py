"""Clients that hold connections, send slowly, send large or send nonsense: others are answered all the while."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from luthier.serving.engine.engine import Engine
from tests.strangers.conftest import LARGE

MOST, PATIENCE = 24, 1.0
SILENT = 400 if LARGE else 60
CHAT = {"messages": [{"role": "user", "content": "Say number 3."}], "max_tokens": 2, "temperature": 0}


@pytest.fixture(scope="module")
def engine(finished: Path) -> Iterator[Engine]:
    made = Engine.open([str(finished)], rows=4, waiting=8)
    yield made
    made.close()


@pytest.fixture(scope="module")
def port(engine: Engine) -> Iterator[int]:
    import uvicorn

    from luthier.serving.http.guard import LimitedProtocol
    from luthier.serving.http.server import application
    from luthier.serving.http.settings import ServerLimits

    app = application(engine, limits=ServerLimits(max_requests=MOST - 8))
    limited: Any = partial(LimitedProtocol, most=MOST, seconds=PATIENCE)
    config = uvicorn.Config(app, port=0, log_level="critical", http=limited, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def ask(port: int, path: str = "chat/completions", **body: Any) -> tuple[int, dict[str, Any]]:
    """(status, body) of a request, whose every error has OpenAI's form."""
    data = json.dumps({"model": "run", **body}).encode() if body else None
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/{path}", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        found = json.load(error)
        assert set(found["error"]) == {"message", "type", "param", "code"}
        assert error.code not in (429, 503) or error.headers["retry-after"]
        return error.code, found["error"]


def connect(port: int, sent: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=10)
    made.sendall(sent)
    return made


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"


@pytest.mark.parametrize("sent", [b"", b"POST /v1/ch", HEAD, HEAD + b"content-length: 1000\r\n\r\n{"])
def test_silent_and_half_sent_requests_shut_nobody_out(sent: bytes, port: int) -> None:
    held = [connect(port, sent) for _ in range(SILENT)]
    try:
        for _ in range(5):
            assert ask(port, **CHAT)[0] == 200
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            assert json.load(answer)["status"] == "ok"
    finally:
        for each in held:
            each.close()


def test_who_does_not_ask_in_time_is_let_go(port: int) -> None:
    for sent in (b"", b"GET /heal"):
        held = connect(port, sent)
        assert held.recv(10) == b"", "closed by the server"
    held = connect(port, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert held.recv(2000).startswith(b"HTTP/1.1 200")
    began = time.monotonic()
    for byte in b"GET /health HTTP/1.1\r\n" * 9:  # one byte at a time, for longer than the limit
        try:
            held.sendall(bytes([byte]))
        except OSError:
            break
        time.sleep(0.05)
    assert time.monotonic() - began < 9


def test_what_is_no_http_is_answered_in_the_same_form(port: int) -> None:
    held = connect(port, b"what is this?\r\n\r\n")
    head, _, body = held.recv(4000).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and json.loads(body)["error"]["code"] == "invalid_http"


LARGE_BODIES: dict[str, dict[str, Any]] = {
    "tokens that are none": {"path": "completions", "prompt": ["a", *range(120_000)]},
    "texts that are numbers": {"path": "completions", "prompt": [1.5] * 150_000},
    "lists of lists": {"path": "completions", "prompt": [[]] * 200_000},
    "parts": {"messages": [{"role": "user", "content": [{}] * 200_000}]},
    "turns": {"messages": [{}] * 200_000},
    "stops": {**CHAT, "stop": [""] * 200_000},
    "fields": {**CHAT, **{f"x{n}": n for n in range(60_000)}},
}


@pytest.mark.parametrize("name", LARGE_BODIES)
def test_a_large_body_stops_no_stream_and_gets_one_error(name: str, port: int) -> None:
    gaps, ended = [0.0], threading.Event()

    def tick() -> None:
        while not ended.is_set():
            began = time.monotonic()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
                gaps.append(time.monotonic() - began)

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        body = dict(LARGE_BODIES[name])
        status, error = ask(port, body.pop("path", "chat/completions"), **body)
    finally:
        ended.set()
        ticking.join()
    assert status == 400 and len(error["message"]) < 300, error
    assert max(gaps) < 2, "with every branch reporting every error it was 5 to 7 s"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (5, "prompt: should be a text, a list of texts, a list of token ids, or a list of such lists"),
        ([], "prompt: List should have at least 1 item"),
        (["a", 1], "prompt.1: Input should be a valid string"),
        ([1, "a"], "prompt.1: Input should be a valid integer"),
        ([[1], "a"], "prompt.1: Input should be a valid list"),
        ([[1], [2, None]], "prompt.1.1: Input should be a valid integer"),
        ([-1], "prompt.0: Input should be greater than or equal to 0"),
        ("", "prompt: String should have at least 1 character"),
    ],
)
def test_a_wrong_prompt_gets_the_message_of_its_own_form(prompt: Any, said: str, port: int) -> None:
    status, error = ask(port, "completions", prompt=prompt)
    assert status == 400 and error["message"].startswith(said), error["message"]


def test_what_can_never_be_served_is_not_told_to_come_back(port: int) -> None:
    status, error = ask(port, "completions", prompt=["a"] * 64, n=8)
    assert status == 400 and "asks for 512 answers, and this server takes 12" in error["message"]


@pytest.mark.parametrize("where", ["content", "stop", "user", "model", "prompt"])
def test_half_a_character_is_the_clients_mistake(where: str, port: int) -> None:
    half = "a\ud800b"
    if where == "prompt":
        status, error = ask(port, "completions", prompt=half)
    elif where == "content":
        status, error = ask(port, messages=[{"role": "user", "content": half}])
    else:
        status, error = ask(port, **{**CHAT, where: half})
    assert status == 400 and "lone surrogate" in error["message"]
    assert ask(port, **{**CHAT, "user": "a \\ud800 that is only spelled, and 😀"})[0] == 200


def test_odd_texts_make_no_fault_of_ours(port: int) -> None:
    for text in ("\0", "\uffff", "é" * 3000, "</s>", "\u202e", "\u200b" * 50, "𓀀" * 20):
        assert ask(port, messages=[{"role": "user", "content": text}], max_tokens=1)[0] in (200, 400), text
        assert ask(port, "completions", prompt=text, max_tokens=1)[0] in (200, 400), text
    for body in (b"[" * 500_000, b'{"a":' * 100_000, b"\xff\xfe", b"nul", b'"\\ud800', b"1e999999"):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions", body, {"content-type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=20)
        assert caught.value.code == 400 and json.load(caught.value)["error"]["message"]


def test_large_bodies_leave_no_memory_behind(port: int) -> None:
    import psutil

    process, body = psutil.Process(), LARGE_BODIES["turns"]
    ask(port, **body)
    before = process.memory_info().rss
    for _ in range(30 if LARGE else 6):
        ask(port, **body)
    assert process.memory_info().rss - before < 120e6
