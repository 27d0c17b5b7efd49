"""Full fine-tuning: train every weight of the base model.

The most capacity, the most memory: with AdamW in float32 about 16 bytes per parameter before
activations. Learning rates are small, 1e-5 to 5e-5 for pretrained encoders and 1e-5 to 2e-5 for
large decoders; small models trained from scratch bear a hundred times that.

When: the base is small, or far from the task, and memory is there. When not: many variants of one
base are to be kept, the base is quantized, or there are few rows.
"""

from luthier.methods.base import Model, WholeMethod
from luthier.models.targets import in_head, text_part


class Full(WholeMethod):
    """Train every weight of the base model."""

    suggested_lr, suggested_lr_encoder = 4e-5, 2.5e-5
    typical_share = 1.0

    def attach(self, model: Model, *, steps: int, classify: bool = False) -> Model:
        # Half-precision weights lose small updates, and AMP refuses to unscale fp16 gradients.
        model.float().requires_grad_(True)
        if text := text_part(model):
            output = model.get_output_embeddings()
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith(text) or parameter is output.weight or in_head(name))
        return model
