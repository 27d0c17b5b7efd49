"""Load a finished run and stream its answers, tuned or as the untouched base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from luthier.config import RunConfig
from luthier.data.example import Message
from luthier.data.template import Template
from luthier.errors import InputError
from luthier.folder import RunFolder
from luthier.models.load import load_model, load_tokenizer, locate

if TYPE_CHECKING:
    from torch import nn


class Engine:
    """A model of a run with its own template."""

    def __init__(self, config: RunConfig, model: nn.Module, template: Template) -> None:
        self.config, self.model, self.template = config, model.eval(), template
        self.limit = int(getattr(model.config, "max_position_embeddings", 2048)) - config.method.positions

    @classmethod
    def load(cls, path: Path, *, base: bool = False) -> Engine:
        """The tuned model of a run, or with `base` the model it started from."""
        folder = RunFolder.existing(path)
        config, weights = folder.config(), folder.weights()
        account = folder.data.read_text(encoding="utf-8") if folder.data.is_file() else ""
        if any(f'"name": "{name}"' in account for name in ("classify", "regress")):
            raise InputError(f"{path} is a classifier, which does not talk", mend=f"luthier evaluate {path}")
        source = locate(config.model)
        folder.refuse_another_base(config.model, source)
        # The template lies with the weights, also where Luthier chose it, so training and use cannot differ.
        template = Template(load_tokenizer(config.model, str(weights)))
        whole = config.method.saves == "model" and not base
        model = load_model(config.model, str(weights) if whole else source, labels=None, tokenizer=template.tokenizer)
        if config.method.saves == "adapter" and not base:
            model = config.method.load(model, weights)
        return cls(config, model, template)

    def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: str = "",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The answer piece by piece; temperature 0 takes the likeliest token. Leaving the loop stops the work.

        `tools` are those on offer, as Example.tools has them.
        """
        ids = self.template.prompt_ids(messages, tools)
        room = self.limit - len(ids)
        if room < 1:
            raise InputError(f"the dialogue has {len(ids)} tokens, the model takes {self.limit}", mend="start anew")
        sampling: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            sampling["temperature"] = temperature
        settings = GenerationConfig(
            max_new_tokens=min(max_new_tokens, room), eos_token_id=sorted(self.template.end_ids),
            pad_token_id=self.template.tokenizer.pad_token_id, **sampling,
        )  # fmt: skip
        streamer: Any = TextIteratorStreamer(self.template.tokenizer, skip_prompt=True, skip_special_tokens=True)
        inputs = torch.tensor([ids], device=next(self.model.parameters()).device)
        cancelled, failure = Event(), []

        def work() -> None:
            try:
                torch.manual_seed(seed)
                with torch.inference_mode():
                    self.model.generate(  # type: ignore[operator]
                        input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=settings,
                        streamer=streamer, stopping_criteria=StoppingCriteriaList([_Cancelled(cancelled)]),
                    )  # fmt: skip
            except Exception as error:  # reaches the caller below instead of dying in the thread
                failure.append(error)
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:
            cancelled.set()
            thread.join()
        if failure:
            raise failure[0]


class _Cancelled(StoppingCriteria):
    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)
