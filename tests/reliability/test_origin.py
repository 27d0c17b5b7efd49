"""A run knows where it comes from, is worked on by one process at a time, and tells no secrets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tools.soak import differences

from luthier.core.errors import Busy, InputError, ModelError, Stopped
from luthier.core.files import staged
from luthier.core.shell import redacted, redacted_command
from luthier.pipeline.evaluate import evaluate, open_run
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder
from luthier.runs.provenance import base_hashes, changes, environment
from luthier.serving.engine.engine import Engine
from tests.reliability.conftest import LORA, Heard, Start, forked, status


def stop_at(step: int) -> Heard:
    return Heard(lambda now: os.kill(os.getpid(), signal.SIGTERM) if now == step else None)


@pytest.fixture
def base(shelf: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may change."""
    return Path(shutil.copytree(shelf / "model", tmp_path / "base"))


def change_weights(base: Path) -> None:
    """One number of one tensor, neither the first nor the last of the file."""
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][3, 7] += 0.5
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def change_tokenizer(base: Path) -> None:
    file = base / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"][0]["lstrip"] = True
    file.write_text(json.dumps(tokenizer))


def change_config(base: Path) -> None:
    file = base / "config.json"
    file.write_text(file.read_text().replace('"attention_dropout": 0.1', '"attention_dropout": 0.2'))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_weights, "model.safetensors"),
        (change_config, "config.json"),
        (change_tokenizer, "tokenizer.json"),
        (lambda base: (base / "chat_template.jinja").write_text("{{ messages }}"), "chat_template.jinja"),
    ],
    ids=["weights", "config", "tokenizer", "template"],
)
def test_a_run_does_not_go_on_with_another_base(
    change: Callable[[Path], object], named: str, base: Path, start: Start, tmp_path: Path
) -> None:
    own = [*LORA, f"model={base}"]
    kept = Path(shutil.copytree(base, tmp_path / "kept"))
    with pytest.raises(Stopped):
        start(tmp_path / "run", *own, progress=stop_at(3))
    change(base)
    with pytest.raises(InputError, match=rf"is not the base that the run was started from; changed: {named}\n"):
        start(tmp_path / "run", *own)
    shutil.rmtree(base)
    kept.rename(base)
    for name in ("README.md", "LICENSE.txt", "generation_config.json"):
        (base / name).write_text("{}")  # nothing that training depends on
    start(tmp_path / "run", *own)
    change(base)
    for use in (evaluate, open_run, lambda folder: Engine.open([str(folder)])):
        with pytest.raises(InputError, match="is not the base"):
            use(tmp_path / "run")


