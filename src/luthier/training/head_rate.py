"""The learning rate of a classifier's new head: by the size of the features that it reads."""

from typing import Any

from luthier.methods.base import Model
from luthier.models.targets import in_head

MOVES = 1.0
"""Most that one step may move a logit. A head alone on frozen features had the lowest held-out loss at about 2 on a
BERT 384 wide, a Llama 576 wide and a Qwen2 192 wide alike, at rates of 0.1, 0.004 and 0.007 (CLINC150, 200 steps of 32
rows; `python -m benchmarks.methods.heads --frozen`). Layers below it train as well and add to that, so it is half."""


def new_head_lr(model: Model, vocabulary: int) -> float | None:
    """Peak learning rate for the head of `model`, or None where it has no head that starts random.

    A step of Adam moves each weight by about the rate, so a logit by at most the rate times the sum of |features|. That
    sum is measured on two short rows of tokens below `vocabulary`: a head reads what comes out of a norm or a tanh,
    whose size depends little on the text.
    """
    import torch

    from luthier.kernels.frozen_linear import evaluating

    trained_before = any("SequenceClassification" in name for name in model.config.architectures or ())
    layers = [layer for name, layer in model.named_modules() if in_head(name) and isinstance(layer, torch.nn.Linear)]
    if trained_before or not layers:
        return None
    rows = [[1 + (7 * place + start) % (vocabulary - 1) for place in range(16)] for start in (3, 11)]
    ids = torch.tensor(rows, device=next(model.parameters()).device)
    if (end := model.config.get_text_config().eos_token_id) is not None:  # T5 pools it, and wants as many in each row
        end = end if isinstance(end, int) else end[0]
        ids[ids == end] = abs(end - 1)
        ids[:, -1] = end
    sums: list[float] = []

    def measure(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        sums.append(float(inputs[0].float().abs().sum(-1).mean()))

    hooks = [layer.register_forward_hook(measure) for layer in layers]
    try:
        with evaluating(model):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for hook in hooks:
            hook.remove()
    return float(f"{MOVES / max(sums):.2g}")
