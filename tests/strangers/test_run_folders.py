"""A run folder whose files were edited, cut short, removed or swapped, one at a time, against what reads them.

What comes of it is what would have come without, or one clear error. It is never another outcome in silence, and never
a traceback.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from luthier.core.errors import InputError
from luthier.pipeline.evaluate import evaluate
from luthier.pipeline.export import export
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.recipe.parse import parse_export
from luthier.rendering.example import Message
from luthier.runs.folder import RunFolder
from luthier.serving.engine.engine import Engine
from luthier.serving.engine.requests import SamplingParams
from tests.conftest import alpaca_rows, write_jsonl
from tests.strangers.conftest import LARGE, copied

WRITTEN_LAST = ("result.json", "adapter", "predictions.jsonl", "report.html", "loss.png")
NO_MATTER = {".lock", "loss.png", "report.html"}
"""What is only looked at."""


def stopped(run: Path, to: Path) -> Path:
    """A copy of a finished run as SIGKILL leaves it behind step 2."""
    copied(run, to)
    for name in WRITTEN_LAST:
        shutil.rmtree(to / name) if (to / name).is_dir() else (to / name).unlink()
    shutil.rmtree(to / "checkpoints" / "step-000004")
    return to


def scores(result: dict[str, Any]) -> Any:
    return [result["tuned"], result["base"], result["difference"], result["validation_examples"]]


def resume(run: Path) -> Any:
    result = train(RunConfig.load(run / "recipe.yaml", [f"run={run}"]))
    return scores(result), {k: v.tolist() for k, v in load_file(run / "adapter" / "adapter_model.safetensors").items()}


def measure(run: Path) -> Any:
    return scores(evaluate(run))


def merge(run: Path) -> Any:
    made = export(run, parse_export("merged", []), prompts=2)
    weights = load_file(Path(made["path"]) / "model.safetensors")
    return made["scores"], {name: float(value.double().sum()) for name, value in weights.items()}


def answer(run: Path) -> Any:
    engine = Engine.open([str(run)])
    try:
        return "".join(
            engine.stream([Message("user", "Say number 3 and boots.")], sampling=SamplingParams(max_tokens=8))
        )
    finally:
        engine.close()


COMMANDS: dict[str, Callable[[Path], Any]] = {"train": resume, "evaluate": measure, "export": merge, "chat": answer}


@pytest.fixture(scope="session")
def expected(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What a command makes of the run that nobody touched."""
    made: dict[str, Any] = {}

    def outcome(command: str) -> Any:
        if command not in made:
            place = tmp_path_factory.mktemp("expected") / "run"
            made[command] = COMMANDS[command]((stopped if command == "train" else copied)(finished, place))
        return made[command]

    return outcome


def edit(path: Path) -> None:
    """One value becomes another that is just as valid."""
    text = path.read_bytes()
    if path.suffix == ".safetensors":
        path.write_bytes(text[:-1] + bytes([text[-1] ^ 1]))
    elif path.suffix in (".json", ".jsonl"):
        lines = text.decode().splitlines() if path.suffix == ".jsonl" else [text.decode()]
        path.write_text("\n".join([json.dumps(other(json.loads(lines[0]))), *lines[1:]]) + "\n")
    elif path.suffix == ".yaml":
        path.write_text(text.decode().replace("seed: 1\n", "seed: 5\n"))
    else:
        path.write_bytes(text + b"{{ 'x' }}")


def other(value: Any) -> Any:
    """The value with every number in it another, or, where there is none, every text."""

    def changed(value: Any, kind: type) -> Any:
        if isinstance(value, dict):
            return {key: changed(inner, kind) for key, inner in value.items()}
        if isinstance(value, list):
            return [changed(inner, kind) for inner in value]
        if isinstance(value, kind) and not isinstance(value, bool):
            return value + ("x" if kind is str else 1)
        return value

    numbers = changed(value, int)
    return numbers if numbers != value else changed(value, str)


FAULTS: dict[str, Callable[[Path, Path], object]] = {
    "edited": lambda path, twin: edit(path),
    "cut": lambda path, twin: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path, twin: path.write_bytes(b""),
    "removed": lambda path, twin: path.unlink(),
    "swapped": lambda path, twin: shutil.copyfile(twin, path),
    "other JSON": lambda path, twin: path.write_text("[1]"),
}


def files(run: Path) -> list[str]:
    found = [path.relative_to(run).as_posix() for path in sorted(run.rglob("*")) if path.is_file()]
    return [name for name in found if name not in NO_MATTER]


