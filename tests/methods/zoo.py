"""Every method on every architecture, small: what the promises are tested on."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.methods.base import METHODS, PRESETS, Method
from tests.conftest import model_config

ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2", "bert", "t5"]
DECODERS = [kind for kind in ARCHITECTURES if kind not in ("bert", "t5")]

SPECS: dict[str, dict[str, Any]] = {
    "full": {},
    "freeze": {"layers": 1},
    "bitfit": {"missing": "add"},
    "prefix": {"length": 4, "hidden": 16},
    "p_tuning_v2": {"length": 4},
    "prompt": {"length": 4},
    "p_tuning": {"length": 4, "hidden": 16},
    "p_tuning (lstm)": {"length": 4, "hidden": 16, "encoder": "lstm"},
    "houlsby": {"size": 8},
    "pfeiffer": {"size": 8},
    "adapter (output)": {"place": "output", "size": 8},
    "parallel_adapter": {"size": 8},
    "scaled_parallel": {"size": 8, "learned_scale": True},
    "pfeiffer (drop)": {"size": 8, "drop": 1},
    "pfeiffer (robust drop)": {"size": 8, "drop": 1, "drop_each_step": True},
    "compacter": {"size": 8},
    "compacter_pp": {"size": 8},
    "fusion": {},
    "lora": {"rank": 4},
    "lora (bias)": {"rank": 4, "bias": "lora_only"},
    "rslora": {"rank": 4},
    "dora": {"rank": 4},
    "pissa": {"rank": 4, "alpha": 4.0},
    "lora_plus": {"rank": 4},
    "adalora": {"rank": 4, "target_rank": 2},
    "mam": {"length": 4, "size": 8},
    "mam (mlp)": {"length": 4, "size": 8, "reparam": "mlp", "hidden": 16},
    "unipelt": {"length": 4, "size": 8, "rank": 4},
    "ia3": {},
    "vera": {"rank": 8},
    "oft": {"block": 8},
    "loha": {"rank": 4},
    "lokr": {"rank": 4},
    "layernorm": {},
    "peft (boft)": {"type": "boft", "boft_block_size": 4},
}

NO_T5 = "does not work on the encoder-decoder t5"
REFUSALS = {
    **{
        (name, "t5"): NO_T5
        for name in SPECS
        if name.split(" ")[0] in ("prefix", "p_tuning_v2", "prompt", "p_tuning", "mam", "unipelt")
    },
    **{(name, "gpt2"): "is a Conv1D and not an nn.Linear" for name in ("oft", "loha", "lokr")},
    ("peft (boft)", "gpt2"): r"Target module Conv1D.* is not supported",
}
"""(method, architecture) -> the words it is refused with. Everything else must work."""

NOT_THE_BASE = ("fusion", "prefix", "p_tuning_v2", "prompt", "p_tuning", "mam", "unipelt")
"""Methods that start beside the base, as their papers do: virtual tokens, or trained adapters, take part at once."""


def settings_of(name: str, kind: str) -> dict[str, Any]:
    """The method's settings on an architecture; of fusion with two adapters of it to fuse."""
    return SPECS[name] | ({"adapters": list(fused(kind))} if name == "fusion" else {})


def method(name: str, kind: str = "llama") -> Method:
    return METHODS.parse({"name": name.split(" ", maxsplit=1)[0], **settings_of(name, kind)})


@cache
def fused(kind: str, model: Path | None = None) -> tuple[str, ...]:
    """Folders of two adapters of different widths on the base, or on that in the folder `model`."""
    import transformers as t

    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for number in (1, 2):
        tuner = METHODS.parse({"name": "pfeiffer", "size": 4 * number})
        auto = t.AutoModelForSequenceClassification if classifies(kind) else t.AutoModelForCausalLM
        tuned = tuner.attach(auto.from_pretrained(model) if model else base(kind), steps=1, classify=classifies(kind))
        shake(tuned, spread=0.2, seed=number)
        tuner.save(tuned, root / str(number))
    return tuple(str(root / str(number)) for number in (1, 2))


def test_no_method_and_no_preset_is_left_out() -> None:
    assert {name.split(" ")[0] for name in SPECS} >= {*METHODS.names(), *PRESETS} - {"adapter"}


def classifies(kind: str) -> bool:
    return kind in ("bert", "t5")


def empty(kind: str, *, classify: bool | None = None) -> Any:
    """The architecture on the meta device."""
    with torch.device("meta"):
        return base(kind, classify=classify)


def base(kind: str, *, classify: bool | None = None, dropout: float = 0.0) -> Any:
    """The same small model each time, in evaluation mode, with no weight at zero."""
    import transformers as t

    config = model_config(kind)
    for key in (
        "attention_dropout",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "dropout_rate",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "classifier_dropout",
    ):
        if getattr(config, key, None) is not None:
            setattr(config, key, dropout)
    config.num_labels, config.problem_type = 3, "single_label_classification"
    auto = t.AutoModelForSequenceClassification if classifies(kind) or classify else t.AutoModelForCausalLM
    torch.manual_seed(2)
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def ids(kind: str, rows: int = 2, length: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    made = torch.randint(5, 300, (rows, length), generator=generator)
    if kind == "t5":
        made[:, -1] = 1
    return made


def attached(name: str, kind: str, *, seed: int = 3, model: Any = None, **options: Any) -> tuple[Method, nn.Module]:
    tuner = method(name, kind)
    if name == "fusion" and (folder := getattr(model, "name_or_path", "")):
        tuner = METHODS.parse({"name": name, "adapters": list(fused(kind, Path(folder)))})
    torch.manual_seed(seed)
    classify = classifies(kind) or bool(options.get("classify"))
    made = base(kind, classify=classify) if model is None else model
    return tuner, tuner.attach(made, steps=20, classify=classify).eval()


def logits(model: Any, x: Tensor, **inputs: Any) -> Tensor:
    """Of the real positions: prompt methods answer for their virtual tokens too."""
    with torch.no_grad():
        found: Tensor = model(input_ids=x, **inputs).logits
    return found[:, -x.shape[1] :] if found.ndim == 3 else found


def shake(model: nn.Module, spread: float = 0.05, seed: int = 9) -> None:
    """Move every trainable weight, so that nothing passes because it is still at its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_((noise * spread).to(parameter.device, parameter.dtype))


def loss(model: Any, x: Tensor, **inputs: Any) -> Tensor:
    """A small real task: predict the row's next token (or the class 1)."""
    found = model(input_ids=x, **inputs).logits
    if found.ndim == 2:
        return nn.functional.cross_entropy(found.float(), torch.ones(len(x), dtype=torch.long))
    found = found[:, -x.shape[1] :][:, :-1]
    return nn.functional.cross_entropy(found.float().flatten(0, 1), x[:, 1:].flatten())


Cell = tuple[str, str]


def cells(architectures: list[str] | None = None, names: list[str] | None = None) -> list[Any]:
    """Every pair of method and architecture that works."""
    return [
        pytest.param(name, kind, id=f"{name}-{kind}")
        for name in names or SPECS
        for kind in architectures or ARCHITECTURES
        if (name, kind) not in REFUSALS
    ]


def peft_names() -> list[str]:
    return [name for name in SPECS if method(name).saves == "adapter"]


def one_step(model: Any, seed: int = 0) -> list[Tensor]:
    """Loss, logits and all gradients of two rows; with `seed` for whatever drops."""
    torch.manual_seed(seed)
    model.zero_grad(set_to_none=True)
    ids = torch.arange(3, 27).view(2, 12)
    out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    return [out.loss.detach(), out.logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
