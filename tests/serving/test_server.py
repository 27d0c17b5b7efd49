"""The server, asked by OpenAI's own client, by curl and by raw sockets."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from luthier.serving.engine.engine import Engine
from luthier.serving.http.settings import ServerLimits

HI = [{"role": "user", "content": "Is it good?"}]
LIMITS = ServerLimits(max_prompt=120, max_tokens=200, max_body=20_000)


@pytest.fixture(scope="module")
def engine(adapter: Callable[..., Path]) -> Engine:
    given = [f"one={adapter('lora')}", f"two={adapter('lora', seed=5)}", f"bottle={adapter('houlsby')}"]
    return Engine.open(given, rows=4, waiting=6)


@pytest.fixture(scope="module")
def url(engine: Engine, serving: Callable[..., str]) -> str:
    return serving(engine, limits=LIMITS)


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def post(url: str, body: Any, **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read()), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), dict(error.headers)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_every_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["base", "one", "two", "bottle"]
    assert client.models.retrieve("bottle").id == "bottle"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("three")


@pytest.mark.parametrize("model", ["base", "one", "two", "bottle"])
def test_a_stream_says_what_an_answer_says(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=HI, temperature=0, max_tokens=20)
    events = list(
        client.chat.completions.create(
            model=model, messages=HI, temperature=0, max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
    )
    choice = whole.choices[0]
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == choice.message.content
    assert [event.choices[0].finish_reason for event in events if event.choices][-1] == choice.finish_reason
    assert events[-1].usage == whole.usage and whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    # The random bottleneck says bytes that are no characters, which are held back.
    assert len(events) > 3 or model == "bottle", "piece by piece"


def test_a_dialogue_is_rendered_by_the_models_own_template(client: openai.OpenAI, engine: Engine) -> None:
    from luthier.rendering.example import Message

    template = engine.models["one"].template
    ids = template.prompt_ids([Message("system", "Be brief."), Message("user", "Is it good?")])
    messages: Any = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        *HI,
    ]
    chat = client.chat.completions.create(model="one", messages=messages, temperature=0, max_tokens=9)
    plain = client.completions.create(model="one", prompt=ids, temperature=0, max_tokens=9)
    assert chat.choices[0].message.content == plain.choices[0].text
    assert chat.usage is not None and chat.usage.prompt_tokens == len(ids)


def test_seeds_choices_and_log_probabilities(client: openai.OpenAI) -> None:
    def ask(**options: Any) -> list[str]:
        made = client.chat.completions.create(model="one", messages=HI, max_tokens=12, **options)
        return [choice.message.content or "" for choice in made.choices]

    assert ask(seed=4) == ask(seed=4) != ask(seed=5)
    three = ask(seed=4, n=3)
    assert len(set(three)) == 3 and three[0] == ask(seed=4)[0]
    assert ask(seed=4, top_p=1e-6) == ask(temperature=0)
    scored = client.chat.completions.create(
        model="one", messages=HI, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    ).choices[0]
    assert scored.logprobs is not None and scored.logprobs.content is not None
    for token in scored.logprobs.content:
        assert len(token.top_logprobs) == 3 and token.logprob == token.top_logprobs[0].logprob <= 0
    plain = client.completions.create(model="one", prompt=["A", "B"], max_tokens=4, temperature=0, logprobs=2, n=2)
    assert [choice.index for choice in plain.choices] == [0, 1, 2, 3]
    assert plain.choices[0].text == plain.choices[1].text and plain.choices[0].logprobs is not None
    assert len(plain.choices[0].logprobs.tokens or []) == 4


def test_stop_texts_end_an_answer(client: openai.OpenAI) -> None:
    def ask(**options: Any) -> Any:
        return client.chat.completions.create(model="two", messages=HI, temperature=0, max_tokens=40, **options)

    said = ask().choices[0].message.content
    for stop in (said[6:8], [said[9:11], said[4:7]]):
        stops = [stop] if isinstance(stop, str) else stop
        made = ask(stop=stop).choices[0]
        assert made.message.content == said[: min(said.find(text) for text in stops)] and made.finish_reason == "stop"
        streamed = "".join(event.choices[0].delta.content or "" for event in ask(stop=stop, stream=True))
        assert streamed == made.message.content


def test_many_at_once_each_get_their_own(client: openai.OpenAI, engine: Engine) -> None:
    asked = [(model, f"Number {i}?") for i in range(6) for model in ("base", "one", "two", "bottle")]

    def ask(question: tuple[str, str]) -> str:
        while True:
            try:
                made = client.chat.completions.create(
                    model=question[0], messages=[{"role": "user", "content": question[1]}], temperature=0, max_tokens=15
                )
                assert made.model == question[0]
                return made.choices[0].message.content or ""
            except openai.RateLimitError as full:
                time.sleep(float(full.response.headers["retry-after"]) / 20)

    alone = [ask(question) for question in asked]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, asked))
    assert together == alone and len(set(alone)) > len(asked) / 2


def test_more_than_may_wait_are_told_to_come_back(client: openai.OpenAI, engine: Engine) -> None:
    def ask(_: int) -> str:
        try:
            client.chat.completions.create(model="base", messages=HI, max_tokens=60, extra_body={"ignore_eos": True})
        except openai.RateLimitError as full:
            assert int(full.response.headers["retry-after"]) >= 1 and "already waiting" in full.message
            return "full"
        return "answered"

    with ThreadPoolExecutor(30) as pool:
        found = list(pool.map(ask, range(30)))
    assert found.count("answered") >= 10 and found.count("full") >= 1
    assert not engine.waiting and not engine.running


def test_who_leaves_is_not_worked_for(client: openai.OpenAI, engine: Engine, url: str) -> None:
    before = engine.counts["cancelled"]
    options: Any = {"model": "one", "messages": HI, "max_tokens": 150, "extra_body": {"ignore_eos": True}}
    stream = client.chat.completions.create(**options, stream=True)
    next(iter(stream))
    stream.close()
    wait_for(lambda: engine.counts["cancelled"] == before + 1 and not engine.running)

    body = json.dumps({"model": "one", "messages": HI, "max_tokens": 190, "ignore_eos": True}).encode()
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        wait_for(lambda: bool(engine.running))
    wait_for(lambda: engine.counts["cancelled"] == before + 2 and not engine.running)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "three"}, 404, "there is no model 'three'"),
        ({"model": "../../etc/passwd"}, 404, "there is no model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hi"}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "</s>"}]}, 400, "a special token"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "long " * 300}]}, 400, "tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 201}, 400, "at most 200 tokens"),
        ({"max_tokens": 3000}, 400, "more than the model's"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "differ"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"temperature": 2.5}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 9}, 400, "n:"),
        ({"top_logprobs": 2}, 400, "needs logprobs"),
        ({"tools": []}, 400, "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"tempreature": 1}, 400, "tempreature"),
        ({"stop": ["a"] * 9}, 400, "stop"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(url: str, change: dict[str, Any], status: int, words: str) -> None:
    found, answer, _ = post(f"{url}/v1/chat/completions", {"model": "one", "messages": HI, **change})
    assert found == status and words in answer["error"]["message"], answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_bodies_that_are_none(url: str) -> None:
    where = f"{url}/v1/chat/completions"
    assert post(where, b"{")[0] == 400 and "invalid JSON" in post(where, b"{")[1]["error"]["message"]
    assert post(where, b"\xff\xfe")[0] == 400 and post(where, b"")[0] == 400 and post(where, b"[]")[0] == 400
    assert post(where, b'{"temperature": NaN, "model": "one", "messages": [{"role":"user","content":"a"}]}')[0] == 400
    assert post(where, b"[" * 9000)[0] == 400
    status, answer, _ = post(where, b"x" * 20_001)
    assert status == 413 and "20000 bytes" in answer["error"]["message"]
    status, answer, _ = post(where, {"model": "one", "messages": HI}, **{"content-type": "text/plain"})
    assert status == 415 and "application/json" in answer["error"]["message"]
    assert post(f"{url}/v1/nothing", {})[0] == 404 and post(f"{url}/v1/models", {})[0] == 405
    for prompt in ([], "", [[]], [400], [-1], ["a", 5], [2**40]):
        assert post(f"{url}/v1/completions", {"model": "one", "prompt": prompt})[0] == 400, prompt


def test_a_body_that_grows_past_its_limit_is_cut_off(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        answer = b""
        try:
            for _ in range(100):
                raw.sendall(b"400\r\n" + b"a" * 1024 + b"\r\n")
        except OSError:
            pass  # it hung up on us, which is right
        try:
            answer = raw.recv(4096)
        except OSError:
            return
    assert b" 413 " in answer.split(b"\r\n")[0]


def test_pages_of_other_names_may_not_ask(url: str) -> None:
    status, answer, _ = post(f"{url}/v1/completions", {"model": "one", "prompt": "a"}, host="evil.example")
    assert status == 403 and answer["error"]["code"] == "invalid_host"
    assert post(f"{url}/v1/completions", {"model": "one", "prompt": "a"}, host="localhost:1")[0] == 200


def test_a_key_is_asked_for_where_there_is_one(engine: Engine, serving: Callable[..., str], url: str) -> None:
    keyed = serving(Engine(list(engine.models.values())[3:]), key="sesame", local=False)
    right = openai.OpenAI(base_url=f"{keyed}/v1", api_key="sesame", max_retries=0)
    wrong = openai.OpenAI(base_url=f"{keyed}/v1", api_key="sesam", max_retries=0)
    assert [model.id for model in right.models.list()] == ["bottle"]
    with pytest.raises(openai.AuthenticationError):
        wrong.models.list()
    with urllib.request.urlopen(f"{keyed}/health") as health:
        assert json.loads(health.read())["status"] == "ok"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here")
def test_curl_gets_a_stream(url: str) -> None:
    body = json.dumps({"model": "one", "messages": HI, "max_tokens": 4, "stream": True, "temperature": 0})
    made = subprocess.run(
        ["curl", "-sSN", f"{url}/v1/chat/completions", "-H", "content-type: application/json", "-d", body],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    events = made.strip().split("\n\n")
    assert events[-1] == "data: [DONE]" and all(event.startswith("data: ") for event in events)
    assert json.loads(events[-2][6:])["choices"][0]["finish_reason"] in ("length", "stop")


def test_a_fault_of_the_model_ends_its_own_answers_only(
    adapter: Callable[..., Path], serving: Callable[..., str]
) -> None:
    engine = Engine.open([f"one={adapter('lora')}", f"bottle={adapter('houlsby')}"])
    url = serving(engine)
    scheduler = engine.models["bottle"].scheduler
    scheduler.decode = lambda: (_ for _ in ()).throw(RuntimeError("out of memory"))  # type: ignore[method-assign]
    status, answer, _ = post(f"{url}/v1/chat/completions", {"model": "bottle", "messages": HI, "max_tokens": 9})
    assert status == 500 and "RuntimeError" in answer["error"]["message"] and "memory" not in str(answer)
    assert post(f"{url}/v1/chat/completions", {"model": "one", "messages": HI, "max_tokens": 9})[0] == 200
    assert not scheduler.rows and not engine.running


def test_stopping_lets_running_answers_end(adapter: Callable[..., Path]) -> None:
    import uvicorn

    from luthier.serving.http.server import application

    engine = Engine.open([f"one={adapter('lora')}"])
    server = uvicorn.Server(uvicorn.Config(application(engine, ServerLimits(grace=20)), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client:
        stream: Any = client.chat.completions.create(
            model="one", messages=HI, max_tokens=200, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        server.should_exit = True
        last = list(stream)[-1]
    assert last.choices[0].finish_reason == "length"
    thread.join(20)
    assert not thread.is_alive() and not engine.thread.is_alive()
