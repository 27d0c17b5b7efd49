"""Records what AdapterHub computes: weights and logits of tiny models, for tests/methods/parity/test_adapterhub.py.

AdapterHub (`adapters` 1.3.0, with transformers 4.57.6 and torch 2.13.0) needs another transformers than
the project, so it lives in an environment of its own and the test reads files only:

    python3 -m venv build/hubenv
    build/hubenv/bin/pip install -r tools/adapterhub/requirements.txt
    build/hubenv/bin/python tools/adapterhub/record.py

Per base model, two files in tests/methods/parity/fixtures/adapterhub/:

    BASE.safetensors    input_ids, attention_mask, logits, base/PARAMETER, and per method METHOD/logits and
                        METHOD/weights/PARAMETER with AdapterHub's own names; fp32
    BASE.json           versions, the base's configuration, per method AdapterHub's configuration and its own
                        count of the parameters

The same call gives the same files. `--folder` writes them elsewhere, to compare.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers
from adapters import (
    BnConfig,
    DoubleSeqBnConfig,
    LoRAConfig,
    MAMConfig,
    ParBnConfig,
    PrefixTuningConfig,
    SeqBnConfig,
    UniPELTConfig,
)
from safetensors.torch import save
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "methods" / "parity" / "fixtures" / "adapterhub"
PACKAGES = {"adapters": "1.3.0", "transformers": "4.57.6", "torch": "2.13.0"}
ADAPTER = "tuned"
NOISE = 0.2

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Base:
    """One base model, and which of AdapterHub's computations on it can be trusted."""

    model_type: str
    model: Any
    config: Any
    settings: dict[str, Any]
    prefix_in_sdpa: bool = True
    """A prefix is right with sdpa too. Not on Llama: AdapterHub inverts a boolean mask there and hides the prefix."""
    only: tuple[str, ...] = ()
    """Methods that it can have; empty: all."""


BASES = {
    "bert": Base("bert", transformers.BertForMaskedLM, transformers.BertConfig, SMALL),
    "llama": Base(
        "llama", transformers.LlamaForCausalLM, transformers.LlamaConfig, {**SMALL, "num_key_value_heads": 4}, False
    ),
    "llama_gqa": Base(
        "llama", transformers.LlamaForCausalLM, transformers.LlamaConfig, {**SMALL, "num_key_value_heads": 2}, False
    ),
    # AdapterHub has no Qwen2 of its own: its plugin interface hooks the layers, and knows no prefix.
    "qwen2": Base(
        "qwen2",
        transformers.Qwen2ForCausalLM,
        transformers.Qwen2Config,
        {**SMALL, "num_key_value_heads": 2},
        only=("houlsby", "houlsby_relu", "pfeiffer", "parallel"),
    ),
}


def prefix() -> PrefixTuningConfig:
    return PrefixTuningConfig(prefix_length=5, bottleneck_size=12)


METHODS: dict[str, Callable[[], Any]] = {
    "houlsby": DoubleSeqBnConfig,
    "houlsby_relu": lambda: DoubleSeqBnConfig(reduction_factor=4, non_linearity="relu"),
    "pfeiffer": SeqBnConfig,
    "output": lambda: BnConfig(mh_adapter=False, output_adapter=True, reduction_factor=8, non_linearity="gelu"),
    "parallel": ParBnConfig,
    "parallel_learned": lambda: ParBnConfig(reduction_factor=4, scaling="learned"),
    "parallel_gated": lambda: ParBnConfig(reduction_factor=4, use_gating=True),
    "prefix": prefix,
    "prefix_flat": lambda: PrefixTuningConfig(prefix_length=5, flat=True),
    "mam": lambda: MAMConfig(prefix(), ParBnConfig()),
    "unipelt": lambda: UniPELTConfig(prefix(), SeqBnConfig(reduction_factor=8), LoRAConfig(r=4)),
}

WITH_PREFIX = ("prefix", "prefix_flat", "mam", "unipelt")


