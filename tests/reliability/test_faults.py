"""A loss that is no number, a spike, no memory, a full disk, a folder that may not be written: each is caused here."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tools.soak import differences

from luthier.core.errors import Diverged, InputError, NoSpace, OutOfMemory, Stopped
from luthier.tasks.chat import Chat
from luthier.training import checkpoint as checkpoints
from luthier.training.trainer import spike
from tests.reliability.conftest import LORA, Heard, Start, forked, status

PLAIN = ["method.rank=2", "method.dropout=0.1"]


class Faulty:
    """Bends the losses of training passes, by number from 1 or by the rows of the pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        self.bend: Callable[[int, int, Any], Any] = lambda number, rows, losses: losses
        self.bend_measured: Callable[[Any], Any] = lambda losses: losses
        own = Chat.losses

        def losses(task: Any, model: Any, batch: Any) -> Any:
            if not model.training:
                found, targets = own(task, model, batch)
                return self.bend_measured(found), targets
            self.number += 1
            found, targets = own(task, model, batch)
            return self.bend(self.number, len(batch["input_ids"]), found), targets

        monkeypatch.setattr(Chat, "losses", losses)

    def heal(self) -> None:
        self.bend, self.bend_measured = (lambda number, rows, losses: losses), (lambda losses: losses)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Faulty:
    return Faulty(monkeypatch)