def test_finished_weights_that_were_damaged_are_refused_and_rewritten(
    whole: Path, start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    start(run, *LORA)
    (run / "adapter" / "README.md").write_text("A file of the user's own is no damage.")
    open_run(run)
    weights = run / "adapter" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 4
    weights.write_bytes(data)
    for use in (evaluate, open_run, lambda folder: Engine.open([str(folder)])):
        with pytest.raises(
            InputError, match=r"adapter is damaged: adapter_model.safetensors has another SHA-256"
        ) as told:
            use(run)
        assert f"rm {run / 'result.json'} && luthier train" in told.value.fix
    (run / "result.json").unlink()
    start(run, *LORA)
    assert differences(whole, run) == []
    (run / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"adapter is damaged: adapter_config.json is missing"):
        Engine.open([str(run)])


def test_any_change_of_a_tensors_ends_counts_and_training_changes_both(base: Path) -> None:
    before = base_hashes(base)
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(before)
    assert "generation_config.json" not in before, "what is generated is measured, not trained"
    data = bytearray((base / "model.safetensors").read_bytes())
    length = int.from_bytes(data[:8], "little")
    places = [e["data_offsets"] for name, e in json.loads(data[8 : 8 + length]).items() if name != "__metadata__"]
    for begin, end in places:
        for place in (begin, end - 1):
            data[8 + length + place] ^= 1
            (base / "model.safetensors").write_bytes(data)
            assert base_hashes(base)["model.safetensors"] != before["model.safetensors"]
            data[8 + length + place] ^= 1
    (base / "model.safetensors").write_bytes(data)
    assert base_hashes(base) == before
    assert "model.safetensors" not in base_hashes(base, weights=False), "model.init=random reads none"
    (base / "model.safetensors").write_bytes(b"\xff" * 40)
    assert base_hashes(base)["model.safetensors"] != before["model.safetensors"]


def test_other_versions_are_told_and_the_run_goes_on(whole: Path, start: Start, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        start(tmp_path / "run", *LORA, progress=stop_at(3))
    folder = RunFolder(tmp_path / "run")
    kept = folder.read_json(folder.environment)
    kept["packages"]["torch"], kept["python"] = "2.0.0", "3.9.1"
    folder.write_json(folder.environment, kept)
    heard = Heard()
    start(tmp_path / "run", *LORA, progress=heard)
    now = environment()
    (told,) = [text for text in heard.said if text.startswith("not as at the start")]
    assert f"python 3.9.1 at the start, {now['python']} now" in told
    assert f"torch 2.0.0 at the start, {now['packages']['torch']} now" in told and "peft" not in told
    assert changes(environment()) == [] and changes({}) == []


def test_without_its_environment_a_run_does_not_go_on_with_who_knows_which_base(
    whole: Path, start: Start, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        start(tmp_path / "run", *LORA, progress=stop_at(3))
    kept = (tmp_path / "run" / "environment.json").rename(tmp_path / "kept.json")
    with pytest.raises(InputError, match=r"environment\.json is missing\n.*restore environment\.json"):
        start(tmp_path / "run", *LORA)
    kept.rename(tmp_path / "run" / "environment.json")
    start(tmp_path / "run", *LORA)
    assert differences(whole, tmp_path / "run") == []


def test_a_second_process_is_refused_until_the_first_one_is_gone(whole: Path, start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    reading, writing = os.pipe()

    def wait(step: int) -> None:
        if step == 3:
            os.write(writing, b"!")
            time.sleep(600)

    pid = forked(lambda: start(run, *LORA, progress=Heard(wait)))
    try:
        assert os.read(reading, 1) == b"!"
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        with pytest.raises(Busy, match="another process is at work on this run") as busy:
            start(run, *LORA)
        assert busy.value.exit_code == 2
        assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}, "untouched"
    finally:
        os.kill(pid, signal.SIGKILL)
        assert status(pid) == -signal.SIGKILL
    start(run, *LORA)
    assert differences(whole, run) == []


def test_children_of_a_killed_process_do_not_keep_its_lock(tmp_path: Path) -> None:
    """Workers that tokenize are forked while the run is held, and may outlive it."""
    folder, (reading, writing) = RunFolder(tmp_path / "run"), os.pipe()

    def hold() -> None:
        with folder.held():
            if os.fork() == 0:
                os.write(writing, f"{os.getpid()}\n".encode())
                time.sleep(600)
            time.sleep(600)

    pid = forked(hold)
    child = int(os.read(reading, 20))
    try:
        with pytest.raises(Busy), folder.held():
            pass
        os.kill(pid, signal.SIGKILL)
        assert status(pid) == -signal.SIGKILL
        with folder.held():
            pass
        os.kill(child, 0)  # it is there still
    finally:
        os.kill(child, signal.SIGKILL)


def test_workers_end_when_their_parent_is_killed() -> None:
    from luthier.data.parallel import in_order

    reading, writing = os.pipe()

    def tell(piece: int) -> int:
        os.write(writing, f"{os.getpid():>9}\n".encode())
        time.sleep(0.01)
        return piece

    def work() -> None:
        for _ in in_order(tell, range(10**6), 2):
            pass

    pid = forked(work)
    workers: set[int] = set()
    while len(workers) < 2:
        workers.add(int(os.read(reading, 10)))
    os.kill(pid, signal.SIGKILL)
    assert status(pid) == -signal.SIGKILL
    os.close(writing)
    while os.read(reading, 4096):  # its end comes when the last one that could write is gone
        pass


def test_a_model_of_a_hub_is_known_by_its_copy_in_the_cache(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(base, repository / "snapshots" / commit)
    change_weights(repository / "snapshots" / ("b" * 40))
    folder, model = RunFolder(tmp_path / "run"), RunConfig.load(None, ["model=org/tiny"]).model
    folder.path.mkdir()
    folder.refuse_another_base(model, "org/tiny")
    assert not folder.environment.exists(), "nothing of it is here yet"
    (repository / "refs" / "main").write_text("a" * 40)
    folder.refuse_another_base(model, "org/tiny")
    (repository / "snapshots" / ("a" * 40) / "vocab.json").write_text("fetched later, by another program")
    folder.refuse_another_base(model, "org/tiny")
    (repository / "refs" / "main").write_text("b" * 40)
    with pytest.raises(InputError, match=r"org/tiny is not the base .*changed: model\.safetensors"):
        folder.refuse_another_base(model, "org/tiny")


def test_an_error_inside_lets_go_of_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), folder.held():
        raise ZeroDivisionError
    with folder.held():
        pass


TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsTuV"


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        (f"data={TOKEN}", "data=***"),
        (f"https://user:{TOKEN}@host/x.jsonl", "https://***@host/x.jsonl"),
        ("https://user:open-sesame@host/x.jsonl", "https://***@host/x.jsonl"),
        ("data=https://host/x.jsonl?token=abc123&rows=3", "data=https://host/x.jsonl?token=***&rows=3"),
        ("data=https://s3/x?X-Amz-Signature=abc123", "data=https://s3/x?X-Amz-Signature=***"),
        ("hub_token=abc", "hub_token=***"),
        ("API_KEY=abc", "API_KEY=***"),
        ("my.secret=abc", "my.secret=***"),
        ("password=a b", "password=***"),
        ("ghp_0123456789abcdef0123", "***"),
        ("sk-proj-0123456789abcdef", "***"),
        ("train.micro_tokens=4096", "train.micro_tokens=4096"),
        ("evaluate.max_new_tokens=64", "evaluate.max_new_tokens=64"),
        ("train.optimizer=adamw", "train.optimizer=adamw"),
        ("data=task-descriptions-long.jsonl", "data=task-descriptions-long.jsonl"),
        ("run=runs/hf_small", "run=runs/hf_small"),
        ("model=org/name@main", "model=org/name@main"),
    ],
)
def test_secrets_are_hidden_and_nothing_else(word: str, shown: str) -> None:
    assert redacted_command([word]) == [shown]


def test_the_value_behind_a_secret_option_is_hidden() -> None:
    assert redacted_command(["train", "--hub-token", "abc", "a.yaml"]) == ["train", "--hub-token", "***", "a.yaml"]
    assert redacted_command(["train", "--token=abc"]) == ["train", "--token=***"]
    assert redacted(f"path: {TOKEN}\n") == "path: ***\n"


def test_no_file_of_a_run_holds_a_token(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(sys, "argv", ["luthier", "train", f"hub_token={TOKEN}", TOKEN])
    start(tmp_path / "run", *LORA)
    assert "***" in (tmp_path / "run" / "environment.json").read_text()
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


def test_code_of_a_model_does_not_run_unless_asked_for(base: Path, start: Start, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    (base / "modeling_own.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(marker)!r}).touch()\n"
        "from transformers import LlamaConfig as Config, LlamaForCausalLM as Model\n"
    )
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    config["model_type"] = "own"
    (base / "config.json").write_text(json.dumps(config))
    assert RunConfig.load(None, []).model.trust_remote_code is False
    with pytest.raises(ModelError, match=r"Python code of its own, .*\n  fix: .* model\.trust_remote_code=true"):
        start(tmp_path / "run", *LORA, f"model={base}")
    assert not marker.exists() and not (tmp_path / "run").exists()


def test_pickled_weights_are_refused_with_the_fix(base: Path, start: Start, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(marker),)

    (base / "model.safetensors").unlink()
    torch.save(Trap(), base / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights") as no:
        start(tmp_path / "run", *LORA, f"model={base}")
    assert "convert them to safetensors" in str(no.value) and not marker.exists()


def test_a_pickle_beside_a_finished_adapter_is_not_opened(whole: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(marker),)

    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "adapter" / "adapter_model.safetensors").unlink()
    torch.save(Trap(), run / "adapter" / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is missing"):
        open_run(run)
    with staged(run / "adapter", RunFolder(run).ledger.run) as folder:  # as if it had been written so
        torch.save(Trap(), folder / "adapter_model.bin")
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "adapter_config.json"):
            shutil.copy(whole / "adapter" / name, folder)
    with pytest.raises(InputError, match=r"holds no adapter_model\.safetensors"):
        open_run(run)
    assert not marker.exists()


def test_no_file_of_a_run_is_a_pickle(whole: Path) -> None:
    kinds = {path.suffix for path in whole.rglob("*") if path.is_file() and path.name != ".lock"}
    assert kinds <= {".json", ".jsonl", ".safetensors", ".yaml", ".jinja", ".png", ".html"}
    assert not [path for path in whole.rglob("*") if path.is_file() and path.read_bytes()[:2] in (b"\x80\x02", b"PK")]
