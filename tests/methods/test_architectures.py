"""Every method on every causal architecture of transformers that can be built tiny: it works, or says why it does not.

`make architectures-table` runs all of them and writes what they found into docs/architectures.md.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.core.errors import InputError
from luthier.kernels.apply import patched
from luthier.methods.base import METHODS, Method, trainable_state
from luthier.models.targets import expert_tensors
from tests.architectures import CAUSAL, tiny
from tests.methods.zoo import NOT_THE_BASE, SPECS

NAMES = [name for name in SPECS if " " not in name and name != "fusion"]  # fusion has the places of its adapters
OWN_SPECS: dict[str, dict[str, Any]] = {"bitfit": {"missing": "add"}}
NO_CACHE = ("openai-gpt", "rwkv", "falcon_mamba", "mamba", "mamba2", "cpmant", "recurrent_gemma", "xlstm")
"""Their outputs carry no cache that can be handed in again in the form of the others."""
CHOOSES = ("deepseek_v32", "hy_v4", "axk2", "glm_moe_dsa", "deepseek_v4")
"""They attend to the tokens that rank highest, and the last bits of a number decide: with a cache, other ones do."""
NO_GRADIENT = ("expert_bias", "e_score_correction_bias", ".indexer.", ".compressor.", "position_bias")
"""Parameters of a whole block that choose experts or tokens, or need a longer text than here."""


def ids() -> Tensor:
    return torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(1))


def answer(model: Any, x: Tensor) -> Tensor:
    """Logits of the text's own tokens, without a cache: [rows, tokens, vocabulary]."""
    with torch.no_grad():
        logits = model(input_ids=x, attention_mask=torch.ones_like(x), use_cache=False).logits
    return logits[:, -x.shape[1] :]


def written(model: Any, x: Tensor, *, cached: bool) -> list[list[int]]:
    """Six greedy tokens after each row."""
    made = model.generate(
        input_ids=x, attention_mask=torch.ones_like(x), max_new_tokens=6, do_sample=False, use_cache=cached
    )
    return made[:, -6:].tolist()  # type: ignore[no-any-return]


def stepwise(model: Any, x: Tensor) -> Tensor:
    """Logits of the last five tokens, each read on its own with the cache of those before it."""
    cache, start, made = None, x.shape[1] - 5, []
    with torch.no_grad():
        for end in range(start + 1, x.shape[1] + 1):
            entered = x[:, : end if cache is None else None][:, 0 if cache is None else end - 1 : end]
            mask = torch.ones(len(x), end, dtype=torch.long)
            output = model(input_ids=entered, attention_mask=mask, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            made.append(output.logits[:, -1:])
    return torch.cat(made, dim=1)


def moved(model: nn.Module) -> None:
    """Give every trained weight another value, the same each time."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.05)


def refusal(method: Method, kind: str) -> str:
    """Why the method is refused before any weights are read, or empty."""
    with torch.device("meta"):
        empty = tiny(kind)
    try:
        method.check(empty, steps=20)
    except InputError as error:
        return str(error).splitlines()[0]
    return ""


@pytest.mark.slow
@pytest.mark.matrix(kind=16)
@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("name", NAMES)
def test_each_method_works_on_each_architecture_or_is_refused_with_the_reason(
    name: str, kind: str, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    method = METHODS.parse({"name": name, **SPECS[name]})
    if why := refusal(method, kind):
        record_property("architecture", (kind, name, why))
        return
    x, base = ids(), tiny(kind)
    plain = answer(base, x)
    torch.manual_seed(3)
    model = method.attach(base, steps=20).eval()
    if name not in NOT_THE_BASE:
        torch.testing.assert_close(answer(model, x), plain, atol=2e-3, rtol=0, msg="starts as the base")
    moved(model)
    with patched(model.train()):
        model(input_ids=x, labels=x, attention_mask=torch.ones_like(x), use_cache=False).loss.backward()
    model.eval()
    trained = {
        n: p for n, p in model.named_parameters() if p.requires_grad and not any(part in n for part in NO_GRADIENT)
    }
    idle = [n for n, p in trained.items() if p.grad is None or not p.grad.any()]
    assert not idle or method.saves == "model", f"{len(idle)} of {len(trained)} weights get no gradient: {idle}"
    tuned = answer(model, x)
    assert (tuned - plain).abs().max() > 1e-6, "answers as the base"
    if (context := method.disabled(model)) is not None:
        with context:
            gap = (answer(model, x) - plain).abs().max()
            assert gap < (2e-3 if name == "pissa" else 1e-5), "is the base when disabled"
    if kind not in (*NO_CACHE, *CHOOSES) and (stepwise(tiny(kind), x) - plain[:, -5:]).abs().max() < 1e-4:
        if method.positions:  # PEFT puts a prompt before every call but those of generate
            assert written(model, x, cached=True) == written(model, x, cached=False), "writes with a cache as without"
        else:
            assert (stepwise(model, x) - tuned[:, -5:]).abs().max() < 1e-3, "answers with a cache as without"
    method.save(model, tmp_path)
    loaded = method.load(tiny(kind), tmp_path).eval()
    torch.testing.assert_close(answer(loaded, x), tuned, atol=5e-4, rtol=1e-4, msg="answers as before after loading")
    if method.mergeable and method.saves == "adapter":
        merged = method.merge(model).eval()
        torch.testing.assert_close(answer(merged, x), tuned, atol=1e-3, rtol=0, msg="merged answers the same")
    record_property("architecture", (kind, name, ""))


@pytest.mark.slow
@pytest.mark.matrix(kind=12)
@pytest.mark.parametrize("kind", CAUSAL)
def test_every_weight_of_lora_gets_a_gradient(kind: str) -> None:
    """Experts too: the text is long enough for each to be chosen, and DeepSeek-V4's for a compressed block of 128."""
    size = (1, 260) if kind == "deepseek_v4" else (4, 40)
    x = torch.randint(3, 90, size, generator=torch.Generator().manual_seed(1))
    model = METHODS.parse({"name": "lora", "rank": 4}).attach(tiny(kind), steps=20)
    moved(model)
    with patched(model.train()):
        model(input_ids=x, labels=x, attention_mask=torch.ones_like(x), use_cache=False).loss.backward()
    trained = trainable_state(model)
    assert not [n for n, p in trained.items() if p.grad is None or not p.grad.any()]
    fused = expert_tensors(tiny(kind))
    assert sum(getattr(layer, "num_experts", 1) > 1 for layer in model.modules()) >= sum(
        len(p) > 1 for p in fused.values()
    )