def history(run: Path) -> list[dict[str, Any]]:
    """Of strict JSON: what is no number must not stand in it as one."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in metrics.jsonl")

    return [json.loads(line, parse_constant=refuse) for line in (run / "metrics.jsonl").read_text().splitlines()]


def nan_in(*passes: int) -> Callable[[int, int, Any], Any]:
    return lambda number, rows, losses: losses * float("nan") if number in passes else losses


def last(run: Path) -> str:
    found, broken = checkpoints.newest(run / "checkpoints")
    assert found is not None and broken == []
    return found.name


def test_a_loss_that_is_no_number_stops_with_the_last_whole_step_saved(
    faulty: Faulty, start: Start, tmp_path: Path
) -> None:
    own = [*PLAIN, "train.save_every=8"]
    start(tmp_path / "whole", *own)
    faulty.number, faulty.bend = 0, nan_in(8)  # the second pass of step 4
    with pytest.raises(Diverged, match=r"step 4: the loss is nan, .* was not taken\n  fix: train.on_nan=skip") as stop:
        start(tmp_path / "run", *own)
    assert stop.value.exit_code == 2 and last(tmp_path / "run") == "step-000003"
    assert [record["step"] for record in history(tmp_path / "run")] == [1, 2, 3]
    faulty.heal()
    start(tmp_path / "run", *own)
    assert [d for d in differences(tmp_path / "whole", tmp_path / "run") if "step-000003" not in d] == [], (
        "nothing of the step was left"
    )


def test_with_skip_the_step_is_left_out_and_counted(faulty: Faulty, start: Start, tmp_path: Path) -> None:
    for name in ("whole", "run"):  # the second one is stopped between two bad steps and resumed
        faulty.number, faulty.bend = 0, nan_in(1, 7, 9)
        if name == "run":

            def stop(step: int) -> None:
                if step == 4:
                    os.kill(os.getpid(), 15)

            with pytest.raises(Stopped):
                start(tmp_path / name, *PLAIN, "train.on_nan=skip", progress=Heard(stop))
        heard = Heard()
        result = start(tmp_path / name, *PLAIN, "train.on_nan=skip", progress=heard)
    assert differences(tmp_path / "whole", tmp_path / "run") == []
    assert result["skipped_steps"] == 3 and result["steps"] == 8
    steps = [record for record in history(tmp_path / "run") if "loss" in record]
    assert [record["step"] for record in steps if record["loss"] is None] == [1, 4, 5]
    assert all(record.get("skipped", False) == (record["loss"] is None) for record in steps)
    assert any("step 5 was left out: loss nan" in text for text in heard.said)
    from safetensors.torch import load_file

    tuned = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in tuned.values())
    assert (tmp_path / "run" / "loss.png").exists()


def test_five_in_a_row_stop_even_with_skip(faulty: Faulty, start: Start, tmp_path: Path) -> None:
    faulty.bend = nan_in(*range(5, 99))
    with pytest.raises(Diverged, match=r"step 7: .* nor were the 4 before it"):
        start(tmp_path / "run", *PLAIN, "train.on_nan=skip")
    assert last(tmp_path / "run") == "step-000006", "the weights are those of step 2"
    assert [r["loss"] is None for r in history(tmp_path / "run") if "loss" in r] == [False] * 2 + [True] * 4


def test_a_run_that_stopped_may_go_on_with_skip(faulty: Faulty, start: Start, tmp_path: Path) -> None:
    faulty.bend = lambda number, rows, losses: losses + float("inf") if number == 5 else losses
    with pytest.raises(Diverged, match="step 3: the loss is inf"):
        start(tmp_path / "run", *PLAIN)
    faulty.number = 4
    assert start(tmp_path / "run", *PLAIN, "train.on_nan=skip")["skipped_steps"] == 1


def test_every_method_that_counts_steps_bears_one_left_out(faulty: Faulty, start: Start, tmp_path: Path) -> None:
    """AdaLoRA settles its ranks behind step 6 of 8: if that one is left out, it must not be missed."""
    for bad in (1, 5, 6, 7):
        faulty.number, faulty.bend = 0, nan_in(bad)
        own = ["method=adalora", "method.rank=4", "method.target_rank=2", "train.micro_batch=4", "data.validation=none"]
        result = start(tmp_path / str(bad), *own, "train.on_nan=skip", "train.save_every=8")
        assert result["skipped_steps"] == 1


def test_a_held_out_loss_that_is_no_number_is_never_the_best(faulty: Faulty, start: Start, tmp_path: Path) -> None:
    faulty.bend_measured = lambda losses: losses * float("nan")

    def heal(step: int) -> None:
        if step == 5:
            faulty.heal()

    with pytest.raises(Diverged, match=r"step 4: the held-out loss is nan.*\n  fix: train.on_nan=skip"):
        start(tmp_path / "run", *PLAIN)
    assert last(tmp_path / "run") == "step-000003"
    result = start(tmp_path / "run", *PLAIN, "train.on_nan=skip", progress=Heard(heal))
    assert [r["validation_loss"] is None for r in history(tmp_path / "run") if "validation_loss" in r] == [True, False]
    assert result["kept_step"] == 8 and result["kept_best"]


def test_the_curve_is_drawn_with_steps_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from luthier.reports.chart import loss_chart, png

    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 2, "validation_loss": None}]
    assert png(loss_chart([*lines, {"step": 3, "loss": 1.0}]).svg()).startswith(b"\x89PNG")
    assert png(loss_chart(lines[1:3], title="nothing but holes").svg()).startswith(b"\x89PNG")


def test_what_a_spike_is() -> None:
    calm = [1.0, 1.1, 0.9, 1.05, 0.95] * 6
    assert spike(calm, 1.9) is None and spike(calm, 2.1) == 1.0
    assert spike(calm[:19], 100.0) is None, "too few to tell"
    wild = [0.2, 1.8] * 15
    assert spike(wild, 5.0) is None and spike(wild, 9.1) == 1.0, "wild losses may jump further"
    assert spike([*calm, *[50.0] * 10], 3.0) is not None, "earlier spikes do not move the median"


def test_a_spike_is_told_and_counted_and_the_run_goes_on(faulty: Faulty, start: Start, tmp_path: Path) -> None:
    own = [*PLAIN, "train.steps=24", "train.save_every=11", "train.micro_batch=4", "train.lr=1e-4"]
    for name in ("whole", "run"):
        faulty.number, faulty.bend = 0, lambda number, rows, losses: losses * 50 if number == 22 else losses
        if name == "run":

            def stop(step: int) -> None:
                if step == 17:
                    os.kill(os.getpid(), 15)

            with pytest.raises(Stopped):
                start(tmp_path / name, *own, progress=Heard(stop))
        heard = Heard()
        result = start(tmp_path / name, *own, progress=heard)
        assert result["loss_spikes"] == 1 and result["steps"] == 24
        assert [r["step"] for r in history(tmp_path / name) if r.get("spike")] == [22]
        assert any(text.startswith("step 22: the loss is ") and "was usual" in text for text in heard.said)


def no_memory_for_more_than(most: int) -> Callable[[int, int, Any], Any]:
    def bend(number: int, rows: int, losses: Any) -> Any:
        if rows > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return losses

    return bend


def test_memory_that_runs_out_halves_the_pass_and_changes_nothing_else(
    faulty: Faulty, start: Start, tmp_path: Path
) -> None:
    """From the first step on it is the run of the smaller pass, dropout and all: the random state is put back."""
    own = [*PLAIN, "train.micro_batch=4"]
    start(tmp_path / "small", *PLAIN, "train.micro_batch=1")
    faulty.bend = no_memory_for_more_than(1)
    heard = Heard()
    result = start(tmp_path / "run", *own, progress=heard)
    assert result["rows_per_pass"] == 1
    told = [text for text in heard.said if "out of memory" in text]
    assert ["at most 2 rows" in told[0], "at most 1 rows" in told[1], len(told)] == [True, True, 2], "told once each"
    odd = {name for name in differences(tmp_path / "small", tmp_path / "run") if not name.endswith(".json")}
    assert odd == set(), "the same losses and weights; only the state says how they came about"


def test_a_resumed_run_cuts_as_before(faulty: Faulty, start: Start, tmp_path: Path) -> None:
    own = [*PLAIN, "train.micro_batch=4"]
    for name in ("whole", "run"):
        faulty.number = 0
        faulty.bend = lambda number, rows, losses: no_memory_for_more_than(2 if number > 2 else 4)(number, rows, losses)
        if name == "run":

            def stop(step: int) -> None:
                if step == 5:
                    os.kill(os.getpid(), 15)

            with pytest.raises(Stopped):
                start(tmp_path / name, *own, progress=Heard(stop))
            faulty.heal()  # memory is there again, and the run must not notice
        assert start(tmp_path / name, *own)["rows_per_pass"] == 2
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_packed_sequences_are_halved_too(faulty: Faulty, start: Start, tmp_path: Path) -> None:
    def bend(number: int, rows: int, losses: Any) -> Any:
        if number == 1:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return losses

    faulty.bend = bend
    heard = Heard()
    start(tmp_path / "run", *LORA, progress=heard)
    assert any("at most 64 tokens in a pass" in text for text in heard.said)


def test_with_one_row_in_a_pass_it_stops_with_everything_saved(faulty: Faulty, start: Start, tmp_path: Path) -> None:
    own = [*PLAIN, "train.save_every=8"]
    start(tmp_path / "whole", *own)
    faulty.number = 0
    faulty.bend = lambda number, rows, losses: (
        no_memory_for_more_than(0)(number, rows, losses) if number > 6 else losses
    )
    with pytest.raises(
        OutOfMemory, match="after step 3, with one row in a pass; everything up to there is saved"
    ) as no:
        start(tmp_path / "run", *own)
    assert "train.gradient_checkpointing=true" in str(no.value) and no.value.exit_code == 2
    assert last(tmp_path / "run") == "step-000003"


def test_memory_that_runs_out_in_the_held_out_loss(faulty: Faulty, start: Start, tmp_path: Path) -> None:
    tries = iter([True])

    def bend(losses: Any) -> Any:
        if next(tries, False):
            raise MemoryError
        return losses

    faulty.bend_measured = bend
    result = start(tmp_path / "run", *PLAIN)
    assert result["rows_per_pass"] == 1 and len(history(tmp_path / "run")) == 8 + 2


def test_memory_that_runs_out_in_the_optimizer_saves_nothing_spoiled(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = torch.optim.AdamW.step, iter(range(99))

    def failing(self: Any, *given: Any, **named: Any) -> Any:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, *given, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)
    with pytest.raises(InputError, match=r"step 3: out of memory in the optimizer \(adamw\)"):
        start(tmp_path / "run", *PLAIN)
    assert last(tmp_path / "run") == "step-000002"


def test_memory_that_the_system_refuses(shelf: Path, start: Start, tmp_path: Path) -> None:
    """A real limit: a wide model, long rows, and hardly more memory than the process has when it begins to train.

    Wide enough that what earlier tests have left in the heap of this process is not enough either.
    """
    import transformers as t

    from tests.conftest import build_tokenizer, model_config, write_jsonl

    config = model_config("llama")
    config.intermediate_size = 3 * 16384
    t.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wide")
    build_tokenizer().save_pretrained(tmp_path / "wide")
    row = {"instruction": "Count.", "input": "", "output": "1 2 3 4 5 6 7 8 9 " * 6}
    write_jsonl(tmp_path / "long.jsonl", [{**row, "instruction": f"Count {i}."} for i in range(16)])

    class Limit(Heard):
        def train_begins(self, begin: int, steps: int) -> None:
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            most = int(status["VmSize"].split()[0]) * 1024 + 200 * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def run() -> None:
        heard = Limit()
        result = start(
            tmp_path / "run",
            "method.rank=2",
            "method.dropout=0.1",
            f"model={tmp_path / 'wide'}",
            f"data={tmp_path / 'long.jsonl'}",
            "train.steps=2",
            "train.batch_size=16",
            "train.micro_batch=16",
            "data.validation=none",
            progress=heard,
        )
        assert 1 <= result["rows_per_pass"] < 16 and any("out of memory" in text for text in heard.said)

    assert status(forked(run)) == 0
    assert [record["step"] for record in history(tmp_path / "run")] == [1, 2]


def test_a_scaler_leaves_its_own_steps_out_and_a_step_of_no_number_too() -> None:
    """fp16's scaler, on a CPU: infinite gradients are its business, and the schedule goes on all the same."""
    from contextlib import nullcontext
    from types import SimpleNamespace

    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    from luthier.training.step import Loop

    Accelerator(cpu=True)  # its optimizer wants one
    layer = torch.nn.Linear(2, 1, bias=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    plain = torch.optim.SGD(layer.parameters(), lr=0.1)
    optimizer = AcceleratedOptimizer(plain, scaler=scaler)

    def clip(parameters: Any, most: float) -> Any:
        scaler.unscale_(plain)
        return torch.nn.utils.clip_grad_norm_(parameters, most)

    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        scaler=scaler,
        autocast=nullcontext,
        backward=lambda loss: scaler.scale(loss).backward(),
        clip_grad_norm_=clip,
    )
    seen: list[int] = []
    factors = [float("inf"), float("nan"), 1.0]
    loop = Loop(
        layer,
        SimpleNamespace(
            losses=lambda model, batch: (model(batch["x"]) * factors[len(seen)], torch.tensor([1])),
            targets=lambda batch: torch.tensor(1),
        ),
        optimizer,
        torch.optim.lr_scheduler.LambdaLR(plain, lambda done: 1 / (1 + done)),
        accelerator,
        after_step=seen.append,
    )
    batch = {"x": torch.ones(1, 2), "attention_mask": torch.ones(1, 2)}
    before = layer.weight.detach().clone()
    for index in (1, 2):
        found = loop.gradient([batch])
        assert not found.finite
        assert not loop.take(index, leave_out=index == 2)
        assert torch.equal(layer.weight, before) and layer.weight.grad is None
    assert scaler.get_scale() == 1.0, "halved twice"
    assert loop.gradient([batch]).finite and loop.take(3) and not torch.equal(layer.weight, before)
    assert seen == [1, 2, 3] and loop.schedule.get_last_lr() == [0.1 / 4]


