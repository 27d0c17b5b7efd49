"""Latency and throughput of servers on one model and machine: a line of JSON per server, clients and round.

    python -m benchmarks.serving.run --rounds 2                       # luthier, transformers serve, llama.cpp
    python -m benchmarks.serving.run --methods all --clients 1 8      # each method, unmerged, beside the merged model
    python -m benchmarks.serving.run --table                          # the tables in README.md

A model of Qwen2-0.5B's shape with random weights in bfloat16. Every client asks one question after another (about
`--words` tokens) and reads `--new` tokens as a stream; servers take turns within a round. The tokens of an answer are
those that were asked for: an answer that ends otherwise is an error. A stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.record import keep, put
from benchmarks.serving import servers
from benchmarks.serving.client import load
from benchmarks.serving.make import METHODS, make
from benchmarks.serving.table import HERE, RESULTS, tables

PLACE = HERE.parents[1] / "build" / "benchmarks" / "serving"


def measure(name: str, arm: servers.Arm, given: argparse.Namespace, round_: int) -> None:
    if why := servers.missing(arm, given.folder):
        print(f"{name}: left out, {why}", flush=True)
        return
    with servers.running(arm, given.folder, given.dtype) as (url, models, ready):
        options = {"words": given.words, "tokens": given.new, "extra": arm.extra}
        load(url, models, len(models), requests=1, seed=7, **{**options, "tokens": 8})  # warm
        for clients in given.clients:
            requests = max(1, given.requests // clients)
            found = load(url, models, clients, requests=requests, seed=100_000 * (round_ + 1), **options)
            line = {
                "arm": name,
                "round": round_,
                "layers": given.layers,
                "dtype": given.dtype,
                "words": given.words,
                "ready_s": round(ready, 1),
                **found,
                "processors": os.cpu_count(),
                **versions(),
            }
            keep(given.out, line)
            shown = {key: round(found[key], 1) for key in ("tokens_per_second", "first_ms", "each_ms")}
            print(json.dumps({"arm": name, "clients": clients, **shown}), flush=True)


def done(out: Path, name: str, round_: int) -> set[int]:
    """Numbers of clients that a stopped benchmark has measured of an arm in a round; only a whole arm is left out."""
    lines = [json.loads(text) for text in out.read_text().splitlines()] if out.is_file() else []
    return {line["clients"] for line in lines if (line["arm"], line["round"]) == (name, round_)}


def versions() -> dict[str, str]:
    import torch
    import transformers

    import luthier

    return {
        "luthier": luthier.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="*", default=list(servers.ARMS))
    parser.add_argument(
        "--methods", nargs="*", default=[], help="all, or names: each unmerged, beside the merged model"
    )
    parser.add_argument("--clients", nargs="*", type=int, default=[1, 4, 8, 16])
    parser.add_argument("--requests", type=int, default=16, help="of all clients together, at least one each")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--folder", type=Path, default=PLACE)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and the server with it
    if not given.table:
        names = list(METHODS) if given.methods == ["all"] else given.methods
        make(given.folder, given.layers, given.dtype, [*servers.ADAPTERS, *names])
        arms = {f"unmerged:{name}": servers.unmerged(name) for name in names}
        arms = {"merged": servers.ARMS["luthier"], **arms} if names else {n: servers.ARMS[n] for n in given.arms}
        for round_ in range(given.rounds):
            for name, arm in arms.items():
                if not set(given.clients) <= done(given.out, name, round_):
                    measure(name, arm, given, round_)
    put(tables(given.out))


if __name__ == "__main__":
    main()
