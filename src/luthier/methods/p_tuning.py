"""P-Tuning: embeddings in front of the text that come from a small trained network.

Liu et al. 2021, arXiv 2103.10385, section 2. The virtual tokens are the output of a bidirectional LSTM with
an MLP on top, or of an MLP alone, over trained embeddings, which ties them to one another. After
training only the resulting embeddings are kept; a checkpoint keeps the network too, so that a run goes
on where it stopped. Layers and file format are PEFT's.

They start at the embeddings of random tokens, as those of prompt tuning (Lester et al. 2021, arXiv 2104.08691, 3.2):
the last layer of the network is solved for that. Where a new network puts them, a base understands nothing at first.

When: understanding tasks on a decoder with few rows. When not: as for prompt tuning, it takes `length`
positions, and small bases learn little by it.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.registry import Share, Size
from luthier.methods.base import Model, PromptMethod, State, prompt_sizes, trainable_state


class PTuning(PromptMethod):
    """Embeddings in front of the text, from a prompt encoder."""

    paper, typical_share = "2103.10385", 0.0024
    suggested_lr, suggested_lr_encoder = 3e-3, 3e-3
    lr_by_width = 0
    aliases: ClassVar = {
        "num_virtual_tokens": "length",
        "encoder_hidden_size": "hidden",
        "encoder_reparameterization_type": "encoder",
    }

    length: Size = 20
    """Virtual tokens."""
    init: Literal["vocabulary", "random"] = "vocabulary"
    """Where they start: embeddings of random tokens, or wherever a new network puts them, as in the paper."""
    encoder: Literal["mlp", "lstm"] = "mlp"
    """Network they come from; the LSTM is the paper's and has an MLP on top."""
    hidden: Size = 512
    """Hidden size of the network (PEFT's own default, the model's width, gives a 7B model 772M parameters)."""
    layers: Annotated[int, Field(gt=0, le=100)] = 2
    """Layers of the LSTM."""
    dropout: Share = 0.0
    """Dropout inside the LSTM."""

    def peft_config(self, model: Model, steps: int) -> Any:
        from peft import PromptEncoderConfig, PromptEncoderReparameterizationType

        own: dict[str, Any] = {
            **prompt_sizes(model),
            "num_virtual_tokens": self.length,
            "encoder_hidden_size": self.hidden,
        }
        if self.encoder == "lstm":
            own |= {"encoder_num_layers": self.layers, "encoder_dropout": self.dropout}
        kind = PromptEncoderReparameterizationType(self.encoder.upper())
        return PromptEncoderConfig(encoder_reparameterization_type=kind, **own)

    def _begun(self, model: Model, steps: int, classify: bool) -> Model:
        tuned = super()._begun(model, steps, classify)
        if self.init == "vocabulary":
            _start_at_tokens(tuned.prompt_encoder["default"], tuned.get_input_embeddings())
        return tuned

    def training_state(self, model: Model) -> State:
        return trainable_state(model)

    def write_adapter(self, model: Model, folder: Path) -> None:
        """The network's own dropout must not touch what is kept, nor draw a random number that training would miss."""
        from luthier.kernels.frozen_linear import evaluating

        with evaluating(model.prompt_encoder["default"]):
            super().write_adapter(model, folder)


def _start_at_tokens(encoder: Any, embeddings: Any) -> None:
    """Solve the last layer of a prompt encoder so that it gives the embeddings of random tokens.

    With fewer hidden units than virtual tokens it comes as near to them as it can.
    """
    import torch

    from luthier.kernels.frozen_linear import evaluating

    last, inputs = encoder.mlp_head[-1], []
    if last.weight.is_meta:  # rank 0 has the weights
        return
    with torch.no_grad(), evaluating(encoder):
        hook = last.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        encoder(torch.arange(encoder.total_virtual_tokens, device=last.weight.device))
        hook.remove()
        hidden = inputs[0].reshape(-1, last.in_features)
        tokens = torch.randint(embeddings.num_embeddings, (len(hidden),))
        wanted = embeddings(tokens.to(embeddings.weight.device)).float().cpu()
        last.bias.zero_()
        last.weight.copy_((torch.linalg.pinv(hidden.float().cpu()) @ wanted).T)
