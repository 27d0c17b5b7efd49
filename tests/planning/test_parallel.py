"""What is planned of several devices: by formula, and beside what others measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.planning.figures import FIGURES, Figure, layout_of, per_device, planned

import luthier
from luthier.builtin import BASE
from luthier.planning import devices
from luthier.planning.devices import Cluster
from luthier.planning.parallel import BUCKET, RankWork, Units, ddp, fsdp, skew_of
from tests.cli.test_cli import main
from tests.conftest import alpaca_rows, model_config, write_jsonl

WORK = RankWork(
    held={"weights": 16_000, "trained weights": 8_000, "gradients": 8_000, "optimizer": 16_000},
    passing={"activations": 100, "logits": 10},
    passes=2.0,
    flops=6e15,
    forward=2e15,
    again=0.0,
    moved=1e12,
    calls=1e3,
    units=Units(layers=10, layer=500, rest=1_000, layer_trained=100, trained=2_000),
    tokens=1e6,
    skew=1.0,
)


def cluster(devices: str = "8xH100", nodes: int = 1) -> Cluster:
    made = Cluster.parse(devices, nodes)
    assert made is not None
    return made


def test_replicas_hold_everything_and_sum_the_gradients_of_what_trains() -> None:
    made = ddp(WORK, cluster(nodes=2))
    assert made.parts == {"program": made.parts["program"], **WORK.held, **WORK.passing} and made.shards == 1
    assert made.traffic == {"all-reduce": 2 * 15 / 16 * 4 * 2_000}
    assert ddp(WORK, cluster("1xH100")).traffic == {} and ddp(WORK, cluster("1xH100")).waiting == 0


def test_shards_hold_a_part_and_gather_two_layers() -> None:
    made = fsdp(WORK, cluster(nodes=2))
    assert made.shards == 16 and made.parts["weights"] == 1_000 and made.parts["optimizer"] == 1_000
    assert made.parts["gathered layers"] == 2 * 500 + 1_000 + 8 * 100 and made.parts["activations"] == 100
    assert made.traffic["all-gather"] == 2 * 15 / 16 * (2 * 10 * 500 + 1_000)
    assert made.traffic["reduce-scatter"] == 2 * 15 / 16 * 4 * 2_000 and "all-reduce" not in made.traffic
    own = fsdp(replace(WORK, units=WORK.units._replace(adapter=True)), cluster(nodes=2))
    assert own.parts["weights"] == 1_000 and own.parts["optimizer"] == 16_000, "an adapter is whole on each device"
    assert own.traffic["all-reduce"] == 2 * 15 / 16 * 4 * 2_000 and "reduce-scatter" not in own.traffic
    away = fsdp(replace(WORK, units=WORK.units._replace(offload=True)), cluster(nodes=2))
    assert away.parts["weights"] == away.parts["optimizer"] == 0 and away.parts["gathered layers"] > 0
    within = fsdp(WORK, cluster(nodes=2), within_node=True)
    assert within.shards == 8 and within.traffic["all-reduce"] == 2 * 2 * 1 / 2 * 4 * 2_000 / 8


def test_gathering_hides_behind_computing_until_there_is_more_of_it() -> None:
    small, huge = (WORK.units._replace(layer=layer) for layer in (10**8, 10**12))
    hidden, shown = (fsdp(replace(WORK, units=units), cluster()) for units in (small, huge))
    assert hidden.waiting < 4 * (cluster().gather(10**8, 8, 1) + cluster().gather(4 * 100, 8, 1)), "the first and last"
    assert shown.waiting > 0.9 * 2 * 2 * 10 * cluster().gather(10**12, 8, 1) - shown.compute
    assert shown.seconds == shown.compute + shown.waiting


def test_replicas_wait_for_every_bucket() -> None:
    many = replace(WORK, units=WORK.units._replace(trained=10 * BUCKET // 4))
    assert ddp(many, cluster()).waiting == pytest.approx(10 * cluster().reduce(BUCKET, 8, 1))


def test_the_slowest_device_has_the_most_tokens() -> None:
    assert skew_of([10] * 64, 16, 4, seed=0) == 1
    assert skew_of([10] * 64, 4, 8, seed=0) == 1, "idle devices are not waited for"
    assert skew_of([10] * 60, 6, 4, seed=0) == 1, "two rows each, of which the slowest has two"
    assert 1.2 < skew_of([1, 19] * 32, 8, 8, seed=0) < 2
    assert skew_of([1, 19] * 32, 64, 2, seed=0) == 1, "long rows are dealt first"


@pytest.mark.parametrize("figure", FIGURES, ids=lambda one: f"{one.model}-{one.method}-{one.nodes}x{one.devices}")
def test_published_throughput_is_planned_within_a_quarter(figure: Figure) -> None:
    assert per_device(planned(figure), ranks(figure)) == pytest.approx(figure.tokens, rel=0.25)


def ranks(figure: Figure) -> int:
    return figure.nodes * int(figure.devices.split("x")[0])


def test_published_operations_and_memory_are_planned() -> None:
    lora = planned(FIGURES[0])
    assert layout_of(lora).flops == pytest.approx(402e12, rel=0.1), "NeMo Automodel's model TFLOP/s"
    assert lora.peak < 80e9, "it ran on one H100"
    of_70b = next(figure for figure in FIGURES if figure.model == "Llama-3.1-70B" and figure.method == "lora")
    assert planned(of_70b).peak < 80e9 and planned(of_70b).parts["weights"] == pytest.approx(70.55e9 * 2 / 8, rel=0.01)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base of 24 layers that is only a config.json and a tokenizer."""
    config = model_config("llama", json.loads((BASE / "config.json").read_text())["vocab_size"])
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 256, 1024, 24
    config.dtype = "bfloat16"
    config.save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "base" / name).write_bytes((BASE / name).read_bytes())
    return tmp_path / "base"


