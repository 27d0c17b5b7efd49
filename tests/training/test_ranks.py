"""Several processes train as one: the same curve and weights, whatever their number, and nobody hangs."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import InputError
from luthier.core.ranks import LIMIT, joined
from luthier.models import sharding
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder
from tests.conftest import alpaca_rows, review_rows, write_jsonl
from tests.processes import Command
from tests.training.ranks import on_ranks, trained_on
from tests.training.test_training import curve, same, weights

BASE = ["train.batch_size=8", "train.lr=2e-2", "train.steps=8", "train.save_every=4", "train.evaluate_every=4"]
BASE += ["evaluate.generate=4", "evaluate.max_new_tokens=4", "train.keep=9"]


def test_two_ranks_learn_what_one_process_learns(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(40))
    recipe = [*BASE, f"model={model_folder('llama')}", f"data={data}", "method=lora", "method.rank=4"]
    whole = train(RunConfig.load(None, [*recipe, f"run={tmp_path / 'one'}"]))
    leader, follower = trained_on(2, tmp_path / "two", recipe)
    assert "value" in leader, leader
    assert follower == {"value": {}}
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-6)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)
    assert leader["value"]["tuned"]["loss"]["value"] == pytest.approx(whole["tuned"]["loss"]["value"], rel=1e-5)


FAMILIES = {
    "lora": ["method=lora"],
    "adalora": ["method=adalora"],
    "pissa": ["method=pissa"],
    "ia3": ["method=ia3"],
    "bitfit": ["method=bitfit", "method.missing=add"],
    "houlsby": ["method=houlsby"],
    "prefix": ["method=prefix"],
    "p_tuning": ["method=p_tuning"],
    "unipelt": ["method=unipelt"],
    "full": ["method=full"],
    "qlora": ["method=qlora"],
}


@pytest.mark.matrix(name=5)
@pytest.mark.parametrize(("name", "world"), [*((name, 2) for name in FAMILIES), ("lora", 3), ("lora", 4), ("full", 4)])
def test_the_curve_does_not_depend_on_the_number_of_ranks(
    model_folder: Callable[..., Path], tmp_path: Path, name: str, world: int
) -> None:
    """With accumulation, packing, an uneven last batch (21 rows) and, on four ranks, fewer rows than ranks (3)."""
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(21))
    recipe = [f"model={model_folder('llama')}", f"data={data}", *FAMILIES[name], "data.validation=none"]
    recipe += ["train.steps=20", "train.batch_size=6", "train.micro_tokens=128", "train.precision=fp32"]
    recipe += ["train.lr=1e-3"]  # Adam turns the rounding of a gradient near zero into a part of the learning rate
    if name not in ("full", "bitfit", "ia3", "unipelt"):
        recipe.append("method.dropout=0")
    train(RunConfig.load(None, [*recipe, f"run={tmp_path / 'one'}"]))
    leader, *others = trained_on(world, tmp_path / "more", recipe)
    assert "value" in leader, leader
    assert others == [{"value": {}}] * (world - 1)
    one, more = curve(tmp_path / "one"), curve(tmp_path / "more")
    assert len(one) == 20 and one[0] != one[-1], "and it moves"
    assert more == pytest.approx(one, rel=1e-6 if name != "qlora" else 1e-4)
    single, several = weights(tmp_path / "one"), weights(tmp_path / "more")
    assert single.keys() == several.keys()
    for key, value in single.items():
        torch.testing.assert_close(
            several[key],
            value,
            rtol=0,
            atol=1e-5 if name != "qlora" else 1e-3,
            msg=lambda text, key=key: f"{key}: {text}",
        )


@pytest.mark.parametrize(
    "more", [["data.streaming=true", "data.validation=none"], ["method.init=lora_ga", "method.rank=8"]]
)
def test_what_reads_rows_elsewhere_learns_the_same(
    model_folder: Callable[..., Path], tmp_path: Path, more: list[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(40))
    recipe = [
        *BASE,
        f"model={model_folder('llama')}",
        f"data={data}",
        "method=lora",
        "method.dropout=0",
        "train.lr=1e-3",
    ]
    train(RunConfig.load(None, [*recipe, *more, f"run={tmp_path / 'one'}"]))
    leader, _ = trained_on(2, tmp_path / "two", [*recipe, *more])
    assert "value" in leader, leader["error"]
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=2e-6)


SHARDED = {
    name: FAMILIES[name] for name in ("lora", "full", "bitfit", "houlsby", "prefix", "ia3", "adalora", "p_tuning")
}
LAYOUTS: dict[str, list[str]] = {
    "fsdp": ["train.parallel=fsdp"],
    "hsdp": ["train.parallel=hsdp"],
    "offload": ["train.parallel=fsdp", "train.offload=true"],
    "checkpointing": ["train.parallel=fsdp", "train.gradient_checkpointing=true"],
    "bf16": ["train.parallel=fsdp", "train.precision=bf16"],
}


@pytest.mark.matrix(name=3)
@pytest.mark.parametrize(
    ("name", "world", "layout"),
    [
        *((name, 2, "fsdp") for name in SHARDED),
        ("lora", 3, "fsdp"),
        ("full", 4, "fsdp"),
        ("full", 4, "hsdp"),
        ("lora", 4, "hsdp"),
        ("full", 2, "offload"),
        ("full", 2, "checkpointing"),
        ("full", 2, "bf16"),
    ],
)
def test_sharded_weights_learn_the_same(
    model_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    world: int,
    layout: str,
) -> None:
    """As above, with FSDP2, and goes on without sharding; with more than two ranks layers are gathered to evaluate."""
    monkeypatch.setattr(sharding, "ROOM", 0.5 if world == 2 else 0.0)
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(21))
    recipe = [f"model={model_folder('llama')}", f"data={data}", *SHARDED[name], "data.validation=0.2", "train.lr=1e-3"]
    recipe += ["train.steps=20", "train.batch_size=6", "train.micro_tokens=128", "train.save_every=10", "train.keep=9"]
    if name not in ("full", "bitfit", "ia3"):
        recipe.append("method.dropout=0")
    half = layout == "bf16"  # gathered weights are rounded where autocast rounds them, and norms too
    recipe += [each for each in LAYOUTS[layout] if not each.startswith(("train.parallel", "train.offload"))]
    whole = train(RunConfig.load(None, [*recipe, f"run={tmp_path / 'one'}"]))
    hosts = {"LOCAL_WORLD_SIZE": "2"} if layout == "hsdp" else {}
    more = [*recipe, *LAYOUTS[layout]]
    leader, *others = trained_on(world, tmp_path / "more", more, timeout=60, environment=hosts)
    assert "value" in leader, leader["error"]
    assert others == [{"value": {}}] * (world - 1)
    assert curve(tmp_path / "more") == pytest.approx(curve(tmp_path / "one"), rel=1e-3 if half else 1e-6)
    assert leader["value"]["tuned"]["loss"]["value"] == pytest.approx(
        whole["tuned"]["loss"]["value"], rel=1e-3 if half else 1e-5
    )
    single, several = weights(tmp_path / "one"), weights(tmp_path / "more")
    assert single.keys() == several.keys()
    for key, value in single.items():
        torch.testing.assert_close(several[key], value, rtol=0, atol=5e-3 if half else 1e-5)
    run = tmp_path / "then"
    again(tmp_path / "more", run, "checkpoints/step-000020")
    train(RunConfig.load(None, [*recipe, f"run={run}"]))
    assert curve(run) == pytest.approx(curve(tmp_path / "one"), rel=1e-3 if half else 1e-6)


def test_sharded_checkpoints_go_on_with_any_number_of_ranks(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Each rank writes its shards; any number of ranks reads them, sharded or not, and those of one process."""
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(21))
    recipe = [f"model={model_folder('llama')}", f"data={data}", "method=full", "data.validation=none", "train.steps=12"]
    recipe += ["train.batch_size=6", "train.lr=1e-3", "train.save_every=4", "train.keep=9"]
    train(RunConfig.load(None, [*recipe, f"run={tmp_path / 'one'}"]))
    leader, *_ = trained_on(4, tmp_path / "four", [*recipe, "train.parallel=fsdp"])
    assert "value" in leader, leader
    shards = sorted((tmp_path / "four/checkpoints/step-000008/weights").glob("shard-*.safetensors"))
    assert len(shards) == 4 and max(each.stat().st_size for each in shards) < 1.2 * shards[0].stat().st_size
    for number, (start, world, more) in enumerate(
        [
            ("four", 2, ["train.parallel=ddp"]),
            ("four", 3, ["train.parallel=fsdp"]),
            ("four", 8, ["train.parallel=fsdp"]),
            ("one", 2, ["train.parallel=fsdp"]),
        ]
    ):
        run = tmp_path / f"then-{number}"
        again(tmp_path / start, run, "checkpoints/step-000012")
        leader, *_ = trained_on(world, run, [*recipe, *more])
        assert "value" in leader, leader
        assert curve(run) == pytest.approx(curve(tmp_path / "one"), rel=1e-6)
        for key, value in weights(tmp_path / "one").items():
            torch.testing.assert_close(weights(run)[key], value, rtol=0, atol=1e-5)
    run = tmp_path / "damaged"
    again(tmp_path / "four", run, "checkpoints/step-000012")
    shard = run / "checkpoints/step-000008/weights" / shards[2].name
    shard.write_bytes(shard.read_bytes()[:-8] + b"\1" * 8)
    leader, *_ = trained_on(2, run, [*recipe, "train.parallel=fsdp"])
    assert "value" in leader, leader
    assert (run / "checkpoints/step-000008.corrupt").is_dir(), "and the one before it serves"
    assert curve(run) == pytest.approx(curve(tmp_path / "one"), rel=1e-6)