def moved(parameters: dict[str, nn.Parameter], noise: float, seed: int) -> None:
    """Add normal noise to every parameter, so that none stays at a start of zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)


def fresh(base: Base, attention: str = "eager") -> Any:
    """The same base model each time, with no weight at zero."""
    torch.manual_seed(1)
    model = base.model(base.config(**base.settings, attn_implementation=attention)).eval()
    moved(dict(model.named_parameters()), 0.1, seed=2)
    return model


def batch() -> dict[str, Tensor]:
    """Two rows of seven tokens, the second padded by two."""
    ids = torch.randint(1, SMALL["vocab_size"], (2, 7), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    ids[1, -2:], mask[1, -2:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**batch(), **({"use_cache": False} if model.config.model_type != "bert" else {})).logits


def tuned(base: Base, config: Any, attention: str = "eager") -> tuple[Any, dict[str, nn.Parameter]]:
    """The base with an adapter, and the adapter's parameters."""
    model = fresh(base, attention)
    known = {name for name, _ in model.named_parameters()}
    adapters.init(model)
    torch.manual_seed(4)
    model.add_adapter(ADAPTER, config=config)
    model.set_active_adapters(ADAPTER)
    parameters = {name: p for name, p in model.named_parameters() if name not in known}
    moved(parameters, NOISE, seed=5)
    if known - {name for name, _ in model.named_parameters()}:
        raise RuntimeError("AdapterHub has renamed parameters of the base")
    return model.eval(), parameters


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference at real tokens."""
    real = batch()["attention_mask"].bool()
    return float((a[real] - b[real]).abs().max())


def record(name: str, base: Base, folder: Path) -> None:
    plain = fresh(base)
    untouched = logits(plain)
    tensors = {**batch(), "logits": untouched}
    tensors |= {f"base/{key}": p.detach() for key, p in plain.named_parameters()}
    cases = {}
    for method in base.only or METHODS:
        model, parameters = tuned(base, METHODS[method]())
        found = logits(model)
        count = next(row["#param"] for row in model.adapter_summary(as_dict=True) if row["name"] == ADAPTER)
        if count != sum(p.numel() for p in parameters.values()):
            raise RuntimeError(f"{name} {method}: AdapterHub counts {count} parameters, recorded are others")
        agrees = base.prefix_in_sdpa or method not in WITH_PREFIX
        if agrees and difference(found, logits(tuned(base, METHODS[method](), "sdpa")[0])) > 5e-6:
            raise RuntimeError(f"{name} {method}: AdapterHub's eager and sdpa differ")
        effect = difference(found, untouched)
        if effect < 0.1:
            raise RuntimeError(f"{name} {method}: the adapter changes next to nothing ({effect})")
        tensors[f"{method}/logits"] = found
        tensors |= {f"{method}/weights/{key}": p.detach() for key, p in parameters.items()}
        cases[method] = {"parameters": count, "effect": round(effect, 3), "config": METHODS[method]().to_dict()}
        print(f"{name:10} {method:17} {count:6} parameters  largest |tuned - base| {effect:.3f}")
    content = save({key: value.contiguous().clone() for key, value in tensors.items()})
    (folder / f"{name}.safetensors").write_bytes(content)
    about = {
        "versions": {package: version(package) for package in PACKAGES},
        "attention": "eager",
        "base": {"model_type": base.model_type, **base.settings},
        "adapter": ADAPTER,
        "methods": cases,
    }
    (folder / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Record AdapterHub's weights and logits of tiny models.")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    for package, wanted in PACKAGES.items():
        if version(package).split("+")[0] != wanted:
            raise SystemExit(f"{package} is {version(package)}, the files are made with {wanted}: see requirements.txt")
    transformers.logging.set_verbosity_error()
    logging.getLogger("adapters").setLevel(logging.ERROR)  # it warns between adding an adapter and using it
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for name, base in BASES.items():
        record(name, base, folder)


if __name__ == "__main__":
    main()