@pytest.fixture
def full_device() -> Iterator[Path]:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    yield Path("/dev/full")


def test_a_disk_that_is_full_for_a_line_of_metrics(
    full_device: Path, whole: Path, start: Start, tmp_path: Path
) -> None:
    metrics = tmp_path / "run" / "metrics.jsonl"

    def fill(step: int) -> None:
        if step == 4:
            metrics.rename(tmp_path / "kept")
            metrics.symlink_to(full_device)

    with pytest.raises(NoSpace, match="what was saved before is whole") as full:
        start(tmp_path / "run", *LORA, progress=Heard(fill))
    assert full.value.exit_code == 2 and "free some space" in str(full.value)
    metrics.unlink()
    (tmp_path / "kept").rename(metrics)
    with metrics.open("a") as file:
        file.write('{"step": 5, "lo')  # as far as the disk would take it
    start(tmp_path / "run", *LORA)
    assert differences(whole, tmp_path / "run") == []


@pytest.mark.parametrize("which", ["step-000005", ".staging-adapter", "result.json"])
def test_a_disk_that_is_full_for_a_checkpoint_the_final_weights_or_the_result(
    which: str, whole: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        from luthier.core import files

        own = files.sync

        def full(path: Path) -> None:
            if which in str(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            own(path)

        patch.setattr(files, "sync", full)
        with pytest.raises(NoSpace, match="no space left on the disk") as no:
            start(tmp_path / "run", *LORA)
    assert no.value.exit_code == 2 and not (tmp_path / "run" / "result.json").exists()
    assert last(tmp_path / "run") == ("step-000004" if which == "step-000005" else "step-000008")
    start(tmp_path / "run", *LORA)
    assert differences(whole, tmp_path / "run") == []


def test_a_folder_that_may_not_be_written(shelf: Path, start: Start, tmp_path: Path) -> None:
    """In a process without the rights of root, which may write anywhere."""
    open_to_all = Path(tempfile.mkdtemp(prefix="luthier-test-", dir="/tmp"))
    try:
        shutil.copytree(shelf / "model", open_to_all / "model")
        shutil.copy(shelf / "rows.jsonl", open_to_all / "rows.jsonl")
        (open_to_all / "runs").mkdir()
        (open_to_all / "closed").mkdir(mode=0o555)
        for path in [open_to_all, *open_to_all.rglob("*")]:
            path.chmod(0o555 if path.name == "closed" else 0o777)
        own = [f"model={open_to_all / 'model'}", f"data={open_to_all / 'rows.jsonl'}", *PLAIN]
        start(tmp_path / "warm", *own)  # whatever is still to be imported, nobody else might read

        def close(step: int) -> None:
            if step == 4:
                (open_to_all / "runs" / "run" / "checkpoints").chmod(0o555)

        def run() -> None:
            if os.geteuid() == 0:
                os.seteuid(65534)
            with pytest.raises(InputError, match=r"run: cannot write in the folder .*closed/run: Permission denied"):
                start(open_to_all / "closed" / "run", *own)
            assert not list((open_to_all / "closed").iterdir())
            run = open_to_all / "runs" / "run"
            with pytest.raises(InputError, match=r"checkpoints/\S+: Permission denied; what was saved") as no:
                start(run, *own, progress=Heard(close))
            assert no.value.exit_code == 2 and "give this user access" in str(no.value)
            (run / "checkpoints").chmod(0o755)
            assert last(run) == "step-000003"
            start(run, *own)

        assert status(forked(run)) == 0
    finally:
        shutil.rmtree(open_to_all)


def test_the_terminal_bears_a_step_without_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.cli.terminal.progress import Terminal

    record = {"step": 2, "loss": None, "grad_norm": None, "lr": 1e-3}
    Terminal(1).step(record, 10.0)
    assert "step 2/0  loss NaN  lr 1.00e-03  grad NaN" in capsys.readouterr().out