def test_a_full_disk_under_one_rank_is_one_clear_error(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    data, run = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(21)), tmp_path / "run"
    recipe = [f"model={model_folder('llama')}", f"data={data}", "method=full", "data.validation=none", "train.steps=9"]
    recipe += ["train.batch_size=6", "train.save_every=3", "train.parallel=fsdp", f"run={run}"]
    config, write = RunConfig.load(None, recipe), HuggingFaceStorageWriter.write_data

    def full(self: Any, *args: Any) -> Any:
        if (run / "checkpoints/step-000003").is_dir():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *args)

    def one(rank: int) -> Any:
        if rank == 1:
            HuggingFaceStorageWriter.write_data = full  # type: ignore[method-assign]
        return train(config)

    leader, follower = on_ranks(2, one, tmp_path / "out", timeout=60)
    assert "no space left" in leader["error"].lower() and "Traceback" not in leader["error"], leader
    assert follower.get("error", "Followed").startswith("Followed")
    assert [each.name for each in (run / "checkpoints").iterdir()] == ["step-000003"], "nothing is half-written"
    leader, _ = trained_on(2, run, recipe)
    assert "value" in leader and len(curve(run)) == 9


def test_a_pass_that_fails_on_one_rank_keeps_none_waiting(tmp_path: Path) -> None:
    """Ranks that gather layers in turns go on where one breaks off in the middle, and it joins the next pass."""
    found = on_ranks(2, _passes, tmp_path, timeout=60)
    assert [each.get("value") for each in found] == [[True] * 5, [True, False, True]], found