@pytest.mark.matrix(fault=3)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_file_of_a_run_against_what_reads_it(
    fault: str, finished: Path, another: Path, tmp_path: Path, expected: Callable[[str], Any]
) -> None:
    tried = refused = 0
    for number, name in enumerate(files(finished)):
        reads = [c for c in COMMANDS if "/" not in name or (c == "train") == name.startswith("checkpoints/")]
        for command in reads if LARGE else [reads[(number + len(fault)) % len(reads)]]:
            run = (stopped if command == "train" else copied)(finished, tmp_path / "run")
            if (run / name).is_file():
                tried += 1
                FAULTS[fault](run / name, another / name)
                refused += not same_or_refused(run, command, expected(command), name)
            shutil.rmtree(run)
    assert tried > 15 and refused > 3, (tried, refused)


def same_or_refused(run: Path, command: str, expected: Any, name: str) -> bool:
    """Whether the outcome is the expected one; False where one clear error names the file or its folder."""
    try:
        outcome = COMMANDS[command](run)
    except InputError as error:
        assert name.split("/", maxsplit=1)[0].removesuffix(".json") in str(error), (name, command, error)
        assert "Traceback" not in str(error) and len(str(error)) < 1000
        return False
    except Exception as error:
        raise AssertionError(f"{command} ends in a traceback for {name}") from error
    assert outcome == expected, f"{command}: another outcome in silence for {name}"
    return True


@pytest.fixture
def moved(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run whose recipe names a copy of its data beside it."""
    run = copied(finished, tmp_path / "run")
    shutil.copyfile(finished.parent / "rows.jsonl", tmp_path / "rows.jsonl")
    folder = RunFolder(run)
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(finished.parent / "rows.jsonl"), str(tmp_path / "rows.jsonl")))
    entries = folder.ledger.read()
    entries["recipe"]["data"]["path"] = str(tmp_path / "rows.jsonl")
    folder.ledger.path.write_text(json.dumps(entries))
    return run


@pytest.mark.parametrize("change", ["relabeled", "reordered", "removed"])
def test_a_finished_run_is_measured_on_the_rows_it_held_out(
    change: str, moved: Path, expected: Callable[[str], Any]
) -> None:
    data, rows = moved.parent / "rows.jsonl", alpaca_rows(30)
    if change == "removed":
        data.unlink()
    else:
        for row in rows[::3]:
            row["output"] = "something else"
        write_jsonl(data, rows if change == "relabeled" else alpaca_rows(30)[::-1])
    assert measure(moved) == expected("evaluate")
    assert merge(moved) == expected("export")


@pytest.mark.parametrize("change", ["relabeled", "reordered"])
def test_a_run_that_kept_no_rows_refuses_changed_data(change: str, moved: Path, expected: Callable[[str], Any]) -> None:
    """As those did from before there was a run.json."""
    for name in ("run.json", "held_out.jsonl"):
        (moved / name).unlink()
    assert measure(moved) == expected("evaluate")
    rows = alpaca_rows(30)
    write_jsonl(moved.parent / "rows.jsonl", rows[::-1] if change == "reordered" else [*rows[:-1], rows[0]])
    before = (moved / "result.json").read_bytes()
    for command in (measure, merge):
        with pytest.raises(InputError, match="the rows have changed since"):
            command(moved)
    assert (moved / "result.json").read_bytes() == before


def test_checkpoints_that_were_exchanged_are_not_taken(finished: Path, another: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    for name in WRITTEN_LAST:
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    first, last = run / "checkpoints" / "step-000002", run / "checkpoints" / "step-000004"
    first.rename(run / "aside")
    last.rename(first)
    (run / "aside").rename(last)
    result, weights = resume(run)
    assert [path.name for path in (run / "checkpoints").glob("*.corrupt")], "both were put aside"
    whole = {k: v.tolist() for k, v in load_file(finished / "adapter" / "adapter_model.safetensors").items()}
    assert weights == whole and result == scores(json.loads((finished / "result.json").read_text()))


@pytest.mark.parametrize("what", ["adapter", "checkpoints/step-000002"])
def test_a_whole_folder_of_another_run_is_not_taken(
    what: str, finished: Path, another: Path, tmp_path: Path, expected: Callable[[str], Any]
) -> None:
    run = (copied if what == "adapter" else stopped)(finished, tmp_path / "run")
    shutil.rmtree(run / what)
    shutil.copytree(another / what, run / what)
    if what == "adapter":
        for command in (measure, merge, answer):
            with pytest.raises(InputError, match=r"adapter is damaged: it belongs to another run\n.*luthier train"):
                command(run)
    else:
        assert resume(run) == expected("train")


def test_an_export_is_scored_on_the_rows_of_the_last_evaluation(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    evaluate(run, ["evaluate.rows=3", "evaluate.generate=3"])
    made, _ = merge(run)
    assert made["run"].keys() == made["export"].keys()
    for name, score in made["run"].items():
        assert made["export"][name]["value"] == pytest.approx(score["value"], rel=1e-3), name
