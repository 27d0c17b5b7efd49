"""A server under load for as long as you like: is every answer the one that this model gives alone, and does memory stay?

    python tools/soak_server.py --minutes 30 --clients 16 [--runs RUN ...]

Starts `luthier serve` over runs on one base (without --runs it trains small ones of seven methods on the embedded base),
asks each question of each model once, alone, and then lets all clients at it at once: whole answers, streams, streams that
are broken off, requests that are left before their answer, too large and malformed bodies, unknown models. Every answer is
compared with the one that was given alone, every broken-off stream with its beginning. Exit code 1 where an answer was
another's, a bad request was not refused as it should be, the server failed, or its memory grew: the median of the last third
of the time may be 3 % and 10 MB above that of the second third.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import openai
import psutil

METHODS = ["lora", "dora", "prefix", "prompt", "houlsby", "mam", "unipelt"]
QUESTIONS = [
    "Where is my order?",
    "你好，我想退货。",
    "Say it in one word.",
    "Was the film any good?",
    "Why?",
    *("one two three four five " * many for many in (1, 3, 7, 12, 20)),
]
TOKENS = 24
NEAR = {"bfloat16": 0.25, "float16": 0.05}
"""Difference of two log probabilities below which rounding decides between their tokens; in float32 1e-3."""


def train(place: Path) -> list[str]:
    for method in METHODS:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "luthier",
                "train",
                "--model",
                "builtin",
                "--data",
                "builtin:assistant",
                "--method",
                method,
                f"run={place / method}",
                "train.steps=40",
                "train.lr=3e-3",
                "evaluate.before=false",
                "evaluate.generate=0",
                "evaluate.forgetting=false",
            ],
            check=True,
            capture_output=True,
        )
        print(f"trained {method}", flush=True)
    return [str(place / method) for method in METHODS]


class Soak:
    def __init__(self, port: int, models: list[str], dtype: str) -> None:
        self.near = NEAR.get(dtype, 1e-3)
        self.port, self.client = (
            port,
            openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0, timeout=120),
        )
        self.models, self.counts, self.wrong = models, Counter[str](), list[str]()
        self.right: dict[tuple[str, int], str] = {}
        self.end = 0.0

    def options(self, model: str, number: int, **more: Any) -> Any:
        messages = [{"role": "user", "content": QUESTIONS[number]}]
        return {"model": model, "messages": messages, "temperature": 0, "max_tokens": TOKENS, **more}

    def alone(self) -> None:
        for model in self.models:
            for number in range(len(QUESTIONS)):
                made = self.client.chat.completions.create(
                    **self.options(model, number, logprobs=True, top_logprobs=2)
                ).choices[0]
                scored = made.logprobs.content or [] if made.logprobs else []
                # Where the two likeliest are as good as one, rounding decides, and that depends on the batch.
                if all(each.top_logprobs[0].logprob - each.top_logprobs[1].logprob > self.near for each in scored):
                    self.right[model, number] = made.message.content or ""

    def once(self, chance: random.Random) -> None:
        (model, number), kind = chance.choice(list(self.right)), chance.random()
        right = self.right[model, number]
        if kind < 0.4:
            made = self.client.chat.completions.create(**self.options(model, number))
            self.hold(made.choices[0].message.content == right and made.model == model, "whole", model, number)
        elif kind < 0.7:
            stream = self.client.chat.completions.create(**self.options(model, number, stream=True))
            text = "".join(event.choices[0].delta.content or "" for event in stream)
            self.hold(text == right, "stream", model, number)
        elif kind < 0.85:
            text, most = "", chance.randrange(1, 12)
            stream = self.client.chat.completions.create(**self.options(model, number, stream=True))
            for place, event in enumerate(stream):
                text += event.choices[0].delta.content or ""
                if place >= most:
                    break
            stream.close()
            self.hold(right.startswith(text), "broken off", model, number)
        elif kind < 0.92:
            self.left(json.dumps(self.options(model, number)).encode(), chance)
        else:
            self.bad(chance)

    def left(self, body: bytes, chance: random.Random) -> None:
        """A client that is gone before its answer is there, or before it has said all it wanted."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        line.putrequest("POST", "/v1/chat/completions")
        for name, value in headers.items():
            line.putheader(name, value)
        line.endheaders(body[: chance.choice([len(body), len(body) // 2])])
        time.sleep(chance.random() * 0.1)
        line.close()
        self.counts["left"] += 1

    def bad(self, chance: random.Random) -> None:
        body, status = chance.choice(
            [
                (b"x" * 300_000, 413),
                (b"{", 400),
                (b"[" * 5000, 400),
                (b'{"model": "nobody", "messages": [{"role": "user", "content": "a"}]}', 404),
                (json.dumps(self.options(self.models[0], 0, temperature="hot")).encode(), 400),
                (
                    json.dumps(
                        {"model": self.models[0], "messages": [{"role": "user", "content": "word " * 3000}]}
                    ).encode(),
                    400,
                ),
            ]
        )
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            line.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            found = line.getresponse().status
        except (BrokenPipeError, ConnectionResetError):  # hung up on us while we still sent
            found = 413
        finally:
            line.close()
        self.hold(found == status, f"refused with {status}", str(found), len(body))

    def hold(self, right: bool, what: str, *told: Any) -> None:
        self.counts[what] += 1
        if not right:
            self.wrong.append(f"{what}: {told}")

    def work(self, seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < self.end:
            try:
                self.once(chance)
            except openai.RateLimitError:
                self.counts["full"] += 1
                time.sleep(0.2)
            except (openai.OpenAIError, OSError, http.client.HTTPException) as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
                time.sleep(0.2)

    def run(self, minutes: float, clients: int, server: psutil.Process) -> list[float]:
        """Memory of the server in MB, once a second."""
        self.end = time.monotonic() + 60 * minutes
        threads = [threading.Thread(target=self.work, args=(seed,)) for seed in range(clients)]
        for thread in threads:
            thread.start()
        used: list[float] = []
        while time.monotonic() < self.end:
            time.sleep(1)
            used.append(server.memory_info().rss / 1e6)
            if len(used) % 60 == 0:
                print(
                    f"{len(used) // 60} min, {used[-1]:.0f} MB, {sum(self.counts.values())} requests, {len(self.wrong)} wrong",
                    flush=True,
                )
        for thread in threads:
            thread.join()
        return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--runs", nargs="*", default=[])
    parser.add_argument("--port", type=int, default=8437)
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        runs = given.runs or train(Path(place))
        log = Path(place) / "server.log"
        with log.open("w") as out:
            server = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "luthier",
                    "serve",
                    *runs,
                    "--port",
                    str(given.port),
                    "--max-body",
                    "200000",
                    "--max-batch",
                    "8",
                    "--max-waiting",
                    "12",
                    "--dtype",
                    given.dtype,
                ],
                stdout=out,
                stderr=out,
                env=os.environ | {"NO_COLOR": "1"},
            )
        while "listening" not in log.read_text():
            time.sleep(0.2)
            if server.poll() is not None:
                raise SystemExit(log.read_text())
        soak = Soak(given.port, ["base", *(Path(run.split("=", maxsplit=1)[0]).name for run in runs)], given.dtype)
        soak.alone()
        print(f"{len(soak.right)} questions with one answer each", flush=True)
        used = soak.run(given.minutes, given.clients, psutil.Process(server.pid))
        with urllib.request.urlopen(f"http://127.0.0.1:{given.port}/health") as answer:
            health = json.loads(answer.read())
        server.send_signal(signal.SIGTERM)
        stopped = server.wait(60)
        told = log.read_text()
    third = len(used) // 3
    before, after = median(used[third : 2 * third]), median(used[2 * third :])
    grown = after > 1.03 * before + 10
    print(
        json.dumps(
            {
                "requests": dict(soak.counts),
                "wrong": len(soak.wrong),
                "health": health,
                "memory_mb": {"second third": round(before), "last third": round(after), "most": round(max(used))},
                "exit": stopped,
            },
            indent=1,
        )
    )
    for line in soak.wrong[:20]:
        print(line)
    if soak.wrong or grown or stopped or health["failed"] or "Traceback" in told:
        print(told[:2000], told[-2000:], sep="\n...\n")
        raise SystemExit("memory grew" if grown else "something was wrong")


if __name__ == "__main__":
    main()
