"""The command line as a user meets it: fast help, clear messages, exit codes, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.terminal.arguments import split_arguments
from luthier.core.errors import InputError
from luthier.methods.base import METHODS
from tests.conftest import alpaca_rows, luthier
from tests.processes import Command

QUICK = ["train.steps=2", "evaluate.generate=0", "method.rank=2"]


def test_help_answers_within_a_second_and_loads_no_torch() -> None:
    code = (
        "import sys, time; sys.argv = ['luthier', '--help']\n"
        "from luthier.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'accelerate'} & set(sys.modules)\n"
        "print('SECONDS', time.process_time(), 'HEAVY', *heavy)"  # of the processor: other work does not count
    )
    fastest = 9.0
    for _ in range(3):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        line = next(line for line in out.splitlines() if line.startswith("SECONDS"))
        assert line.endswith("HEAVY"), line
        fastest = min(fastest, float(line.split()[1]))
    assert "demo" in out and "train" in out and fastest < 1.0


def test_methods_are_listed_by_class_and_types_of_peft_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = luthier("list", "methods").stdout
    assert max(map(len, shown.splitlines())) <= 80
    heads = ["additive: adapters", "additive: soft prompts", "selective", "reparametrization", "hybrid", "other"]
    found = {each["name"]: each["family"] for each in json.loads(luthier("list", "methods", "--json").stdout)}
    assert found.keys() == set(METHODS.names()) and set(found.values()) == set(heads)
    places = [shown.index(f"\n\n{head}\n") for head in heads]
    assert places == sorted(places)
    for name, family in found.items():
        part = shown[places[heads.index(family)] :].removeprefix("\n\n").split("\n\n")[0]
        assert f"\n{name} " in part
    assert "boft" in luthier("explain", "method", "peft").stdout
    assert "method.boft_block_size = 4" in luthier("explain", "method.type=boft").stdout
    assert "did you mean 'boft'?" in luthier("explain", "method.type=bof").stderr
    assert "luthier list methods --json" in luthier("list", "tasks", "--json").stderr


def test_a_run_from_the_command_line_alone(
    model_folder: Callable[..., Path], alpaca_file: Path, tmp_path: Path
) -> None:
    done = luthier(
        "train",
        "--model",
        model_folder("llama"),
        "--data",
        alpaca_file,
        "--method",
        "lora",
        f"run={tmp_path / 'run'}",
        *QUICK,
    )
    assert done.returncode == 0, done.stderr
    assert "held-out loss" in done.stdout and "perplexity" in done.stdout and "next:" in done.stdout
    names = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert names == {
        ".lock",
        "run.json",
        "held_out.jsonl",
        "recipe.yaml",
        "environment.json",
        "data.json",
        "plan.json",
        "metrics.jsonl",
        "before.json",
        "predictions.jsonl",
        "samples.jsonl",
        "result.json",
        "loss.png",
        "report.html",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/manifest.json",
        "adapter/tokenizer.json",
        "adapter/tokenizer_config.json",
        "adapter/chat_template.jinja",
        "adapter/generation_config.json",
        *(
            f"checkpoints/step-000002/{name}"
            for name in (
                "manifest.json",
                "state.json",
                "state.safetensors",
                "weights/adapter_config.json",
                "weights/adapter_model.safetensors",
            )
        ),
    }
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    again = luthier(
        "train",
        "--model",
        model_folder("llama"),
        "--data",
        alpaca_file,
        "--method",
        "lora",
        f"run={tmp_path / 'run'}",
        *QUICK,
    )
    assert again.returncode == 0 and "is finished" in again.stdout
    said = luthier("chat", tmp_path / "run", "--prompt", "Hello", "--max-new-tokens", "5")
    assert said.returncode == 0, said.stderr
    base = luthier("chat", tmp_path / "run", "--prompt", "Hello", "--untuned", "--max-new-tokens", "5")
    assert base.returncode == 0, base.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], ["no data given", "data=FILE"]),
        (["train", "data=missing.jsonl"], ["missing.jsonl: no such file", "data.path"]),
        (["train", "data=empty.jsonl"], ["empty.jsonl: the file is empty"]),
        (["train", "data=middle.jsonl"], ["middle.jsonl: line 3: invalid JSON", "data.on_bad_row=skip"]),
        (
            ["train", "data=good.jsonl", "data.format.name=alpaca", "data.format.output=answer"],
            ["good.jsonl: line 1: there is no column 'answer'", "data.format.output=COLUMN"],
        ),
        (
            ["train", "data=good.jsonl", "model=noweights"],
            ["noweights has a config.json but no weights", "model.init=random"],
        ),
        (["train", "data=good.jsonl", "model=./nowhere"], ["./nowhere is not a folder"]),
        (["train", "data=good.jsonl", "model=pickled"], ["only pickled weights", "safetensors"]),
        (["train", "data=good.jsonl", "model=adapter"], ["holds an adapter, not a base model"]),
        (
            ["train", "data=good.jsonl", "model=MODEL", "train.max_length=8"],
            ["good.jsonl: line", "train.max_length is 8", "data.on_long_row=truncate_prompt"],
        ),
        (
            ["train", "data=good.jsonl", "model=MODEL", "train.max_length=8", "data.on_long_row=truncate_answer"],
            ["the whole answer is cut away"],
        ),
        (
            ["train", "data=good.jsonl", "model=MODEL", "train.max_length=9999"],
            ["train.max_length: 9999 is more than the 256", "train.max_length=256"],
        ),
        (
            ["train", "data=good.jsonl", "model=MODEL", "method.targets=qproj"],
            ["no layer is named 'qproj' (did you mean 'q_proj'?)"],
        ),
        (["train", "bad.yaml"], ["bad.yaml: 3 mistakes", "modl", "train.lr", "method.rnk"]),
        (["train", "missing.yaml"], ["missing.yaml: no such recipe"]),
        (["train", "a.yaml", "b.yaml"], ["one recipe is one run"]),
        (
            ["train", "data=good.jsonl", "train.precision=fp16"],
            ["train.precision=fp16 cannot serve on a CPU", "train.precision=auto"],
        ),
        (["train", "data=good.jsonl", "model.device=cuda"], ["there is no cuda on this machine"]),
        (["train", "data=good.jsonl", "model=MODEL", "run=taken"], ["taken is not empty and no run of Luthier's"]),
        (["evaluate", "nowhere"], ["nowhere does not exist"]),
        (["chat", "taken"], ["taken is not a run, an adapter or a model"]),
        (["list", "methds"], ["did you mean 'methods'?"]),
        (["explain", "method", "loar"], ["unknown method 'loar' (did you mean 'lora'?)"]),
        (["trian"], ["No such command 'trian'. Did you mean 'train'"]),
        (["train", "--modle", "x"], ["No such option"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_ends_in_one_clear_message(
    arguments: list[str],
    said: list[str],
    tmp_path: Path,
    model_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = [json.dumps(row) for row in alpaca_rows(12)]
    (tmp_path / "good.jsonl").write_text("\n".join(good))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "middle.jsonl").write_text("\n".join([*good[:2], "{no json", *good[2:]]))
    (tmp_path / "bad.yaml").write_text("modl: x\ntrain: {lr: fast}\nmethod: {name: lora, rnk: 2}\n")
    for name, file in (
        ("noweights", "config.json"),
        ("taken", "thesis.doc"),
        ("adapter", "adapter_config.json"),
        ("pickled", "config.json"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text((model_folder("llama") / "config.json").read_text())
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    code, _, err = main([a.replace("MODEL", str(model_folder("llama"))) for a in arguments], capsys)
    assert code == 2, err
    assert "Traceback" not in err and err.startswith("error: ")
    for part in said:
        assert part in err.replace("\n", " ").replace("  ", " ") or part in err
    assert not (tmp_path / "runs").exists(), "a run that never began leaves no folder"


def main(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    from luthier.cli import main

    before = sys.argv
    sys.argv = ["luthier", *arguments]
    try:
        main.main()
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 0
    finally:
        sys.argv = before
    out = capsys.readouterr()
    return code, out.out, out.err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = main(["train", "data=missing.jsonl", "--debug"], capsys)
    assert code == 2 and "Traceback" in err and "error: missing.jsonl" in err


def test_a_fault_of_ours_says_so_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("luthier.pipeline.train.train", broken)
    code, _, err = main(["train", "data=x.jsonl"], capsys)
    assert code == 1 and "ZeroDivisionError: oops" in err and "a bug in Luthier" in err and "Traceback" not in err


def test_skipped_rows_are_counted_named_and_kept(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in alpaca_rows(12)]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join([*lines[:5], "{no json", *lines[5:]]))
    run = tmp_path / "run"
    done = luthier(
        "train", f"model={model_folder('llama')}", f"data={file}", "data.on_bad_row=skip", f"run={run}", *QUICK
    )
    assert done.returncode == 0 and "1 rows were left out (1 refused)" in done.stdout
    (refused,) = [json.loads(line) for line in (run / "refused.jsonl").read_text().splitlines()]
    assert refused["where"] == f"{file}: line 6" and refused["row"] == {"raw": "{no json"}


def test_another_recipe_does_not_overwrite_a_run(
    model_folder: Callable[..., Path], alpaca_file: Path, tmp_path: Path
) -> None:
    arguments = ["train", f"model={model_folder('llama')}", f"data={alpaca_file}", f"run={tmp_path / 'run'}", *QUICK]
    assert luthier(*arguments).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    other = luthier(*arguments, "train.lr=0.5")
    assert (
        other.returncode == 2
        and "holds a run of another recipe" in other.stderr
        and "train.lr: None there, 0.5 now" in other.stderr
    )
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 75), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(
    number: signal.Signals, code: int, model_folder: Callable[..., Path], alpaca_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [
        "train",
        f"model={model_folder('llama')}",
        f"data={alpaca_file}",
        f"run={run}",
        "train.steps=100000",
        "evaluate.before=false",
        "train.evaluate_every=99999",
    ]
    process = Command(arguments)
    process.wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text())
    process.send_signal(number)
    assert process.wait(60) == code, process.out + process.err
    out = process.out + process.err
    assert "everything is saved" in out and f"luthier train model={model_folder('llama')}" in out.replace("\n", " ")
    assert list((run / "checkpoints").glob("step-*"))


@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="a full disk needs root to mount a small tmpfs"
)
def test_a_full_disk_ends_clearly_and_keeps_what_was_saved(
    model_folder: Callable[..., Path], alpaca_file: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", small], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        run = small / "run"
        done = luthier(
            "train",
            f"model={model_folder('llama')}",
            f"data={alpaca_file}",
            f"run={run}",
            "method.rank=16",
            "train.steps=100",
            "train.save_every=1",
            "train.keep=100",
            "evaluate.generate=0",
        )
        assert done.returncode == 2, done.stdout + done.stderr
        assert (
            "no space left on the disk" in done.stderr
            and "free some space" in done.stderr
            and "Traceback" not in done.stderr
        )
        from luthier.training.checkpoint import newest

        found, broken = newest(run / "checkpoints")
        assert found is not None and broken == []
        assert not list((run / "checkpoints").glob(".staging*"))
    finally:
        subprocess.run(["umount", small], check=False)


def test_the_recipe_is_the_argument_without_an_equals_sign() -> None:
    assert split_arguments(["a.yaml", "train.lr=1"]) == (Path("a.yaml"), ["train.lr=1"])
    assert split_arguments(["train.lr=1"]) == (None, ["train.lr=1"])
    with pytest.raises(InputError):
        split_arguments(["a.yaml", "b.yaml"])


def test_the_package_runs_from_anywhere(tmp_path: Path) -> None:
    done = luthier("list", "tasks", cwd=tmp_path)
    assert done.returncode == 0 and [line.split()[0] for line in done.stdout.splitlines()] == [
        "chat",
        "classify",
        "complete",
        "regress",
    ]


def test_chat_answers_the_lines_of_a_pipe(model_folder: Callable[..., Path], alpaca_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert (
        luthier("train", f"model={model_folder('llama')}", f"data={alpaca_file}", f"run={run}", *QUICK).returncode == 0
    )
    done = luthier("chat", run, "--max-new-tokens", "4", text="Hello\n/new\nHello\n/quit\n")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) >= 3 and lines[-1] == lines[-2], "/new starts a new dialogue"


def test_explain_finds_a_method_by_its_name_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("lora", "classify", "alpaca", "gguf"):
        code, out, err = main(["explain", name], capsys)
        assert code == 0 and not err and name in out.lower()
    code, out, err = main(["explain", "lorra"], capsys)
    assert code == 2 and "did you mean 'lora'" in err


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = main([], capsys)
    assert code == 0 and "Usage:" in out and "error:" not in out + err
