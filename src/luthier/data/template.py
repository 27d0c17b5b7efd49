"""Dialogues to token ids and a loss mask, by the tokenizer's own chat template.

The template renders the whole dialogue; the places of the answers are found by rendering it up to and
through each answer. The three texts must be prefixes of one another and token edges must fall on the
edges of the answer, else we stop: a mask that is only nearly right trains the wrong thing in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from luthier.data.example import Message
from luthier.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that carries no loss; the value torch and transformers use."""

CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""
"""For tokenizers that have the two ChatML tokens but no template (Qwen base models)."""

PLAIN = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ message['role'] | capitalize }}:
{{ message['content'] }}{{ eos_token if message['role'] == 'assistant' else '' }}
{% endfor -%}
{%- if add_generation_prompt -%}
Assistant:
{% endif -%}"""
"""For base models without a template: `User:` / `Assistant:` lines, each answer closed by the end token."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of a dialogue and their labels, both [T]; a label is the id itself or IGNORED."""

    ids: list[int]
    labels: list[int]


class Template:
    """A tokenizer with a chat template, its own or the documented default."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.source = "the tokenizer's own"
        if not tokenizer.chat_template:
            vocabulary = tokenizer.get_vocab()
            chatml = "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary
            self.source = "Luthier's default " + ("(ChatML)" if chatml else "(User: / Assistant:)")
            if not chatml and not tokenizer.eos_token:  # an encoder's, such as BERT's, which classifies
                self.source = "none"
                return
            tokenizer.chat_template = CHATML if chatml else PLAIN

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The dialogue as text; `prompt` adds what opens the next answer."""
        if not self.tokenizer.chat_template:
            raise TemplateError(
                "the tokenizer has neither a chat template nor an end token, so an answer could never end",
                mend="give the tokenizer an eos_token, or use task=complete",
            )
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            # A base tokenizer may lack bos_token; the sandboxed Jinja then prints nothing for it.
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template may raise anything, by design
            raise TemplateError(f"the chat template refuses this dialogue: {error}") from error
        return str(text)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of text that the template made: it writes the special tokens itself."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids that open the next answer: what generation starts from."""
        return self.encode_text(self.render(messages, prompt=True))

    @cached_property
    def _special_ids(self) -> set[int]:
        """Also those without a role of their own, as Phi's <|end|> and Gemma's <end_of_turn>."""
        added = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return added | set(self.tokenizer.all_special_ids)

    @cached_property
    def end_ids(self) -> set[int]:
        """Tokens that end an answer: the template's own end of turn, and the tokenizer's end token."""
        probe = self.encode([Message("user", "hi"), Message("assistant", "hello", learn=True)])
        learned = [label for label in probe.labels if label != IGNORED]
        return {learned[-1], *([self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else [])}

    def encode(self, messages: Sequence[Message]) -> Tokens:
        """Ids of the whole dialogue, labels only on learned messages and the token that ends each of them."""
        full = self.render(messages)
        spans = [self._span(messages, i, full) for i, message in enumerate(messages) if message.learn]
        encoded = self.tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
        labels = [IGNORED] * len(ids)
        special = self._special_ids
        for start, stop in spans:
            inside = [i for i, (a, b) in enumerate(offsets) if b > a and a < stop and b > start]
            if any(offsets[i][0] < start and full[offsets[i][0] : start].strip() for i in inside):
                raise TemplateError(
                    f"a token spans the start of the answer {full[start : start + 20]!r}: "
                    "in use the model would never see that token",
                    mend="end the template's generation prompt with a newline or a special token",
                )
            # What the template writes after the end token (a newline, say) is never generated.
            ends = [i for i in inside if ids[i] in special]
            if not ends:
                raise TemplateError(
                    f"the chat template closes the answer {full[start : start + 20]!r} with no special token, "
                    "so the model would never learn to stop",
                    mend="let the template write eos_token after each assistant message",
                )
            for i in inside:
                if i <= ends[-1]:
                    labels[i] = ids[i]
        return Tokens(ids, labels)

    def _span(self, messages: Sequence[Message], index: int, full: str) -> tuple[int, int]:
        """Start and stop, in characters of `full`, of one answer and what closes it."""
        before = self.render(messages[:index], prompt=True)
        through = self.render(messages[: index + 1])
        if not through.startswith(before) or not full.startswith(through):
            raise TemplateError(
                f"the chat template renders turn {index + 1} differently when other turns follow, "
                "so its answer cannot be told apart from the prompt",
                mend="learn only the last answer, or give the tokenizer a template that appends turn by turn",
            )
        return len(before), len(through)
