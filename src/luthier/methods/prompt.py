"""Prompt tuning: trained embeddings in front of the text, and nothing else.

Lester et al. 2021, arXiv 2104.08691. X' = [P; E(x)], P: [length, H], at the input layer only. Where P starts
decides much: `init: vocabulary` takes embeddings of random tokens, `init: text` those of a text that
says the task (repeated or cut to `length`), `init: random` noise. Layers and file format are PEFT's.

When: very large models, one vector file per task, many tasks at once. When not: models under some
billion parameters, where the paper itself finds it far below full fine-tuning; it needs high learning
rates (1e-2 to 3e-1) and takes `length` positions from the text.
"""

from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from luthier.core.registry import Size
from luthier.methods.base import Model, PromptMethod, prompt_sizes


class Prompt(PromptMethod):
    """Embeddings in front of the text."""

    paper, typical_share = "2104.08691", 0.000036
    suggested_lr, suggested_lr_encoder = 3e-2, 1e-1
    lr_by_width = 0
    aliases: ClassVar = {
        "num_virtual_tokens": "length",
        "prompt_tuning_init": "init",
        "prompt_tuning_init_text": "text",
    }

    length: Size = 20
    """Virtual tokens; the paper has 100."""
    init: Literal["vocabulary", "text", "random"] = "vocabulary"
    """Where they start: embeddings of random tokens, of `text`, or noise."""
    text: str = ""
    """With `init: text`, a text that says the task."""

    @model_validator(mode="after")
    def _text_is_there(self) -> Self:
        if (self.init == "text") != bool(self.text):
            raise ValueError("init: text needs a text, and a text needs init: text")
        return self

    def peft_config(self, model: Model, steps: int) -> Any:
        from peft import PromptTuningConfig, PromptTuningInit

        init = "random" if next(model.parameters()).is_meta else self.init  # a model without weights has no embeddings
        kind = PromptTuningInit({"vocabulary": "SAMPLE_VOCAB", "text": "TEXT", "random": "RANDOM"}[init])
        own: dict[str, Any] = {**prompt_sizes(model), "num_virtual_tokens": self.length}
        if init == "text":
            own["prompt_tuning_init_text"] = self.text
            own["tokenizer_name_or_path"] = str(getattr(model.config, "_name_or_path", ""))
        return PromptTuningConfig(prompt_tuning_init=kind, **own)
