"""P-Tuning: embeddings in front of the text that come from a small trained network.

Liu et al. 2021, arXiv 2103.10385, section 2. The virtual tokens are the output of a bidirectional LSTM with
an MLP on top, or of an MLP alone, over trained embeddings, which ties them to one another. After
training only the resulting embeddings are kept; a checkpoint keeps the network too, so that a run goes
on where it stopped. Layers and file format are PEFT's.

When: understanding tasks on a decoder with few rows. When not: as for prompt tuning, it takes `length`
positions, and small bases learn little by it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.registry import Share, Size
from luthier.methods.base import PeftMethod, trainable_state

if TYPE_CHECKING:
    from torch import Tensor, nn


class PTuning(PeftMethod):
    """Embeddings in front of the text, from a prompt encoder."""

    paper: ClassVar[str] = "2103.10385"
    suggested_lr: ClassVar[float] = 1e-3
    suggested_lr_encoder: ClassVar[float | None] = 3e-3
    typical_share: ClassVar[float] = 0.0024
    mergeable: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    encoder_decoder: ClassVar[bool] = False
    aliases: ClassVar[dict[str, str]] = {
        "num_virtual_tokens": "length",
        "encoder_hidden_size": "hidden",
        "encoder_reparameterization_type": "encoder",
    }

    length: Size = 20
    """Virtual tokens."""
    encoder: Literal["mlp", "lstm"] = "mlp"
    """Network they come from; the LSTM is the paper's and has an MLP on top."""
    hidden: Size = 512
    """Hidden size of the network (PEFT's own default, the model's width, gives a 7B model 772M parameters)."""
    layers: Annotated[int, Field(gt=0, le=100)] = 2
    """Layers of the LSTM."""
    dropout: Share = 0.0
    """Dropout inside the LSTM."""

    @property
    def positions(self) -> int:
        return self.length

    def peft_config(self, model: nn.Module, steps: int) -> Any:
        from peft import PromptEncoderConfig, PromptEncoderReparameterizationType

        extra = {"encoder_num_layers": self.layers, "encoder_dropout": self.dropout} if self.encoder == "lstm" else {}
        return PromptEncoderConfig(
            num_virtual_tokens=self.length,
            encoder_reparameterization_type=PromptEncoderReparameterizationType(self.encoder.upper()),
            encoder_hidden_size=self.hidden,
            **extra,  # type: ignore[arg-type]
        )

    def disabled(self, model: nn.Module) -> AbstractContextManager[object] | None:
        from luthier.methods.layers.prompts import without_prompt

        return without_prompt(model)

    def guard(self, model: nn.Module, classify: bool) -> None:
        from luthier.methods.layers.prompts import guard_prompts

        guard_prompts(model, classify=classify)

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        return trainable_state(model)

    def write_adapter(self, model: nn.Module, folder: Path) -> None:
        """The network's own dropout must not touch what is kept, nor draw a random number that training would miss."""
        network: Any = model.prompt_encoder["default"]  # type: ignore[index]
        training = network.training
        network.eval()
        try:
            super().write_adapter(model, folder)
        finally:
            network.train(training)