def test_a_plan_on_a_cluster_needs_no_weights(base: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": str(base), "data": alpaca_rows(40), "train": {"batch_size": 8}}
    plan = luthier.plan(**given, devices="8xH100", nodes=4)
    assert plan.fits and plan.cluster is not None and plan.cluster["parallel"] == "ddp"
    whole, sharded, hybrid = plan.cluster["layouts"]
    assert plan.bytes == whole["bytes"] == sum(plan.parts.values())
    assert (sharded["shards"], hybrid["shards"]) == (32, 8) and hybrid["traffic"]["all-reduce"] > 0
    assert sharded["parts"]["weights"] == pytest.approx(whole["parts"]["weights"] / 32, abs=1)
    assert plan.seconds == pytest.approx(plan.steps * whole["step_seconds"])
    assert plan.cluster["idle"] == 24 and plan.cluster["ranks"] == 32
    assert luthier.plan(**given, devices="1xH100").cluster["layouts"][0]["traffic"] == {}  # type: ignore[index]
    assert luthier.plan(**given).cluster is None
    packed = luthier.plan(**{**given, "model": {"path": str(base), "quantize": "nf4"}}, devices="2xT4")
    assert packed.cluster is not None and packed.cluster["refused"] == {"fsdp": packed.cluster["why"]}
    with pytest.raises(luthier.InputError, match="unknown device 'H1000'"):
        luthier.plan(**given, devices="8xH1000")


def test_what_does_not_fit_is_sharded(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"model": str(base), "data": alpaca_rows(40), "method": "full"}
    need = luthier.plan(**given, devices="8xL4").bytes
    assert need is not None
    small = replace(devices.DEVICES["L4"], memory=int(need * 0.98))
    monkeypatch.setitem(devices.DEVICES, "L4", small)
    plan = luthier.plan(**given, devices="8xL4")
    assert plan.cluster is not None and plan.cluster["parallel"] == "fsdp" and plan.fits
    assert "take" in plan.cluster["why"] and plan.parts["gathered layers"] > 0


def test_the_command_fits_80_columns_and_prints_json(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("a.jsonl"), alpaca_rows(20))
    words = ["plan", "--model", "base", "--data", "a.jsonl", "--devices", "8xMI300X", "--nodes", "2"]
    code, out, err = main(words, capsys)
    assert code == 0, err
    table = out[out.index("each device") : out.index("train takes ddp")].splitlines()
    assert max(map(len, table)) < 80 and any("all-gather per step" in line for line in table)
    code, out, err = main([*words, "--json"], capsys)
    found = json.loads(out)
    assert code == 0 and found["cluster"]["devices"] == "8xMI300X" and not err
    code, out, err = main([*words[:-2], "--nodes", "0"], capsys)
    assert code == 2 and "--nodes: 0 is not between" in err
