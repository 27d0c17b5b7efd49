"""The parts of a comparison: shared bases, variants, budgets, jobs in processes, and significance."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.comparison import workers
from luthier.comparison.candidates import method_names, variant, variants_of
from luthier.comparison.runner import share_base, steps_for_time, untie
from luthier.comparison.significance import differences_to, draws, pareto
from luthier.comparison.table import paper_results
from luthier.core.errors import InputError, Stopped
from luthier.evaluation.metrics.base import metrics_of
from luthier.methods.base import METHODS, PRESETS
from luthier.planning.advisor.question import seconds_of
from luthier.recipe.config import RunConfig
from tests.methods.zoo import SPECS, base, method

SHARED = [name for name in SPECS if "(" not in name]


def unchanged(model: torch.nn.Module, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(own, kept) for own, kept in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", SHARED)
def test_training_on_a_shared_base_leaves_the_base_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    resident = base("llama")
    resident.requires_grad_(True)
    before = [parameter.clone() for parameter in resident.parameters()]
    own = share_base(resident)
    ids = torch.randint(0, 90, (2, 7))
    assert torch.equal(own(input_ids=ids).logits, resident(input_ids=ids).logits)
    storages = {p.untyped_storage().data_ptr() for p in resident.parameters()}
    assert all(p.untyped_storage().data_ptr() in storages for p in own.parameters()), "nothing is copied"
    model = method(name).attach(own, steps=10)
    untie(model, resident)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert unchanged(resident, before)
    assert all(p.requires_grad for p in resident.parameters()), "its own flags"
    if name == "full":
        trained[0].data.add_(1)
        assert unchanged(resident, before)


def test_all_methods_are_named_once_and_unknown_ones_are_refused() -> None:
    every = method_names("all")
    assert len(every) == len(set(every)) == len(METHODS.names()) + len(PRESETS) - 2
    assert method_names("lora, bitfit,lora") == ["lora", "bitfit"]
    with pytest.raises(InputError, match=r"no method 'lara'.*lora"):
        method_names("lara")


def test_a_variant_keeps_the_recipe_s_settings_for_its_own_method_alone() -> None:
    recipe = RunConfig.load(None, ["method=lora", "method.rank=3", "train.lr=0.5"])
    own, other, packed = (
        variant(recipe, "lora").config,
        variant(recipe, "houlsby").config,
        variant(recipe, "qlora").config,
    )
    assert own.method.rank == 3 and own.train.lr == 0.5  # type: ignore[attr-defined]
    assert other.train.lr is None and other.method.name == "adapter"
    assert packed.model.quantize == "nf4" and packed.train.optimizer == "paged_adamw" and packed.train.lr is None
    plain = variant(RunConfig.load(None, ["method=qlora"]), "bitfit").config
    assert plain.model.quantize == "none", "4 bit belongs to qlora, not to the comparison"


def test_a_method_that_cannot_run_is_a_row_of_all_and_an_error_where_it_is_named() -> None:
    def check(config: RunConfig) -> None:
        if config.method.name == "bitfit":
            raise InputError("no biases here", fix="method.missing=add")

    made = variants_of(RunConfig(), "all", check)
    assert [one.name for one in made if one.reason] == ["bitfit"]
    with pytest.raises(InputError, match="no biases here"):
        variants_of(RunConfig(), "lora,bitfit", check)


def test_budgets() -> None:
    assert [seconds_of(text, "--budget", default_unit="") for text in ("90s", "1.5h", "10m")] == [90, 5400, 600]
    for text in ("10", "m", "-3m", "0s", "ten minutes"):
        with pytest.raises(InputError, match="--budget"):
            seconds_of(text, "--budget", default_unit="")
    steps = steps_for_time(600, 2.0, 50, runs=2, workers=1, most=1000)
    assert steps == 125 and steps_for_time(600, 2.0, 50, runs=2, workers=2, most=1000) == 275
    assert steps_for_time(600, 2.0, 50, runs=2, workers=1, most=7) == 7
    with pytest.raises(InputError, match=r"(?s)too short for 6 runs.*--budget \d+m"):
        steps_for_time(100, 2.0, 50, runs=6, workers=1, most=1000)


def events_of(jobs: list[Any]) -> list[workers.Event]:
    return list(workers.run_jobs(jobs, workers=2, threads=1, fork=workers.can_fork("cpu")))


def test_jobs_say_what_they_do_and_end_each_in_its_own_way() -> None:
    def done(send: workers.Send) -> int:
        send({"part": 0.5})
        return os.getpid()

    def refused(send: workers.Send) -> None:
        raise InputError("bad rank", fix="method.rank=8")

    def broken(send: workers.Send) -> None:
        raise ZeroDivisionError("oh")

    def stopped(send: workers.Send) -> None:
        raise Stopped("asked to", 143)

    events = events_of([done, refused, broken, stopped, done])
    ends = {event.job: event for event in events if event.kind != "progress"}
    assert [ends[i].kind for i in range(5)] == ["done", "failed", "failed", "stopped", "done"]
    assert sum(event.kind == "progress" for event in events) == 2 and ends[3].value == 143
    assert "bad rank" in ends[1].value and "ZeroDivisionError: oh (test_parts.py" in ends[2].value
    if workers.can_fork("cpu"):
        assert len({ends[0].value, ends[4].value, os.getpid()}) == 3


@pytest.mark.skipif(not workers.can_fork("cpu"), reason="needs fork: Linux")
def test_a_job_that_is_killed_is_a_failure_with_its_reason() -> None:
    def killed(send: workers.Send) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    (event,) = events_of([killed])
    assert event.kind == "failed" and "SIGKILL" in event.value and "memory" in event.value


@pytest.mark.skipif(not workers.can_fork("cpu"), reason="needs fork: Linux")
def test_who_leaves_ends_those_at_work(tmp_path: Path) -> None:
    def long(send: workers.Send) -> None:
        send({"part": 0.1})
        signal.signal(signal.SIGTERM, lambda *_: (tmp_path / "heard").touch() or os._exit(0))
        send({"part": 0.2})
        signal.pause()

    events = workers.run_jobs([long], workers=1, threads=1, fork=True)
    assert next(events).kind == "progress" and next(events).value == {"part": 0.2}
    events.close()
    assert (tmp_path / "heard").exists()


def labels(right: list[bool]) -> list[dict[str, Any]]:
    return [{"label": "a", "chosen": "a" if yes else "b"} for yes in right]


def test_a_real_difference_is_distinguished_from_chance_and_pairs_count() -> None:
    metric = metrics_of()["accuracy"]
    function, higher = metric.function, metric.higher
    rng = np.random.default_rng(1)
    easy = rng.random(300) < 0.7
    good = easy | (rng.random(300) < 0.4)  # right wherever `easy` is, and more
    same = easy.copy()
    same[:10] = ~same[:10]
    found = {
        name: draws(function, [labels(list(right))]) for name, right in (("good", good), ("easy", easy), ("same", same))
    }
    against = differences_to(found, "easy", higher=higher)
    assert against["good"]["verdict"] == "better" and against["good"]["p"] < 0.01
    assert against["same"]["verdict"] == "no real difference"
    low, high = found["easy"].interval
    assert low < found["easy"].value < high and abs((high - low) / 2 - 1.96 * (0.7 * 0.3 / 300) ** 0.5) < 0.01
    # Paired: the two differ in ten examples at most, so the difference is known far better than either score.
    assert against["same"]["high"] - against["same"]["low"] < (high - low) / 2


def test_holm_makes_many_comparisons_stricter() -> None:
    metric = metrics_of()["accuracy"]
    function, higher = metric.function, metric.higher
    rng = np.random.default_rng(2)
    right = rng.random(200) < 0.6
    slightly = right.copy()
    slightly[np.flatnonzero(~right)[:9]] = True
    slightly[np.flatnonzero(right)[:2]] = False
    found = {"a": draws(function, [labels(list(right))]), "b": draws(function, [labels(list(slightly))])}
    alone = differences_to(found, "a", higher=higher)["b"]["p"]
    noise = {f"n{i}": draws(function, [labels(list(rng.permutation(right)))]) for i in range(8)}
    among = differences_to(found | noise, "a", higher=higher)["b"]["p"]
    assert among > alone and among == pytest.approx(min(1.0, 9 * alone))


def test_seeds_widen_the_interval_and_sums_give_the_metric_itself() -> None:
    function = metrics_of()["accuracy"].function
    rng = np.random.default_rng(3)
    runs = [labels(list(rng.random(400) < share)) for share in (0.5, 0.7, 0.9)]
    together, one = draws(function, runs), draws(function, [runs[1]])
    assert together.value == pytest.approx(np.mean([function(run) for run in runs]))
    assert together.interval[1] - together.interval[0] > 2 * (one.interval[1] - one.interval[0])
    loss = metrics_of()["loss"].function
    pairs = zip(rng.random(50) * 9, rng.integers(1, 9, 50), strict=True)
    records = [{"loss_sum": float(x), "targets": int(n)} for x, n in pairs]
    assert draws(loss, [records]).value == pytest.approx(loss(records))
    slow = metrics_of()["spearman"].function
    pairs = [{"number": float(x), "guess": float(x + y)} for x, y in rng.random((40, 2))]
    assert len(draws(slow, [pairs]).sampled) < len(one.sampled), "it follows from no sums: fewer resamples"


def test_the_front_holds_what_nothing_beats() -> None:
    points = {"a": (1.0, 50.0), "b": (2.0, 49.0), "c": (3.0, 60.0), "d": (3.0, 55.0), "e": (9.0, 60.0)}
    assert pareto(points, higher=True) == ["a", "c"]
    assert pareto({name: (cost, -score) for name, (cost, score) in points.items()}, higher=False) == ["a", "c"]


def test_paper_results_name_methods_there_are_and_their_source() -> None:
    assert set(paper_results()) <= {*METHODS.names(), *PRESETS}
    for each in paper_results().values():
        assert set(each) == {"text", "source"} and re.match("arXiv |PEFT's comparison, https://", each["source"])
    assert "GSM8K 51.3 (48.6 to 54.0) where LoRA has 49.4" in paper_results()["rslora"]["text"], "no paper's figure"
    assert "arXiv" in paper_results()["dora"]["source"], "a paper's own figure comes first"
