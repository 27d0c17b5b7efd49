"""The check of a live endpoint: servers that answer as the run, as its base, at half its scale, or as another run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.cli.commands.serve import command
from luthier.core.errors import InputError, LuthierError, Unproved
from luthier.pipeline import served as pipeline_served
from luthier.pipeline.evaluate import open_run
from luthier.pipeline.served import check_served, refuse
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.serving.backends import KEYS
from luthier.serving.engine.engine import Engine
from luthier.serving.vllm import launch
from tests.serving.small import Stub, served

KEY = "hidden-word"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(name: str, *overrides: str) -> Path:
        run = tmp_path_factory.mktemp(name) / name
        quiet = ["evaluate.generate=0", "evaluate.forgetting=false", "evaluate.before=false"]
        train(RunConfig.load(None, [f"run={run}", "data=builtin:assistant", *quiet, *overrides]))
        return run

    return make


@pytest.fixture(scope="module")
def run(trained: Callable[..., Path]) -> Path:
    return trained("mine", "train.steps=8", "train.lr=0.01")


def adapter(run: Path, folder: Path, **settings: Any) -> Path:
    """The run's adapter with other settings."""
    shutil.copytree(run / "adapter", folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "builtin", **settings}))
    return folder


@pytest.fixture(autouse=True)
def few_prompts_and_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pipeline_served, "CANDIDATES", 6)
    monkeypatch.setattr(pipeline_served, "ANSWER", 10)


@pytest.fixture(scope="module")
def url(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Luthier's own server: the run, its base, half of its scale, one module less, and another adapter."""
    place = tmp_path_factory.mktemp("adapters")
    settings = json.loads((run / "adapter" / "adapter_config.json").read_text())
    half = adapter(run, place / "half", lora_alpha=settings["lora_alpha"] / 2)
    other = adapter(run, place / "other")
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "adapter_model.safetensors")
    torch.manual_seed(0)
    moved = {k: v[:, torch.randperm(v.size(1))].contiguous() if "lora_B" in k else v for k, v in weights.items()}
    save_file(moved, other / "adapter_model.safetensors", {"format": "pt"})
    partly = adapter(run, place / "partly")
    kept = {k: torch.zeros_like(v) if ".mlp." in k and "lora_B" in k else v for k, v in weights.items()}
    save_file(kept, partly / "adapter_model.safetensors", {"format": "pt"})
    engine = Engine.open([str(run), str(half), str(other), str(partly)], rows=4)
    with served(engine, key=KEY) as made:
        yield made
    engine.close()


def test_luthiers_own_server_answers_as_the_run_to_rounding(run: Path, url: str) -> None:
    report = check_served(str(run), url.removesuffix("/v1"), key=KEY, dtype="float32")
    refuse([report])
    assert report["verdict"] == "run" and report["telling"] >= 4
    for prompt in report["prompts"]:
        assert prompt["answers_as"] in ("run", "both") and prompt["asked"] == "chat"
        assert prompt["as_run"] == prompt["run_tokens"], prompt
    found = report["logprobs"]
    assert found["from_run"] < 1e-4 and found["from_base"] > 0.3 and abs(found["scale"] - 1) < 1e-3


@pytest.mark.parametrize(
    ("model", "verdict", "says"),
    [
        ("base", "base", "answers as its BASE: the adapter is not applied"),
        ("half", "neither", "of the adapter's effect arrives"),
        ("partly", "neither", "answers as neither"),
        ("other", "neither", "answers as neither"),
    ],
)
def test_an_adapter_that_is_not_applied_or_not_as_trained_is_found(
    run: Path, url: str, model: str, verdict: str, says: str
) -> None:
    report = check_served(f"{model}={run}", url, key=KEY)
    assert report["verdict"] == verdict
    with pytest.raises(Unproved, match=says):
        refuse([report])
    if model == "base":
        assert abs(report["logprobs"]["scale"]) < 1e-3 and report["logprobs"]["from_base"] < 1e-4


