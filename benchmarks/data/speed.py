"""Reading, checking and tokenizing chat rows: Luthier beside datasets.map with the same tokenizer, in alternation.

    python -m benchmarks.data.speed --rows 100000 --rounds 3
    python -m benchmarks.data.speed --rows 1000000 --rounds 1

Each arm runs in a process of its own on the same file, with an empty cache unless it says `second start`. Seconds
are from the call to the last row (imports not counted), memory is the largest sum of the proportional set sizes (PSS)
of the process and its children, sampled every 0.2 s. Lines go to speed.jsonl beside this file; the tables of
README.md are made from it by `python -m benchmarks.data.speed --table`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.record import Table, keep, put

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "speed.jsonl", HERE / "README.md"
WORKERS = 2

ARMS = {
    "luthier": "Luthier: read, proved masks, tokenized",
    "luthier-again": "Luthier, second start",
    "luthier-check": "Luthier: `luthier check`, whole report",
    "datasets": "datasets.map: template, mask by the prompt's length, one row at a time",
    "datasets-batched": "datasets.map: the same, batches of 1,000",
    "datasets-again": "datasets.map, second start",
    "datasets-plain": "datasets.map: template and tokens, batches of 1,000, no mask",
}


def write_rows(path: Path, count: int) -> None:
    """Chat rows of about 100 tokens of the embedded base, each different."""
    from luthier.builtin import DATA

    texts = [json.loads(line)["text"] for line in (DATA / "reviews/train.jsonl").read_text().splitlines()]
    texts = [text for text in texts if text.isascii()]
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as out:
        for number in range(count):
            one, two, three = draw.choices(texts, k=3)
            user = f"Review {number}: {one} {two[:40]} What do you think of it?"
            row = {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": three}]}
            out.write(json.dumps(row) + "\n")


def ours(file: Path) -> int:
    from luthier.data.encode import encode
    from luthier.data.prepare import load
    from luthier.models.load import load_tokenizer, locate
    from luthier.recipe.config import RunConfig
    from luthier.rendering.chat_template import Template

    config = RunConfig.model_validate(
        {"data": {"path": str(file), "workers": WORKERS, "validation": "none"}, "model": {"path": "builtin"}}
    )
    data = load(config.data, config.task)
    encode(data, Template(load_tokenizer(config.model, locate(config.model))), config.data, 1024)
    assert len(data.rows[len(data.rows) - 1].ids) == data.rows.lengths[-1]
    return data.train.tokens


def check(file: Path) -> int:
    from luthier.pipeline import train
    from luthier.recipe.config import RunConfig

    config = RunConfig.model_validate(
        {"data": {"path": str(file), "workers": WORKERS, "validation": "none"}, "model": {"path": "builtin"}}
    )
    with tempfile.TemporaryDirectory() as out:
        return int(train.check(config, Path(out))["account"]["train"]["tokens"])


def theirs(file: Path, *, batched: bool, mask: bool) -> int:
    """What TRL's SFTTrainer does for rows of prompt and completion: both rendered, the prompt's tokens masked."""
    import datasets

    from luthier.models.load import load_tokenizer, locate
    from luthier.recipe.config import RunConfig
    from luthier.rendering.chat_template import Template

    tokenizer = Template(load_tokenizer(RunConfig().model, locate(RunConfig().model))).tokenizer

    def one(row: dict[str, Any]) -> dict[str, Any]:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt = tokenizer.apply_chat_template(row["messages"][:-1], tokenize=False, add_generation_prompt=True)
        length = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        return {"input_ids": ids, "labels": [-100] * length + ids[length:]}

    def several(rows: dict[str, Any]) -> dict[str, Any]:
        texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in rows["messages"]]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        if not mask:
            return {"input_ids": ids}
        prompts = [
            tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
            for messages in rows["messages"]
        ]
        lengths = [len(prompt) for prompt in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
        return {"input_ids": ids, "labels": [[-100] * n + row[n:] for row, n in zip(ids, lengths, strict=True)]}

    rows = datasets.load_dataset("json", data_files=str(file), split="train")
    made = rows.map(several if batched else one, batched=batched, num_proc=WORKERS, remove_columns=rows.column_names)
    return sum(len(made[number]["input_ids"]) for number in (0, len(made) - 1))


def work(arm: str, file: Path) -> None:
    """One arm, in this process: a line of JSON with its seconds."""
    import datasets
    import transformers

    import luthier.data.encode
    import luthier.models.load  # noqa: F401

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    begun = time.perf_counter()
    if arm.startswith("luthier"):
        tokens = check(file) if arm == "luthier-check" else ours(file)
    else:
        tokens = theirs(file, batched=arm != "datasets", mask=arm != "datasets-plain")
    print(json.dumps({"seconds": round(time.perf_counter() - begun, 3), "tokens": tokens}))


def measured(arm: str, file: Path, place: Path, rows: int) -> dict[str, Any]:
    """One arm in a process of its own, watched."""
    import psutil

    if not arm.endswith("-again"):
        shutil.rmtree(place, ignore_errors=True)
    env = {**os.environ, "LUTHIER_CACHE": str(place / "luthier"), "HF_DATASETS_CACHE": str(place / "datasets")}
    env["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the processors
    started = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.data.speed", "--work", arm, "--file", str(file)],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    process, peak = psutil.Process(started.pid), 0
    while started.poll() is None:
        total = 0
        try:
            for each in [process, *process.children(recursive=True)]:
                try:
                    total += each.memory_full_info().pss
                except psutil.Error:
                    continue
        except psutil.Error:
            pass
        peak = max(peak, total)
        time.sleep(0.2)
    assert started.stdout is not None
    line = json.loads(started.stdout.read().splitlines()[-1])
    line |= {"arm": arm, "rows": rows, "rows_per_second": round(rows / line["seconds"], 1), "peak_mb": peak // 2**20}
    return line | {"workers": WORKERS, "processors": os.cpu_count(), "python": platform.python_version()}


def versions() -> dict[str, str]:
    import datasets
    import tokenizers
    import transformers

    import luthier

    return {m.__name__: m.__version__ for m in (luthier, datasets, tokenizers, transformers)}


def tables() -> list[Table]:
    found: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for text in RESULTS.read_text().splitlines():
        line = json.loads(text)
        found[line["rows"], line["arm"]].append(line)
    lines = []
    for rows in sorted({rows for rows, _ in found}):
        base = mean(line["rows_per_second"] for line in found[rows, "luthier"])
        lines += [
            f"### {rows:,} rows",
            "",
            "| what | rows/s | Luthier's rows/s over it | seconds | peak memory |",
            "|---|---|---|---|---|",
        ]
        for arm, title in ARMS.items():
            if runs := found[rows, arm]:
                speeds = [run["rows_per_second"] for run in runs]
                ratio = "" if arm.endswith("-again") else f"{base / mean(speeds):.2f}"
                spread = f" ± {stdev(speeds):,.0f}" if len(speeds) > 1 else ""
                lines.append(
                    f"| {title} | {mean(speeds):,.0f}{spread} | {ratio} | "
                    f"{mean(run['seconds'] for run in runs):,.1f} | {max(run['peak_mb'] for run in runs):,} MB |"
                )
        runs = found[rows, "luthier"]
        lines += [
            "",
            f"{len(runs)} round{'s' * (len(runs) > 1)}, {runs[0]['tokens'] / rows:.0f} tokens a row, {runs[0]['workers']} "
            f"processes on {runs[0]['processors']} processors; "
            f"{', '.join(f'{name} {version}' for name, version in runs[0]['versions'].items())}.",
            "",
        ]
    return [Table(PAGE, "python -m benchmarks.data.speed --table", "\n".join(lines), (RESULTS,))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--work", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.table:
        put(tables())
        return
    if given.work:
        work(given.work, given.file)
        return
    with tempfile.TemporaryDirectory(prefix="luthier-speed-") as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file, given.rows)
        for number in range(given.rounds):
            for arm in given.arms:
                place = Path(folder) / ("theirs" if arm.startswith("datasets") else "ours")
                line = measured(arm, file, place, given.rows) | {"round": number, "versions": versions()}
                keep(RESULTS, line)
                print(json.dumps({k: line[k] for k in ("arm", "seconds", "rows_per_second", "peak_mb")}), flush=True)


if __name__ == "__main__":
    main()
