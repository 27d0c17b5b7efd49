"""Dialogues to token ids and a loss mask, by the tokenizer's own chat template.

The template renders the whole dialogue; an answer is what it writes behind the prompt that use shows to
the model: render(messages before it, with the generation prompt). Where an earlier answer is rendered anew
when other turns follow (reasoning models drop its thoughts), each answer gets a row of its own, which ends
with it. Every row is proved before it is handed out: prompt and row are prefixes of one another in text and
in tokens, and the ids are those of the template's own whole. Else we stop: a mask that is only nearly right
trains the wrong thing in silence.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from luthier.core.errors import TemplateError
from luthier.rendering.example import Message, RowError
from luthier.rendering.template_limits import LimitExceeded, apply_chat_template
from luthier.rendering.tool_calls import (
    TRIED_CALL,
    TRIED_RESULT,
    TRIED_TOOLS,
    Knows,
    as_turns,
    called,
    holds,
    knows,
    refuse_unseen,
)
from luthier.rendering.tools import parse, texts, tool_texts

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
    messages: Sequence[Message] = ()
    """What the ids are the rendering of."""


class Answer(NamedTuple):
    """Where a learned turn has its answer: from the end of the prompt to behind the end token, in characters."""

    turn: int
    start: int
    stop: int
    closed: bool
    """Does the template write an end token?"""


class Template:
    """A tokenizer with a chat template, its own or the documented default."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._tails: dict[str, list[int]] = {}
        self._openers: dict[bool, str | None] = {}
        self.source = "the tokenizer's own"
        if not tokenizer.chat_template:
            vocabulary = tokenizer.get_vocab()
            chatml = "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary
            self.source = "Luthier's default " + ("(ChatML)" if chatml else "(User: / Assistant:)")
            if not chatml and not tokenizer.eos_token:  # an encoder's, such as BERT's, which classifies
                self.source = "none"
                return
            tokenizer.chat_template = CHATML if chatml else PLAIN

    def render(self, messages: Sequence[Message], *, prompt: bool = False, tools: str = "") -> str:
        """The dialogue as text; `prompt` adds what opens the next answer, `tools` those on offer (Example.tools)."""
        if not self.tokenizer.chat_template:
            raise TemplateError(
                "the tokenizer has neither a chat template nor an end token, so an answer could never end",
                fix="give the tokenizer an eos_token, or use task=complete",
            )
        calls = any(message.tool_calls or message.role == "tool" for message in messages)
        if tools or calls:
            self._knows.refuse(tools, calls=calls)
        try:
            return self._render(messages, tools, calls and self._knows.short_ids, prompt=prompt)
        except LimitExceeded as error:
            raise TemplateError(f"the chat template is stopped: {error}", fix="use another chat template") from error
        except Exception as error:  # a template may raise anything, by design
            raise TemplateError(f"the chat template refuses this dialogue: {error}") from error

    def _render(self, messages: Sequence[Message], tools: str, short_ids: bool, *, prompt: bool = False) -> str:
        # A base tokenizer may lack bos_token; the sandboxed Jinja then prints nothing for it.
        turns = as_turns(messages, short_ids=short_ids)
        given = {"tools": parse(tools) or None, "add_generation_prompt": prompt}
        return str(apply_chat_template(self.tokenizer, turns, tokenize=False, **given))

    @cached_property
    def _knows(self) -> Knows:
        """What the template makes of tools and their calls."""
        return knows(self._render)

    @property
    def _tried_tools(self) -> str:
        return "" if self._knows.tools else TRIED_TOOLS

    def encode_text(self, text: str) -> list[int]:
        """Token ids of text that the template made: it writes the special tokens itself."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_ids(self, messages: Sequence[Message], tools: str = "") -> list[int]:
        """Ids that open the next answer: what generation starts from."""
        return self.encode_text(self.render(messages, prompt=True, tools=tools))

    @cached_property
    def end_ids(self) -> set[int]:
        """Tokens that end an answer: the template's own end of turn, that of a tool call, the tokenizer's end token."""
        try:
            probe = self.encode(TRIED_CALL, self._tried_tools)
        except (TemplateError, RowError):  # it knows none, and says so of the first row that has some
            return self._plain_ends
        return self._plain_ends | {[label for label in probe.labels if label != IGNORED][-1]}

    @cached_property
    def _plain_ends(self) -> set[int]:
        probe = self.encode([Message("user", "hi"), Message("assistant", "hello", learn=True)])
        learned = [label for label in probe.labels if label != IGNORED]
        return {learned[-1], *([self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else [])}

    def encode(self, messages: Sequence[Message], tools: str = "") -> Tokens:
        """The one row of a dialogue; TemplateError where the template needs several (see `rows`)."""
        first, *others = self.rows(messages, tools)
        if others:
            raise TemplateError(
                f"the chat template renders turn {len(first.messages)} differently when other turns follow, "
                "so the dialogue's answers do not fit into one row",
                fix="learn only the last answer, or give the tokenizer a template that appends turn by turn",
            )
        return first

    def rows(self, messages: Sequence[Message], tools: str = "") -> list[Tokens]:
        """Ids and labels: learned are the answers and the token that ends each, nothing else.

        One row where the template appends turn by turn. Else one per learned answer: the dialogue up to it as
        use renders it, then the answer. RowError where the text is at fault, TemplateError where the template is.
        """
        self.refuse_special(messages, tools)
        full = self.render(messages, tools=tools)
        wholes, answers, appends = [], [], True
        for turn, message in enumerate(messages):
            if not message.learn:
                continue
            before = self.render(messages[:turn], prompt=True, tools=tools)
            through = full if turn == len(messages) - 1 else self.render(messages[: turn + 1], tools=tools)
            refuse_unseen(before, messages[:turn], tools, lambda part: self.render(part, tools=tools))
            if not through.startswith(before):
                same = next((i for i, (a, b) in enumerate(zip(before, through, strict=False)) if a != b), len(through))
                raise TemplateError(
                    f"the chat template renders turn {turn + 1} differently in use and in training: the prompt goes "
                    f"on with {before[same : same + 30]!r} where the dialogue has {through[same : same + 30]!r}",
                    fix="give the tokenizer a chat_template whose generation prompt opens an answer as its turns do",
                )
            said, closed = self._said(turn, message, through[len(before) :])
            answers.append(Answer(turn, len(before), len(before) + said, closed))
            wholes.append(through)
            appends = appends and full.startswith(through[: answers[-1].stop])
        if appends:
            return [self._tokens(messages, tools, full, answers)]
        parts = [
            [replace(message, learn=i == answer.turn) for i, message in enumerate(messages[: answer.turn + 1])]
            for answer in answers
        ]
        return [self._tokens(p, tools, text, [answer]) for p, text, answer in zip(parts, wholes, answers, strict=True)]

    @cached_property
    def _special(self) -> dict[int, str]:
        """Also those without a role of their own, as Phi's <|end|> and Gemma's <end_of_turn>."""
        own = dict(zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True))
        return own | {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    @cached_property
    def _special_text(self) -> re.Pattern[str]:
        longest_first = sorted((token for token in self._special.values() if token), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def refuse_special(self, messages: Sequence[Message], tools: str) -> None:
        """No text may end a turn, open one, or pass for the template's own writing."""
        said = [(f"turn {n}: the {m.role} message", text) for n, m in enumerate(messages, 1) for text in texts(m)]
        for where, text in [*said, *(("a tool on offer", text) for text in tool_texts(tools))]:
            if found := self._special_text.search(text):
                raise RowError(
                    f"{where} contains {found[0]!r}, a special token of this "
                    "tokenizer, which the model would take for the template's",
                    fix="write it otherwise, or leave such rows out with data.on_bad_row=skip",
                )

    def _said(self, turn: int, message: Message, text: str) -> tuple[int, bool]:
        """How much of a turn's text the model says: the answer and the special token behind it, if there is one.

        What the template writes after that token (a newline, a token for the end of the dialogue) is not generated.
        """
        if message.tool_calls:
            ends = {self._special[token] for token in self._plain_ends if token in self._special}
            return called(turn, message, text, self._special_text, ends)
        content = message.content.strip()
        place = stop = 0
        for token in self._special_text.finditer(text):
            if holds(text[place : token.start()], content):
                stop = token.end()
            place = token.end()
        if stop:
            return stop, True
        if holds(text[place:], content):
            return len(text), False
        raise RowError(
            f"turn {turn + 1}: the chat template leaves out a part of the answer: {content[:40]!r} becomes "
            f"{text[:40]!r}",
            fix="give the tokenizer a chat_template that keeps it (most often, reasoning in <think> tags)",
        )

    def _tokens(self, messages: Sequence[Message], tools: str, text: str, answers: Sequence[Answer]) -> Tokens:
        """Ids of the rendered dialogue and the labels of these answers, proved."""
        whole = len(text)
        if not all(answer.closed for answer in answers):
            answers = [self._close(answer, text, messages[answer.turn]) for answer in answers]
            if answers[-1].stop > whole:
                text += self._opener(messages[answers[-1].turn]) or ""
        encoded: Any = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoded["input_ids"]
        starts = [start for start, _ in encoded["offset_mapping"]]
        self._prove(messages, tools, ids[: bisect_left(starts, whole)])
        labels = [IGNORED] * len(ids)
        for answer in answers:
            first, past = bisect_left(starts, answer.start), bisect_left(starts, answer.stop)
            self._prove_prompt(text, ids, starts, first, answer.start, messages[answer.turn].said)
            if ids[past - 1] not in self._special:
                raise TemplateError(
                    f"the tokenizer splits the token that ends an answer, {text[: answer.stop][-20:]!r}, into text",
                    fix="load the tokenizer without split_special_tokens",
                )
            labels[first:past] = ids[first:past]
        if _marked(self.tokenizer.get_chat_template(tools=parse(tools) or None)):
            self._agree(messages, tools, text, starts, answers)
        return Tokens(ids, labels, messages)

    def _close(self, answer: Answer, text: str, message: Message) -> Answer:
        """An answer with its end, where the template writes no end token, as GLM's.

        There the model says the token that opens the next turn and is stopped by it. So that token ends the
        answer: the one that follows in the dialogue or, behind the last turn, one more than the template writes.
        """
        if answer.closed:
            return answer
        opener = self._opener(message)
        if opener is None or not (text.startswith(opener, answer.stop) or len(text) == answer.stop):
            raise TemplateError(
                f"the chat template closes the answer {text[answer.start : answer.stop][:20]!r} with no special token, "
                "so the model would never learn to stop",
                fix="let the template write eos_token after each assistant message",
            )
        return answer._replace(stop=answer.stop + len(opener))

    def _prove(self, messages: Sequence[Message], tools: str, ids: list[int]) -> None:
        """The ids are the template's own whole, and no opening token is doubled."""
        if len(ids) > 1 and ids[0] == ids[1] and ids[0] in self._special:
            raise TemplateError(
                f"the row opens with {self._special[ids[0]]!r} twice",
                fix="let the chat template write bos_token once, and nothing else before the first turn",
            )
        # transformers' method encodes the rendered text by the very call that gave us the ids, so only a
        # tokenizer that brings its own can differ. It is asked about every row.
        if not self._renders_itself:
            return
        whole: Any = apply_chat_template(
            self.tokenizer, self._turns(messages), tools=parse(tools) or None, tokenize=True, return_dict=False
        )
        if list(whole) != ids:
            raise TemplateError(
                f"{type(self.tokenizer).__name__} makes {len(whole)} tokens of a dialogue whose text has {len(ids)}: "
                f"{self.tokenizer.decode(whole[:20])!r} is not {self.tokenizer.decode(ids[:20])!r}",
                fix="load the tokenizer as transformers' own class, from its tokenizer.json",
            )

    def _prove_prompt(self, text: str, ids: list[int], starts: list[int], first: int, start: int, content: str) -> None:
        """The ids before `first` are those that use starts from: prompt_ids of the messages before the answer.

        A tokenizer cuts text at its special tokens first, so the two can differ only behind the last of them.
        """
        last = first - 1
        # The id alone is not enough: unk is special and stands for any text that the vocabulary lacks.
        while last > 0 and not ((token := self._special.get(ids[last])) and text.startswith(token, starts[last])):
            last -= 1
        tail = text[starts[last] if last > 0 else 0 : start]
        expected = self._tails.get(tail)
        if expected is None:
            expected = self.encode_text(tail)
            if len(tail) < 200 and len(self._tails) < 1000:  # most templates have one: the role of the answer
                self._tails[tail] = expected
        if ids[max(last, 0) : first] == expected:
            return
        if content[:1].isspace():
            raise RowError(
                f"the answer {content[:20]!r} starts with white space, which becomes one token with the end of the "
                "prompt: in use the model would never see that token",
                fix="strip the answers, or leave such rows out with data.on_bad_row=skip",
            )
        raise TemplateError(
            f"a token spans the start of the answer {content[:20]!r}: in use the model would never see that token",
            fix="end the template's generation prompt with a newline or a special token",
        )

    def _opener(self, message: Message) -> str | None:
        """The special token that opens the turn right behind an answer, in a template that closes none.

        That is a user's turn, or behind a tool call the tool's.
        """
        calls = bool(message.tool_calls)
        if calls not in self._openers:
            talk = TRIED_CALL if calls else [Message("user", "hi"), Message("assistant", "hello")]
            longer = TRIED_RESULT if calls else [*talk, Message("user", "hi")]
            tools = self._tried_tools if calls else ""
            text, after = self.render(talk, tools=tools), self.render(longer, tools=tools)
            token = self._special_text.match(after, len(text)) if after.startswith(text) else None
            self._openers[calls] = token[0] if token and token[0] != self.tokenizer.bos_token else None
        return self._openers[calls]

    @cached_property
    def _renders_itself(self) -> bool:
        from transformers import PreTrainedTokenizerBase

        return type(self.tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template

    def _agree(
        self, messages: Sequence[Message], tools: str, text: str, starts: list[int], answers: Sequence[Answer]
    ) -> None:
        """The template's own {% generation %} markers say what we say.

        They may hold more only within the turn: its opening, which is the prompt, and white space behind its end.
        """
        encoded: Any = apply_chat_template(
            self.tokenizer,
            self._turns(messages),
            tools=parse(tools) or None,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        marks: list[int] = encoded["assistant_masks"]
        stretches = sum(mark > last for last, mark in zip([0, *marks], marks, strict=False))
        fault = "mark more than the answers" if stretches > sum(m.role == "assistant" for m in messages) else ""
        for answer in answers:
            begin = first = bisect_left(starts, answer.start)
            end = past = bisect_left(starts, answer.stop) - (not answer.closed)  # which opens the next turn
            while begin > 0 and marks[begin - 1]:
                begin -= 1
            while end < len(marks) and marks[end]:
                end += 1
            opening = len(self.render(messages[: answer.turn], tools=tools)) if begin < first else answer.start
            if not all(marks[first:past]):
                fault = fault or f"leave out a part of turn {answer.turn + 1} or the token that ends it"
            elif begin < bisect_left(starts, opening) or text[answer.stop : [*starts, len(text)][end]].strip():
                fault = fault or f"reach beyond turn {answer.turn + 1}"
        if fault:
            raise TemplateError(
                f"the chat template's generation markers {fault}",
                fix="mark in the template what the model generates: the content of an answer and its end token",
            )

    def _turns(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        calls = any(message.tool_calls for message in messages)
        return as_turns(messages, short_ids=calls and self._knows.short_ids)


@lru_cache(maxsize=8)
def _marked(template: str) -> bool:
    return bool(re.search(r"\{%[-+]?\s*generation\b", template))