class _Stack(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def _passes(rank: int) -> list[bool]:
    with joined("cpu", {}) as ranks:
        torch.manual_seed(0)
        model = _Stack()
        x = torch.ones(2, 4)
        expected = model(x)
        sharding.shard(model, sharding.Sharding("cpu", 2))
        sharding.ROOM = 0.0
        right = []
        with sharding.without_gradients(model):
            for number in range(3 if rank else 5):
                failing = model.layers[1].register_forward_hook(_fail) if rank and number == 1 else None
                try:
                    right.append(bool(torch.allclose(model(x), expected)))
                except MemoryError:
                    right.append(False)
                if failing is not None:
                    failing.remove()
        if not ranks.leads:
            ranks.serve({})
        return right


def _fail(*args: Any) -> None:
    raise MemoryError


def again(run: Path, copy: Path, last: str) -> None:
    """A copy of a run as it was before its last checkpoint."""
    shutil.copytree(run, copy)
    for path in ("result.json", "model" if (copy / "model").is_dir() else "adapter", last):
        shutil.rmtree(copy / path) if (copy / path).is_dir() else (copy / path).unlink()
    file = copy / "recipe.yaml"
    file.write_text(file.read_text().replace(str(run), str(copy)))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["method=qlora"], "does not shard a quantized base (nf4)"),
        (["method=lora", "method.init=lora_ga"], "does not serve method lora as it starts here"),
        (["method=full", "train.optimizer=adamw_8bit"], "does not serve train.optimizer=adamw_8bit"),
        (["method=lora", "train.parallel=hsdp"], "within each of several hosts"),
    ],
)
def test_what_cannot_be_sharded_is_refused_by_name(
    model_folder: Callable[..., Path], tmp_path: Path, more: list[str], said: str
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(21))
    recipe = [f"model={model_folder('llama')}", f"data={data}", "train.parallel=fsdp", *more]
    leader, _ = trained_on(2, tmp_path / "run", recipe, timeout=60)
    assert leader["code"] == 2 and said in leader["error"]
    assert "train.parallel=ddp" in leader["error"] and not (tmp_path / "run").exists()


