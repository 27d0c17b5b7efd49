"""What is planned without numbers is what happens with them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.kernels.apply import checkpoint_layers, patched
from luthier.methods.base import METHODS
from luthier.models.load import load_model, load_tokenizer, locate
from luthier.models.settings import ModelConfig
from luthier.planning import machine, tracing
from luthier.planning.plan import PlanInputs, Workload, estimate, tuned_skeleton, workload_of
from luthier.planning.tracing import Trace, trace
from luthier.tasks.base import TASKS
from luthier.training.settings import TrainConfig
from luthier.training.step import build_optimizer
from tests.conftest import build_tokenizer, model_config
from tests.methods.zoo import DECODERS, base, empty, method

ROWS = [9, 30, 17]
LOOSE = {"dora": 0.12, "adalora": 0.05, "pfeiffer": 0.05}
"""Where PEFT or a hook holds on to some tensors a little longer with numbers than without; else a hundredth or three."""
REAL: dict[str, Any] = {"dtype": torch.float32, "autocast": None, "device": "cpu", "classify": False, "again": False}


def really(model: Any, *, packed: bool, again: bool = False, own: bool = True) -> Trace:
    """The same pass with numbers, counted in the same way; as the modules are written where it is not `own`."""
    grads = []
    if again:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
                grads.append(parameter.grad)
    known = {t.untyped_storage() for t in (*model.parameters(), *model.buffers(), *grads)}
    head = model.get_output_embeddings()
    inputs = tracing._inputs(ROWS, "cpu", packed)
    with patched(model, packed=packed) if own else nullcontext():
        head.forward = lambda hidden: hidden
        try:
            return tracing._run(model, inputs, known, torch.autocast("cpu", enabled=False))
        finally:
            del head.forward


def test_what_is_to_be_compiled_counts_as_it_is_written() -> None:
    lora = method("lora")
    real = really(lora.attach(base("llama"), steps=9).train(), packed=False, own=False)
    planned, ours = (
        trace(lora.attach(empty("llama"), steps=9).train(), ROWS, packed=False, compile=compile, **REAL)
        for compile in (True, False)
    )
    assert planned.kept == pytest.approx(real.kept, rel=0.01) and planned.kept > 1.2 * ours.kept


@pytest.mark.matrix
@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("name", ["full", "lora", "dora", "adalora", "ia3", "pfeiffer", "prefix", "prompt", "bitfit"])
@pytest.mark.parametrize("again", [False, True])
def test_a_trace_counts_what_a_pass_keeps(name: str, kind: str, again: bool) -> None:
    packs = method(name).packs
    real = really(method(name).attach(base(kind), steps=9).train(), packed=packs, again=again)
    planned = trace(method(name).attach(empty(kind), steps=9).train(), ROWS, packed=packs, **{**REAL, "again": again})
    for field in ("kept", "forward_peak", "backward_peak"):
        assert getattr(planned, field) == pytest.approx(getattr(real, field), rel=LOOSE.get(name, 0.03)), field
    assert planned.flops == pytest.approx(real.flops, rel=1e-6) and planned.forward == real.forward < real.flops
    assert planned.moved == pytest.approx(real.moved, rel=0.1), "what is asked about a tensor moves nothing"


def test_what_is_computed_again_is_not_kept() -> None:
    """A mode leaves such tensors to the garbage collector: the peak grew with each layer by all that it computes."""

    def of(layers: int) -> Trace:
        import transformers

        config = model_config("llama")
        config.num_hidden_layers = layers
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        tuned = method("lora").attach(model, steps=9).train()
        checkpoint_layers(tuned, preserve_rng_state=False)
        return trace(tuned, ROWS, packed=False, **{**REAL, "again": True})

    few, many = of(2), of(6)
    kept = many.kept - few.kept
    assert kept > 0 and many.backward_peak - few.backward_peak == pytest.approx(kept, rel=0.05)


def test_attention_counts_what_a_causal_kernel_computes() -> None:
    lora = method("lora")
    one, two = (trace(lora.attach(empty("llama"), steps=9).train(), [rows], packed=False, **REAL) for rows in (64, 128))
    layers, hidden = 2, 32
    # Twice the tokens are twice the products of the layers, and four times those of attention: 2 forward, 5 backward.
    assert two.flops - 2 * one.flops == pytest.approx(2 * layers * 7 * hidden * 64 * 64, rel=1e-6)


def test_many_layers_follow_from_one_and_two() -> None:
    def of(layers: int) -> Trace:
        import transformers

        config = model_config("llama")
        config.num_hidden_layers = layers
        config.intermediate_size = (
            8 * config.hidden_size
        )  # as in a real model, most is needed in the feed-forward block
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        return trace(method("lora").attach(model, steps=9).train(), ROWS, packed=True, **REAL)

    grown, whole = of(1).grown(of(2), 6), of(7)
    for field in Trace._fields:
        assert getattr(grown, field) == pytest.approx(getattr(whole, field), rel=0.01), field


def inputs_of(model: ModelConfig, train: TrainConfig, name: str = "lora", **rows: Any) -> PlanInputs:
    rows = {"lengths": ROWS, "learned": ROWS, "steps": 10, **rows}
    method, task = METHODS.parse(name), TASKS.parse("chat")
    source = locate(model) if model.path == "builtin" else model.path
    tuned = tuned_skeleton(model, method, source, None)
    train = train.model_copy(update={"precision": "fp32"})
    return PlanInputs(model, method, train, task, tuned, source, labels=None, seed=0, **rows)


def planned(folder: Path, name: str = "lora", **blocks: Any) -> Any:
    model = ModelConfig(path=str(folder), **blocks.pop("model", {}))
    work = Workload(60.0, 30.0, blocks.pop("passes", 2.0), ROWS, 30, packed=True)
    return estimate(inputs_of(model, TrainConfig(**blocks.pop("train", {})), name), work)


def test_weights_gradients_and_optimizer_are_counted_to_the_byte(model_folder: Callable[..., Path]) -> None:
    folder = model_folder("llama")
    config = ModelConfig(path=str(folder))
    for name, optimizer in (("full", "adamw"), ("lora", "adamw"), ("lora", "sgd"), ("full", "adamw_8bit")):
        found = planned(folder, name, train={"optimizer": optimizer})
        model = load_model(config, str(folder), labels=None, tokenizer=load_tokenizer(config, str(folder)))
        tuned = METHODS.parse(name).attach(model, steps=10).train()
        own = build_optimizer(tuned, TrainConfig(optimizer=optimizer), 1e-3)  # type: ignore[arg-type]
        tuned(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
        own.step()
        bytes_of = {
            "weights": size(p for p in tuned.parameters() if not p.requires_grad),
            "trained weights": size(p for p in tuned.parameters() if p.requires_grad),
            "gradients": size(p.grad for p in tuned.parameters() if p.grad is not None),
            "optimizer": size(
                {
                    t.data_ptr(): t
                    for s in own.state.values()
                    for k, t in s.items()
                    if isinstance(t, torch.Tensor) and t.numel() > 1 and "qmap" not in k
                }.values()
            ),
        }
        for part, expected in bytes_of.items():
            assert found.parts[part] == pytest.approx(expected, rel=0.02 if "8bit" in optimizer else 1e-9), part


def size(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_packed_weights_take_what_bitsandbytes_takes(quantize: str, tmp_path: Path) -> None:
    import transformers

    config = model_config("llama")
    config.hidden_size, config.intermediate_size = 256, 512  # whole blocks of 64
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    blocks = ModelConfig(path=str(tmp_path), quantize=quantize)  # type: ignore[arg-type]
    loaded: nn.Module = load_model(blocks, str(tmp_path), labels=None, tokenizer=load_tokenizer(blocks, str(tmp_path)))
    taken = size(loaded.parameters())
    for module in loaded.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            taken += size([state.absmax]) + (size([state.state2.absmax]) if state.nested else 0)
        elif getattr(getattr(module, "weight", None), "SCB", None) is not None:
            taken += size([module.weight.SCB])
    found = planned(tmp_path, model={"quantize": quantize})
    assert found.parts["weights"] == pytest.approx(taken, rel=0.02)


def test_the_largest_pass_is_found_and_steps_are_counted() -> None:
    lengths, learned = [10, 50, 20, 40, 30, 5], [1, 2, 3, 4, 5, 6]
    rows: dict[str, Any] = {"lengths": lengths, "learned": learned, "steps": 7}
    padded = workload_of(inputs_of(ModelConfig(), TrainConfig(batch_size=6, micro_batch=2), **rows), None)
    assert padded.largest == [50, 40] and padded.learned == 6 and padded.passes == 3
    assert padded.tokens == 2 * 10 + 2 * 30 + 2 * 50 and padded.targets == 21
    assert padded.shapes == 3, "2 rows of 50, of 30 and of 10"
    packed = workload_of(inputs_of(ModelConfig(), TrainConfig(batch_size=6), **rows), 200)
    assert sum(packed.largest) == 155 and packed.passes == packed.shapes == 1 and packed.tokens == 155


def test_what_helps_is_seen_in_the_plan_and_no_weights_need_be_there(tmp_path: Path) -> None:
    config = model_config("llama")
    config.num_hidden_layers = 12
    config.save_pretrained(tmp_path)
    usual = planned(tmp_path)
    checkpointed = planned(tmp_path, train={"gradient_checkpointing": True})
    assert checkpointed.parts["activations"] < 0.7 * usual.parts["activations"]
    assert planned(tmp_path, model={"dtype": "bfloat16"}).parts["weights"] == usual.parts["weights"] // 2
    assert planned(tmp_path, "full").parts["optimizer"] > usual.parts["optimizer"]
    assert usual.seconds > 0 and usual.target.memory > usual.target.free > 0 and usual.fits


GROWTH = """
import torch
from luthier.planning import machine
machine.watch_peak("cpu")
start = machine.peak("cpu")
some = torch.ones(2**25)
print(machine.peak("cpu") - start)
"""


def test_the_peak_of_the_process_is_watched_again() -> None:
    made = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    assert int(made.stdout) > 0.9 * 2**27


def test_this_machine_has_rates() -> None:
    rates = machine.speed("cpu", torch.float32)
    assert 1e7 < rates.products < 1e16 and 1e5 < rates.moves < 1e14 and 1e-8 < rates.call < 10


def test_rates_hold_on_a_machine_that_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for one another make every call a thousand times as long; the plan was off by as much."""
    machine.speed.cache_clear()
    quiet = machine.speed("cpu", torch.float32)
    machine.speed.cache_clear()
    clock = machine.time.perf_counter
    monkeypatch.setattr(machine.time, "perf_counter", lambda: 1000 * clock())
    busy = machine.speed("cpu", torch.float32)
    machine.speed.cache_clear()
    for rate in ("products", "moves", "call"):
        assert 0.05 < getattr(busy, rate) / getattr(quiet, rate) < 20, rate
