"""What PEFT's prompt learning needs to be right beside padding: positions, and the token a classifier reads.

PEFT 0.21.2 hands embeddings over without ids and positions: a decoder of transformers 5.23 counts padding as positions,
and its classifier reads the last column, which is padding. Goes when PEFT passes positions on (`PeftModel.forward`) and
transformers finds the last token by the attention mask.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from luthier.methods.layers.base import untrained_heads
from luthier.models.module_map import MODULE_MAPS


def guard_prompts(model: Any, *, classify: bool) -> None:
    """Hook the base of a PEFT prompt-learning model so that padding on either side changes nothing."""
    base = model.base_model
    names = MODULE_MAPS.get(getattr(base.config, "model_type", ""))
    if names is None or not names.causal or hasattr(base, "luthier_prompt_guard"):
        return
    base.register_forward_pre_hook(_give_positions, with_kwargs=True)
    base.luthier_prompt_guard = True
    if classify:
        getattr(base, base.base_model_prefix).register_forward_hook(_last_token_to_the_end, with_kwargs=True)


@contextmanager
def without_prompt(model: Any) -> Iterator[None]:
    """Within it, the base answers alone, with its own head."""
    # PEFT's own leaves the trained head in place here, and fails on models that do not generate.
    with untrained_heads(model):
        if hasattr(model.base_model, "prepare_inputs_for_generation"):
            with model.disable_adapter():
                yield
            return
        model.forward = model.base_model.forward
        try:
            yield
        finally:
            del model.forward


def _give_positions(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Positions by the mask: [B, past + T] of ones and zeros -> [B, T], each token's number among the real ones.

    Padding on the left would stand between prompt and text, where a sliding window counts it: it goes first.
    """
    mask, entered = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
    entered = kwargs.get("input_ids") if entered is None else entered
    if mask is None or mask.ndim != 2 or entered is None or kwargs.get("position_ids") is not None:
        return None
    if bool(mask[:, -1].all()) and not bool(mask.all()):
        order = mask.long().argsort(dim=-1, stable=True)
        mask = mask.gather(1, order)
        kwargs = {**kwargs, "attention_mask": mask}
        if kwargs.get("inputs_embeds") is not None and entered.shape[1] == mask.shape[1]:
            kwargs["inputs_embeds"] = entered.gather(1, order[..., None].expand_as(entered))
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -entered.shape[1] :]
    return args, {**kwargs, "position_ids": positions}


def _last_token_to_the_end(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Copy the hidden state of each row's last real token to the last column, which the classifier reads."""
    mask = kwargs.get("attention_mask")
    if kwargs.get("input_ids") is not None or mask is None or mask.ndim != 2:
        return None
    hidden = output.last_hidden_state.clone()  # [B, T, H]
    last = (torch.arange(mask.shape[1], device=mask.device) * (mask != 0)).argmax(-1)
    hidden[:, -1] = hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
    output.last_hidden_state = hidden
    return output