def test_scores_answers_and_predictions_are_those_of_one_process(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(40))
    recipe = [*BASE, f"model={model_folder('qwen2')}", f"data={data}", "method=lora", "train.lr=1e-3"]
    recipe += ["evaluate.batch_size=3"]
    train(RunConfig.load(None, [*recipe, f"run={tmp_path / 'one'}"]))
    leader, _, _ = trained_on(3, tmp_path / "three", recipe)
    assert "value" in leader, leader
    one, three = (
        [json.loads(line) for line in RunFolder(tmp_path / name).predictions.read_text().splitlines()]
        for name in ("one", "three")
    )
    assert len(one) == len(three) > 2
    for first, second in zip(one, three, strict=True):
        assert first["base"] == second["base"], "the base is the same to the bit: batches are those of one process"
        assert first["tuned"].get("said") == second["tuned"].get("said")
        assert first["where"] == second["where"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_labels_are_chosen_on_all_ranks(
    model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: str
) -> None:
    monkeypatch.setattr(sharding, "ROOM", 0.0)
    data = write_jsonl(tmp_path / "rows.jsonl", review_rows(30))
    for task in ("classify", "chat"):
        recipe = [*BASE, f"model={model_folder('llama')}", f"data={data}", f"task={task}", "train.steps=2"]
        whole = train(RunConfig.load(None, [*recipe, f"run={tmp_path / f'{task}-one'}"]))
        leader, follower = trained_on(2, tmp_path / f"{task}-two", [*recipe, f"train.parallel={parallel}"])
        assert "value" in leader, leader
        assert follower == {"value": {}}
        assert leader["value"]["tuned"]["accuracy"] == whole["tuned"]["accuracy"]


def test_a_run_of_four_ranks_goes_on_with_any_number(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(21))
    recipe = [
        f"model={model_folder('llama')}",
        f"data={data}",
        "method=lora",
        "method.dropout=0",
        "data.validation=none",
    ]
    recipe += ["train.steps=12", "train.batch_size=6", "train.lr=1e-3", "train.save_every=4", "train.keep=9"]
    train(RunConfig.load(None, [*recipe, f"run={tmp_path / 'one'}"]))
    leader, *_ = trained_on(4, tmp_path / "four", recipe)
    assert "value" in leader, leader
    for world in (1, 2, 3):
        run = tmp_path / f"then-{world}"
        again(tmp_path / "four", run, "checkpoints/step-000012")
        leader, *_ = trained_on(world, run, recipe)
        assert "value" in leader, leader
        assert curve(run) == pytest.approx(curve(tmp_path / "one"), rel=1e-6)
        for key, value in weights(tmp_path / "one").items():
            torch.testing.assert_close(weights(run)[key], value, rtol=0, atol=1e-5)


def test_with_dropout_a_resumed_run_of_the_same_ranks_is_the_same_to_the_bit(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(21))
    recipe = [
        f"model={model_folder('llama')}",
        f"data={data}",
        "method=lora",
        "method.dropout=0.2",
        "data.validation=none",
    ]
    recipe += ["train.steps=8", "train.batch_size=6", "train.save_every=4", "train.keep=9"]
    trained_on(2, tmp_path / "whole", recipe)
    again(tmp_path / "whole", tmp_path / "again", "checkpoints/step-000008")
    leader, _ = trained_on(2, tmp_path / "again", recipe)
    assert "value" in leader, leader
    assert curve(tmp_path / "again") == curve(tmp_path / "whole")
    assert same(tmp_path / "again", tmp_path / "whole")
    one = train(RunConfig.load(None, [*recipe, f"run={tmp_path / 'one'}"]))
    assert one["steps"] == 8 and curve(tmp_path / "one") != curve(tmp_path / "whole"), "ranks draw dropout of their own"


def at_step(run: Path, step: int, act: Callable[[list[Any]], None]) -> Callable[[list[Any]], None]:
    """Disturb the ranks once so many steps are logged."""

    def wait(processes: list[Any]) -> None:
        until = time.monotonic() + 120
        while len(curve(run) if (run / "metrics.jsonl").is_file() else []) < step and time.monotonic() < until:
            time.sleep(0.02)
        act(processes)

    return wait


LONG = ["method=lora", "method.dropout=0", "data.validation=none", "train.steps=4000", "train.batch_size=6"]
LONG += ["train.save_every=5"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_saves_and_stops_all(model_folder: Callable[..., Path], tmp_path: Path, rank: int) -> None:
    data, run = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(21)), tmp_path / "run"
    recipe = [f"model={model_folder('llama')}", f"data={data}", *LONG]
    stop = at_step(run, 7, lambda processes: os.kill(processes[rank].pid, signal.SIGTERM))
    leader, follower = trained_on(2, run, recipe, alive=stop, timeout=60)
    assert leader["code"] == 143 and "everything is saved" in leader["error"], leader
    assert follower.get("code", 143) == 143
    steps = len(curve(run))
    assert (run / "checkpoints" / f"step-{steps:06}").is_dir(), "the last whole step is saved"


def test_a_rank_that_is_killed_is_named_and_nobody_hangs(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    data, run = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(21)), tmp_path / "run"
    recipe = [f"model={model_folder('llama')}", f"data={data}", *LONG]
    kill = at_step(run, 7, lambda processes: processes[1].kill())
    leader, *_ = trained_on(3, run, recipe, alive=kill, timeout=60)
    assert "rank 1 (host" in leader["error"] and "is gone" in leader["error"], leader
    assert "rerun the same command" in leader["error"]
    assert sorted((run / "checkpoints").glob("step-*")), "and what was saved is whole"


def test_a_rank_that_stands_still_is_named_after_the_limit(
    model_folder: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, run = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(21)), tmp_path / "run"
    recipe = [f"model={model_folder('llama')}", f"data={data}", *LONG]
    freeze = at_step(run, 7, lambda processes: os.kill(processes[1].pid, signal.SIGSTOP))
    began = time.monotonic()
    found = trained_on(2, run, recipe, alive=freeze, environment={LIMIT: "6"}, timeout=60, frozen=[1])
    assert found == [{}, {}] and time.monotonic() - began < 60
    said = capfd.readouterr().err
    assert "rank 1 (host" in said and "gave no sign of life for 6 s" in said and "fix: rerun" in said


def test_a_rank_with_another_recipe_is_refused_by_name(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(21))
    recipe = [f"model={model_folder('llama')}", f"data={data}", *LONG, f"run={tmp_path / 'run'}"]
    other = RunConfig.load(None, [*recipe, "train.batch_size=8"])
    configs = [RunConfig.load(None, recipe), RunConfig.load(None, recipe), other]
    found = on_ranks(3, lambda rank: train(configs[rank]), tmp_path / "out", timeout=60)
    assert [each["code"] for each in found] == [2, 2, 2]
    assert "recipe: rank 0 on" in found[0]["error"] and "rank 2 on" in found[0]["error"]
    assert [each["error"].split(":")[0] for each in found[1:]] == ["Followed", "Followed"], "one of them speaks"
    assert not (tmp_path / "run").exists()


def test_a_rank_that_never_comes_is_named(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    config = RunConfig.load(None, [f"model={model_folder('llama')}", "data=builtin:reviews", f"run={tmp_path / 'run'}"])

    def one(rank: int) -> Any:
        if rank == 1:
            time.sleep(12)
            return "late"
        return train(config)

    found = on_ranks(2, one, tmp_path / "out", environment={LIMIT: "5"}, timeout=60)
    assert "1 of 2 processes did not come within 5 s: rank 1" in found[0]["error"] and found[0]["code"] == 2


def test_a_mistake_in_the_data_ends_all_ranks_with_code_2(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("no json\n")
    recipe = [f"model={model_folder('llama')}", f"data={data}"]
    leader, follower = trained_on(2, tmp_path / "run", recipe, timeout=60)
    assert leader["code"] == 2 and "line 1" in leader["error"]
    assert follower.get("code", 2) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"MASTER_ADDR": "no-such-host.invalid"}, "the host 'no-such-host.invalid' cannot be found"),
        ({LIMIT: "soon"}, "'soon' is not a number of seconds"),
        ({"MASTER_PORT": "1"}, "port 1 cannot be opened"),
    ],
)
def test_a_bad_address_is_one_clear_error(
    model_folder: Callable[..., Path], tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    config = RunConfig.load(None, [f"model={model_folder('llama')}", "data=builtin:reviews", f"run={tmp_path / 'run'}"])
    with socket.socket() as taken:
        if environment.get("MASTER_PORT"):
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            environment, said = {"MASTER_PORT": str(taken.getsockname()[1]), LIMIT: "5"}, "cannot be opened"
        found = on_ranks(2, lambda rank: train(config), tmp_path / "out", environment=environment, timeout=60)
    assert said in found[0]["error"] and found[0]["code"] == 2


def they_refuse() -> None:
    from luthier.pipeline import processes

    processes.run_on = lambda *_, **__: 2  # type: ignore[assignment]


def test_the_command_starts_its_processes_itself(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(21))
    words = ["train", "--model", str(model_folder("llama")), "--data", str(data), "data.validation=none"]
    words += ["train.steps=4", "train.batch_size=6", f"run={tmp_path / 'run'}", "train.log_every=4"]
    done = Command([*words, "train.processes=2"]).result()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 4/4") == 1 and "2 processes train together" in done.stdout
    assert done.stdout.count("luthier train:") == done.stdout.count("loading libraries") == 1, "one beginning"
    assert not done.stderr.strip(), done.stderr
    assert len(curve(tmp_path / "run")) == 4
    again = Command([*words, "train.processes=2", "train.batch_size=7"], before=they_refuse).result()
    assert again.returncode == 2 and not again.stderr.strip(), "they have said why: see the next test"


def test_python_trains_on_several_processes(
    model_folder: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import luthier

    settings: dict[str, Any] = {"steps": 3, "batch_size": 6, "processes": 2}
    rows, place = alpaca_rows(21), tmp_path / "run"
    run = luthier.train(
        model=model_folder("llama"), data=rows, method="lora", train=settings, run=place, progress=False
    )
    assert len(curve(place)) == 3 and run.to_dict()["steps"] == 3
    assert capfd.readouterr() == ("", "")
    settings["batch_size"] = 5
    with pytest.raises(InputError, match="2 processes ended with exit code 2"):
        luthier.train(model=model_folder("llama"), data=rows, method="lora", train=settings, run=place, progress=False)
    said = capfd.readouterr().err
    assert "train.batch_size" in said and said.count("error:") == 1
