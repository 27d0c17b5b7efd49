"""LoRA: learn a low-rank update of frozen weights.

Hu et al. 2021, arXiv 2106.09685, section 4.1. For a frozen weight W: [out, in],

    y = x W^T + (alpha / rank) dropout(x) A^T B^T      A: [rank, in], B: [out, rank]

A starts as Kaiming-uniform noise and B as zero, so training starts from the base model exactly.
Trainable parameters: rank * (in + out) per adapted layer. After training the update folds into W,
so a merged model costs nothing at inference. The layers and the file format are PEFT's.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from luthier.errors import InputError, did_you_mean
from luthier.methods.base import Method

if TYPE_CHECKING:
    from torch import nn


class LoRA(Method):
    """Low-rank updates of chosen linear layers."""

    paper: ClassVar[str] = "2106.09685"
    suggested_lr: ClassVar[float] = 2e-4
    aliases: ClassVar[dict[str, str]] = {
        "r": "rank",
        "lora_r": "rank",
        "lora_rank": "rank",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "target_modules": "targets",
        "lora_target": "targets",
    }

    rank: PositiveInt = 16
    """Rank of the update: more rank, more capacity, memory and adapter bytes."""
    alpha: PositiveFloat = 32.0
    """Strength of the update, which is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the inputs of A dropped during training; 0.05 to 0.1 helps on small data sets."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers to adapt, such as q_proj and v_proj, or all-linear: every one but the output."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Also train bias terms: of no layer, of every layer, or of the adapted layers."""

    @field_validator("targets", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """`q_proj,v_proj` on the command line counts as a list."""
        if isinstance(value, str) and value != "all-linear":
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    def attach(self, model: nn.Module, *, steps: int, classify: bool = False) -> nn.Module:
        from peft import LoraConfig, TaskType, get_peft_model

        self._check_targets(model)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT annotates int and computes with float
            lora_dropout=self.dropout,
            target_modules=self.targets if isinstance(self.targets, str) else list(self.targets),
            bias=self.bias,
            # SEQ_CLS makes PEFT train the head and keep it in the adapter file.
            task_type=TaskType.SEQ_CLS if classify else TaskType.CAUSAL_LM,
        )
        tuned = get_peft_model(model, config)
        for parameter in tuned.parameters():
            if parameter.requires_grad:  # optimizer states and small updates need float32
                parameter.data = parameter.data.float()
        return tuned

    def _check_targets(self, model: nn.Module) -> None:
        """PEFT accepts a list of which only one name matches, in silence: every name must hit a layer."""
        from torch import nn as torch_nn

        if isinstance(self.targets, str):
            return
        # Quantized and Conv1D layers are no nn.Linear, so any module with a 2-D weight counts.
        layers = {
            name
            for name, module in model.named_modules()
            if getattr(getattr(module, "weight", None), "ndim", 0) == 2 and not isinstance(module, torch_nn.Embedding)
        }
        short = sorted({name.rpartition(".")[2] for name in layers})
        for target in self.targets:
            if not any(name == target or name.endswith(f".{target}") for name in layers):
                raise InputError(
                    f"method.targets: no layer is named {target!r}{did_you_mean(target, short)}",
                    mend=f"choose from {', '.join(short)}, or method.targets=all-linear",
                )

    def disabled(self, model: nn.Module) -> AbstractContextManager[object] | None:
        if self.bias != "none":  # biases train in place, so the base is no longer there
            return None
        return model.disable_adapter()  # type: ignore[operator, no-any-return]

    def save(self, model: nn.Module, folder: Path) -> None:
        # save_embedding_layers="auto" would ask the hub for the base model's config.
        model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's card is an empty form

    def restore(self, model: nn.Module, folder: Path) -> None:
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors.torch import load_file

        stored = load_file(folder / "adapter_model.safetensors")
        expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
        if expected != set(stored):
            odd = sorted(expected ^ set(stored))
            raise InputError(f"{folder}: {len(odd)} adapter weights do not match this model, among them {odd[0]}")
        set_peft_model_state_dict(model, stored)

    def merge(self, model: nn.Module) -> nn.Module:
        return model.merge_and_unload()  # type: ignore[operator, no-any-return]