class Server:
    """An endpoint that answers with a model of transformers, as vLLM (`echo`), or with texts alone."""

    def __init__(
        self, model: Any, template: Any, *, logprobs: bool = True, echo: bool = True, rounds: float = 0
    ) -> None:
        self.seen: list[dict[str, Any]] = []
        lock, server = threading.Lock(), self

        def score(ids: list[int]) -> torch.Tensor:
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids])).logits[0]
            if rounds:  # as in a type with fewer digits
                logits = (logits / rounds).round() * rounds
            return logits.log_softmax(-1)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer({"data": [{"id": "mine:latest"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.seen.append({**body, "path": self.path})
                chat = self.path == "/v1/chat/completions"
                if not chat and not echo:
                    self.send_error(404)
                    return
                with lock:
                    self.answer({"choices": [self.choice(body, chat)]})

            def choice(self, body: dict[str, Any], chat: bool) -> dict[str, Any]:
                tokenizer = template.tokenizer
                ids = list(body.get("prompt", ()))
                if chat:
                    ids = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)["input_ids"]
                made, values, start = list(ids), [], len(ids)
                while len(made) - start < body["max_tokens"] and not (
                    len(made) > start and made[-1] in template.end_ids
                ):
                    last = score(made)[-1]
                    made.append(int(last.argmax()))
                    values.append(float(last.max()))
                text = tokenizer.decode(made[start:], skip_special_tokens=True)
                reason = "stop" if made[-1] in template.end_ids else "length"
                if chat:
                    found = {"content": [{"token": "?", "logprob": value} for value in values]} if logprobs else None
                    return {"message": {"content": text}, "finish_reason": reason, "logprobs": found}
                if body.get("echo"):
                    own = score(ids)[range(len(ids) - 1), ids[1:]].tolist()
                    values = [None, *own, *values]
                return {"text": text, "finish_reason": reason, "logprobs": {"token_logprobs": values}}

            def answer(self, value: Any) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(value).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def models(run: Path) -> tuple[Any, Any, Any]:
    """The run's model, its base, and its template."""
    loaded, base = open_run(run, measures=False)[0], open_run(run, measures=False)[0]
    return loaded.model, base.model.unload(), loaded.template  # type: ignore[operator]


@pytest.fixture
def server(models: tuple[Any, Any, Any]) -> Iterator[Callable[..., Server]]:
    """Start one that answers with the run's model, or with its base's."""
    made: list[Server] = []

    def start(*, base: bool = False, **options: Any) -> Server:
        made.append(Server(models[base], models[2], **options))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_vllm_scores_the_held_out_answers_themselves(run: Path, server: Callable[..., Server]) -> None:
    there = server()
    report = check_served(str(run), there.url, dtype="float32")
    assert report["model"] == "mine:latest", "Ollama's names have tags"
    assert report["verdict"] == "run" and report["logprobs"]["of"] == "held-out answers"
    assert report["logprobs"]["tokens"] > 40 and report["logprobs"]["from_run"] < 1e-4
    assert {each["path"] for each in there.seen} == {"/v1/chat/completions", "/v1/completions"}
    assert all(each["temperature"] == 0 and each["model"] == "mine:latest" for each in there.seen)
    asbase = check_served(str(run), server(base=True).url)
    assert asbase["verdict"] == "base" and asbase["logprobs"]["of"] == "held-out answers"


def test_rounding_is_no_difference_and_a_tight_bound_finds_it(run: Path, server: Callable[..., Server]) -> None:
    there = server(rounds=0.06)  # bfloat16 has steps of 1/16 for logits from 8 to 16
    assert check_served(str(run), there.url)["verdict"] == "run"
    assert check_served(str(run), there.url, dtype="float32")["verdict"] == "neither"


def test_texts_alone_decide_where_there_are_no_log_probabilities(run: Path, server: Callable[..., Server]) -> None:
    for base, verdict in ((False, "run"), (True, "base")):
        report = check_served(str(run), server(base=base, logprobs=False, echo=False).url)
        assert report["logprobs"] is None and report["verdict"] == verdict


def test_a_run_that_answers_as_its_base_proves_nothing(
    run: Path, server: Callable[..., Server], models: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_served, "base_model", lambda loaded: nullcontext(loaded.model))
    report = check_served(str(run), server().url)
    assert report["verdict"] == "both" and report["telling"] == 0
    with pytest.raises(Unproved, match="cannot be told: the run and its base answer alike"):
        refuse([report])


def test_plain_text_is_asked_for_by_its_tokens(trained: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(
        "".join(f'{{"text": "The kettle number {n} sings at noon."}}\n' for n in range(30))
    )
    plain = trained("plain", f"data={tmp_path / 'text.jsonl'}", "task=complete", "train.steps=4", "train.lr=0.01")
    engine = Engine.open([str(plain)])
    with served(engine) as made:
        report = check_served(str(plain), made, dtype="float32")
    engine.close()
    assert report["verdict"] == "run" and {each["asked"] for each in report["prompts"]} == {"tokens"}


def test_json_is_all_that_is_printed(run: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    command([str(run)], check=url, as_json=True, api_key=KEY)
    (report,) = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "run" and report["model"] == "mine"


VLLM = """#!{python}
# Stands for vLLM: passes requests on, and serves an adapter as its base.
import json, os, signal, sys, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/health":
            self.send_response(200)
            self.end_headers()
            return
        data = None
        if length := self.headers["content-length"]:
            body = json.loads(self.rfile.read(int(length)))
            data = json.dumps(dict(body, model="base")).encode()
        headers = dict((name, self.headers[name]) for name in ("Authorization", "Content-Type"))
        assert headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        try:
            with urllib.request.urlopen(urllib.request.Request({url!r} + self.path[3:], data, headers)) as response:
                status, made = 200, response.read()
        except urllib.error.HTTPError as error:
            status, made = error.code, error.read()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(made)

    do_POST = do_GET

    def log_message(self, *_):
        pass

signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
port = int(sys.argv[sys.argv.index("--port") + 1])
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def vllm(url: str, tmp_path: Path) -> Path:
    program = tmp_path / "vllm"
    program.write_text(VLLM.format(python=sys.executable, url=url))
    program.chmod(0o755)
    return program


def test_a_vllm_that_serves_the_base_is_stopped(
    run: Path, vllm: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(Unproved, match="vLLM was stopped") as caught:
        command([str(run)], engine="vllm", vllm=str(vllm), port=0, api_key=KEY)
    out, err = capfd.readouterr()
    assert caught.value.exit_code == 1 and "--no-check" in caught.value.fix
    assert "mine at http://127.0.0.1:" in err and "the adapter is not applied" in err
    assert "Traceback" not in err and KEY not in out + err
    table = [line for line in out.splitlines() if line.rstrip().endswith(" the BASE")]
    assert len(table) > 4 and all(len(line) <= 80 for line in table), out
    assert "> mine: answers as its BASE: the adapter is not applied" in out
    address = err.split("mine at ")[1].split("/v1")[0]
    with pytest.raises(InputError, match="cannot be reached"):
        check_served(str(run), address, key=KEY)


def test_a_vllm_that_is_proved_or_cannot_be_asked_goes_on_until_a_signal(
    vllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The signal is passed on, the exit code is vLLM's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words, where = [str(vllm), "--port", str(port)], f"http://127.0.0.1:{port}"
    before = signal.getsignal(signal.SIGTERM)
    for check in (["true"], ["sh", "-c", "exit 2"]):
        wait = launch.subprocess.Popen.wait

        def stop(process: Any, timeout: float | None = None, wait: Any = wait) -> int:
            if process.args == words:  # the check is over, and it waits for vLLM
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            return int(wait(process, timeout))

        monkeypatch.setattr(launch.subprocess.Popen, "wait", stop)
        assert launch._supervise(words, {**os.environ, "VLLM_API_KEY": KEY}, where, check, KEY) == 7
        monkeypatch.setattr(launch.subprocess.Popen, "wait", wait)
        assert ("vLLM was NOT checked" in capfd.readouterr().err) == (check[0] == "sh")
    assert signal.getsignal(signal.SIGTERM) is before
    assert launch._supervise(["sh", "-c", "exit 3"], {**os.environ}, where, [], KEY) == 3, "it never came up"


def test_what_cannot_be_checked_is_said_with_the_fix(run: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_served, "CANDIDATES", 1)

    def refused(given: str, where: str, **options: Any) -> LuthierError:
        with pytest.raises(InputError) as caught:
            check_served(given, where, **options)
        return caught.value

    error = refused(f"nobody={run}", url, key=KEY)
    assert "there are: base, mine, half, other, partly" in error.message and "NAME=RUN" in error.fix
    assert "requires an API key" in refused(str(run), url).message
    assert "rejects the key in LUTHIER_API_KEY" in refused(str(run), url, key="wrong").message
    assert "cannot be reached: Connection refused" in refused(str(run), "http://127.0.0.1:9").message
    assert "unencrypted" in refused(str(run), "http://far.example", key=KEY).message
    assert "neither a run nor an export" in refused(str(run / "adapter"), url).message
    away = Stub((307, {"location": "http://elsewhere.example/v1"}, {}), models=("mine",))
    assert "redirects to http://elsewhere.example/v1" in refused(str(run), away.url, key=KEY).message
    assert all("elsewhere" not in each.get("Host", "") for each in away.headers)
    away.close()
    thinks = {"choices": [{"message": {"content": "a", "reasoning_content": "b"}, "finish_reason": "stop"}]}
    stub = Stub((200, {}, thinks), models=("mine",))
    assert "takes the reasoning out" in refused(str(run), stub.url).message
    stub.close()
    odd = Stub((200, {}, {"choices": []}), models=("mine",))
    with pytest.raises(LuthierError, match="no answer of OpenAI's API"):
        check_served(str(run), odd.url)
    odd.close()
    slow = Stub([1, ""], models=("mine",))
    monkeypatch.setattr("luthier.serving.backends.TIMEOUT", 0.2)
    with pytest.raises(LuthierError, match=r"no answer came|timed out"):
        check_served(str(run), slow.url)
    slow.close()
