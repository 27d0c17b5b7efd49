"""BitFit: train the bias terms, and nothing else.

Ben Zaken et al. 2021, arXiv 2106.10199. y = W x + b + delta, delta zero at the start: the same as training
b itself, but the base stays whole, so it can be switched off and may be quantized. About 0.1 % of an
encoder; on small data sets near full fine-tuning, on generation well below it.

When: an encoder and few rows. When not: Llama, Mistral, Qwen3 and Gemma have no biases at all, and
Qwen2 only on query, key and value. `missing: refuse` says so and stops where there is none;
`missing: add` gives every linear layer a bias of zero, which is no longer the paper's method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from luthier.errors import InputError
from luthier.methods.base import PeftMethod, split_names
from luthier.targets import check_targets

if TYPE_CHECKING:
    from torch import nn

Term = Literal["query", "key", "value", "intermediate", "output", "attention_layernorm", "output_layernorm"]


class BitFit(PeftMethod):
    """Bias terms only."""

    paper: ClassVar[str] = "2106.10199"
    suggested_lr: ClassVar[float] = 3e-3
    suggested_lr_encoder: ClassVar[float | None] = 2e-3
    typical_share: ClassVar[float] = 0.000056

    terms: tuple[Term, ...] | Literal["all"] = "all"
    """Which biases: all, or some of query, key, value, intermediate, output, attention_layernorm, output_layernorm."""
    missing: Literal["refuse", "add"] = "refuse"
    """Where linear layers have no bias: train those that exist and refuse if there is none, or add zero ones."""

    @field_validator("terms", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value if value == "all" else split_names(value)

    def peft_config(self, model: nn.Module, steps: int) -> Any:
        from luthier.tuners.bias import BitFitConfig

        return BitFitConfig(
            terms=self.terms if self.terms == "all" else list(self.terms),
            missing="add" if self.missing == "add" else "skip",
        )

    def caveat(self, model: nn.Module) -> str:
        layers = check_targets(model, "all-linear").values()
        bare = sum(getattr(layer, "bias", None) is None for layer in layers)
        if not bare or self.missing == "add":
            return ""
        return (
            f"{bare} of the {len(layers)} linear layers have no bias, so BitFit leaves them as they are; "
            "method.missing=add gives each a bias of zero"
        )

    def attach(self, model: nn.Module, *, steps: int, classify: bool = False) -> nn.Module:
        try:
            return super().attach(model, steps=steps, classify=classify)
        except InputError as error:
            if "no bias to train" not in error.message:
                raise
            kind = getattr(model.config, "model_type", "this model")
            raise InputError(
                f"method bitfit: {kind} has no bias that BitFit could train (terms: {self.terms})",
                mend="method.missing=add gives each linear layer a bias of zero, or method=lora",
            ) from None
