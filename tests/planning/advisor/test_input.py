"""What is typed: sizes and times, mistakes, and the command line as a user meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import app
from luthier.core.errors import InputError
from luthier.methods.base import METHODS
from luthier.models.settings import ModelConfig
from luthier.planning import machine
from luthier.planning.advisor.question import ChooseOptions, latency_of, seconds_of, size_of
from luthier.planning.plan import HOLDS, PlanInputs, Workload, estimate, tuned_skeleton
from luthier.tasks.base import TASKS
from luthier.training.settings import TrainConfig
from tests.conftest import luthier, model_config
from tests.planning.advisor.conftest import Choose


@pytest.mark.parametrize(
    ("text", "size"),
    [("12GB", 12 * 10**9), ("12 gb", 12 * 10**9), ("24GiB", 24 * 2**30), ("1.5TB", 1.5e12), ("80000000000", 8e10)],
)
def test_sizes(text: str, size: float) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("45min", 2700), ("2h", 7200), ("1.5d", 129600)]
)
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"memory": "-3GB"}, "--memory: '-3GB' is not a size"),
        ({"memory": "a lot"}, "--memory: 'a lot' is not a size"),
        ({"memory": "12"}, "--memory: 12 is 12 bytes"),
        ({"memory": "0GB"}, "--memory: 0GB is 0 bytes"),
        ({"time": "soon"}, "--time: 'soon' is not a time"),
        ({"time": "0h"}, "--time: '0h' is not a time"),
        ({"latency": "fast"}, "--latency: 'fast' is neither"),
        ({"latency": "nan"}, "--latency: 'nan' is neither"),
        ({"variants": 0}, "--variants: 0 is less than one"),
        ({"devices": -1}, "--devices: -1 is less than one"),
        ({"rows": 0}, "--rows: 0 is less than one"),
    ],
)
def test_what_cannot_be_is_one_clear_error(options: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError) as caught:
        ChooseOptions.parse(**options)
    assert part in caught.value.message and caught.value.fix
    assert latency_of("merged") == "merged" and latency_of("12.5") == 12.5


def test_mistakes_in_base_and_evidence(choose: Choose, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        choose("lama-7b", rows=10)
    with pytest.raises(InputError, match="is missing"):
        choose("builtin", evidence=[tmp_path / "none.json"], rows=10)
    with pytest.raises(InputError, match="cannot serve as a causal decoder"):
        choose("bert-base", ["task=chat"], rows=10)


def test_another_machine_is_planned_by_its_memory_alone(tmp_path: Path) -> None:
    model_config("llama").save_pretrained(tmp_path)

    def planned(other: machine.TargetMachine | None) -> Any:
        model = ModelConfig(path=str(tmp_path), device="cpu")
        method, task = METHODS.parse("lora"), TASKS.parse("chat")
        tuned = tuned_skeleton(model, method, model.path, None)
        train = TrainConfig(precision="fp32")
        inputs = PlanInputs(model, method, train, task, tuned, model.path, [30], [10], 10, None, 0, other)
        return estimate(inputs, Workload(60.0, 30.0, 2.0, [9, 30], 20))

    here, card, box = (
        planned(None),
        planned(machine.TargetMachine("cuda", 10**9, 10**9)),
        planned(machine.TargetMachine("cpu", 10**9, 10**9)),
    )
    assert (
        card.target.device == "cuda"
        and card.parts["program"] == 0
        and (card.target.memory, card.target.free) == (10**9, 10**9)
    )
    assert card.parts["activations"] * HOLDS["cpu"] == pytest.approx(here.parts["activations"], rel=0.01)
    assert box.parts["activations"] == here.parts["activations"] and box.target.free == 10**9 - box.parts["program"]
    assert card.parts["weights"] == here.parts["weights"] and card.flops == here.flops > 0
    assert card.fits and not planned(machine.TargetMachine("cuda", card.needed, card.needed)).fits


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model_config("llama").save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)

    def output(*arguments: str) -> tuple[int, list[str]]:
        code = app(["choose", "--rows", "200", *arguments], standalone_mode=False) or 0
        return code, capsys.readouterr().out.splitlines()

    code, lines = output("--model", "base", "--memory", "1GB", "--variants", "9", "train.epochs=1")
    assert code == 0 and "1. lora" in lines and "what this does not know" in lines and "excluded" in lines
    row = next(line for line in lines if line.startswith("  1 "))
    assert re.search(r"lora .*yes +\d+ MB +[\d.]+ [MGT]FLOP +0\.\d+ MB +0\.\d+ MB +yes +assistant 5\.442 ± 0\.012", row)
    source = "benchmarks/methods/results.jsonl: python -m benchmarks.methods.run reviews"
    (number,) = [line.split()[0] for line in lines[lines.index("sources") :] if line.endswith(f" {source}")]
    assert sum(line.endswith(f" {number}") for line in lines) >= 1 and sum(source in line for line in lines) == 1
    assert "  luthier train train.epochs=1 --model base --data YOUR_FILE.jsonl --method lora" in lines
    code, lines = output("--model", "builtin", "--memory", "1MB")
    assert code == 2 and any("nothing fits: the least is" in line for line in lines), lines
    code, lines = output("--model", "builtin", "--memory", "1MB", "--json")
    found = json.loads("\n".join(lines))
    assert code == 2 and found["version"] == 1 and found["question"]["memory"] == 10**6 and found["ranked"] == []
    assert {"lora", "full"} <= {row["method"] for row in found["ruled_out"]} and found["next"] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base"]


def test_a_mistake_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    done = luthier("choose", "--memory", "much", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: --memory: 'much' is not a size")
    assert "fix: for example --memory 12GB" in done.stderr and "Traceback" not in done.stderr
