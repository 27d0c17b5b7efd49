"""Dialogues to token ids and a loss mask, by the tokenizer's own chat template.

The template renders the whole dialogue; an answer is what it writes after the prompt that the model is given in
generation: render(messages before it, with the generation prompt). Where an earlier answer is rendered differently
when other turns follow (reasoning models drop its thoughts), each answer gets a row of its own, which ends with it.
Every row is checked before it is returned: prompt and row are prefixes of one another in text and in tokens, and the
ids are those of the template's own whole. Otherwise it is an error: a mask that is only nearly right silently trains
the wrong thing.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from luthier.core.errors import TemplateError
from luthier.rendering import tools as tool_checks
from luthier.rendering.example import Message, RowError, shared_start
from luthier.rendering.row import IGNORED, Row
from luthier.rendering.template_limits import LimitExceeded, apply_chat_template
from luthier.rendering.tools import PROBE_CALL, PROBE_RESULT, PROBE_TOOLS, as_turns, contains, parse, strings, texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKER = re.compile(r"\{%[-+]?\s*generation\b")

CHATML = Path(__file__).with_name("chatml.jinja").read_text(encoding="utf-8").removesuffix("\n")
"""For tokenizers that have the two ChatML tokens but no template (Qwen base models)."""
PLAIN = Path(__file__).with_name("plain.jinja").read_text(encoding="utf-8").removesuffix("\n")
"""For base models without a template: `User:` / `Assistant:` lines, each answer closed by the end token."""


class AnswerSpan(NamedTuple):
    """The answer of a learned turn in the text: from the end of the prompt to after the end token, in characters."""

    turn: int
    start: int
    stop: int
    closed: bool
    """Does the template write an end token?"""


class Template:
    """A tokenizer with a chat template, its own or the documented default."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self._tail_ids = lru_cache(maxsize=128)(self.encode_text)  # most templates have one: the role of the answer
        self._opener = lru_cache(self._find_opener)
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
            why = "the tokenizer has neither a chat template nor an end token, so an answer could never end"
            raise TemplateError(why, fix="give the tokenizer an eos_token, or use task=complete")
        calls = any(message.tool_calls or message.role == "tool" for message in messages)
        if tools or calls:
            self._tool_support.refuse(tools, calls=calls)
        try:  # A base tokenizer may lack bos_token; the sandboxed Jinja then prints nothing for it.
            return str(self._apply(messages, tools, tokenize=False, add_generation_prompt=prompt))
        except LimitExceeded as error:
            raise TemplateError(f"the chat template is stopped: {error}", fix="use another chat template") from error
        except Exception as error:  # a template may raise anything, by design
            raise TemplateError(f"the chat template refuses this dialogue: {error}") from error

    def _apply(self, messages: Sequence[Message], tools: str, short_ids: bool | None = None, **options: Any) -> Any:
        """The tokenizer's own `apply_chat_template`; calls get short ids if its template needs them."""
        if short_ids is None:
            calls = any(message.tool_calls or message.role == "tool" for message in messages)
            short_ids = calls and self._tool_support.short_ids
        turns = as_turns(messages, short_ids=short_ids)
        return apply_chat_template(self.tokenizer, turns, tools=parse(tools) or None, **options)

    @cached_property
    def _tool_support(self) -> tool_checks.ToolSupport:
        return tool_checks.probe(lambda *asked: str(self._apply(*asked, tokenize=False)))

    @property
    def _probe_tools(self) -> str:
        return "" if self._tool_support.tools else PROBE_TOOLS

    def encode_text(self, text: str) -> list[int]:
        """Token ids of text that the template rendered: it writes the special tokens itself."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_ids(self, messages: Sequence[Message], tools: str = "") -> list[int]:
        """Ids that open the next answer: what generation starts from."""
        return self.encode_text(self.render(messages, prompt=True, tools=tools))

    @cached_property
    def end_ids(self) -> set[int]:
        """Tokens that end an answer: the template's own end of turn, that of a tool call, the tokenizer's end token."""
        try:
            return self._plain_ends | {self._last_learned(PROBE_CALL, self._probe_tools)}
        except (TemplateError, RowError):  # it supports no calls, and reports so at the first row that has some
            return self._plain_ends

    @cached_property
    def _plain_ends(self) -> set[int]:
        last = self._last_learned([Message("user", "hi"), Message("assistant", "hello", learn=True)])
        return {last} if self.tokenizer.eos_token_id is None else {last, self.tokenizer.eos_token_id}

    def _last_learned(self, messages: Sequence[Message], tools: str = "") -> int:
        return [label for label in self.encode(messages, tools).labels if label != IGNORED][-1]

    def encode(self, messages: Sequence[Message], tools: str = "") -> Row:
        """The one row of a dialogue; TemplateError where the template needs several (see `rows`)."""
        first, *others = self.rows(messages, tools)
        if others:
            why = f"the chat template renders turn {len(first.messages)} differently when other turns follow, "
            why += "so the dialogue's answers do not fit into one row"
            fix = "learn only the last answer, or give the tokenizer a template that appends turn by turn"
            raise TemplateError(why, fix=fix)
        return first

    def rows(self, messages: Sequence[Message], tools: str = "") -> list[Row]:
        """Ids and labels: learned are the answers and the token that ends each, nothing else.

        One row where the template appends turn by turn. Otherwise one per learned answer: the dialogue up to it as
        in generation, then the answer. RowError where the text is at fault, TemplateError where the template is.
        """
        self.refuse_special(messages, tools)
        full = self.render(messages, tools=tools)
        wholes, answers, appends = [], [], True
        for turn, message in enumerate(messages):
            if not message.learn:
                continue
            before = self.render(messages[:turn], prompt=True, tools=tools)
            through = full if turn == len(messages) - 1 else self.render(messages[: turn + 1], tools=tools)
            tool_checks.refuse_unseen(before, messages[:turn], tools, lambda part: self.render(part, tools=tools))
            if not through.startswith(before):
                same = shared_start(before, through)
                why = f"the chat template renders turn {turn + 1} differently in use and in training: the prompt goes "
                why += f"on with {before[same : same + 30]!r} where the dialogue has {through[same : same + 30]!r}"
                fix = "give the tokenizer a chat_template whose generation prompt opens an answer as its turns do"
                raise TemplateError(why, fix=fix)
            size, closed = self._answer_size(turn, message, through[len(before) :])
            answers.append(AnswerSpan(turn, len(before), len(before) + size, closed))
            wholes.append(through)
            appends = appends and full.startswith(through[: answers[-1].stop])
        if appends:
            return [self._tokens(messages, tools, full, answers)]
        rows = []
        for text, answer in zip(wholes, answers, strict=True):
            part = [replace(message, learn=i == answer.turn) for i, message in enumerate(messages[: answer.turn + 1])]
            rows.append(self._tokens(part, tools, text, [answer]))
        return rows

    @cached_property
    def special(self) -> dict[int, str]:
        """All special tokens, also those without a role of their own, as Phi's <|end|> and Gemma's <end_of_turn>."""
        own = dict(zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True))
        return own | {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    @cached_property
    def _special_text(self) -> re.Pattern[str]:
        longest_first = sorted(filter(None, self.special.values()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def refuse_special(self, messages: Sequence[Message], tools: str) -> None:
        """RowError where a text contains a special token: it could open or end a turn as the template does."""
        given = [(f"turn {n}: the {m.role} message", text) for n, m in enumerate(messages, 1) for text in texts(m)]
        for where, text in [*given, *(("a tool on offer", text) for text in strings(parse(tools)))]:
            if found := self._special_text.search(text):
                why = f"{where} contains {found[0]!r}, a special token: the model would take it for the template's"
                raise RowError(why, fix="write it otherwise, or leave such rows out with data.on_bad_row=skip")

    def _answer_size(self, turn: int, message: Message, text: str) -> tuple[int, bool]:
        """Characters of a turn's text that the model generates, and whether a special token ends them.

        What the template writes after that token (a newline, a token for the end of the dialogue) is not generated.
        """
        if message.tool_calls:
            ends = {self.special[token] for token in self._plain_ends if token in self.special}
            return tool_checks.answer_size(turn, message, text, self._special_text, ends)
        content = message.content.strip()
        place = stop = 0
        for token in self._special_text.finditer(text):
            if contains(text[place : token.start()], content):
                stop = token.end()
            place = token.end()
        if stop or contains(text[place:], content):
            return stop or len(text), bool(stop)
        why = f"the chat template leaves out a part of the answer: {content[:40]!r} becomes {text[:40]!r}"
        fix = "give the tokenizer a chat_template that keeps it (most often, reasoning in <think> tags)"
        raise RowError(f"turn {turn + 1}: {why}", fix=fix)

    def _tokens(self, messages: Sequence[Message], tools: str, text: str, answers: Sequence[AnswerSpan]) -> Row:
        """Ids of the rendered dialogue and the labels of these answers, checked."""
        whole = len(text)
        answers = [answer if answer.closed else self._close(answer, text, messages) for answer in answers]
        if answers and answers[-1].stop > whole:
            text += self._opener(bool(messages[answers[-1].turn].tool_calls)) or ""
        encoded: Any = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoded["input_ids"]
        starts = [start for start, _ in encoded["offset_mapping"]]
        self._check_ids(messages, tools, ids[: bisect_left(starts, whole)])
        labels = [IGNORED] * len(ids)
        for answer in answers:
            first, past = bisect_left(starts, answer.start), bisect_left(starts, answer.stop)
            self._check_prompt(text, ids, starts, first, answer.start, messages[answer.turn].all_text)
            if ids[past - 1] not in self.special:
                why = f"the tokenizer splits the token that ends an answer, {text[: answer.stop][-20:]!r}, into text"
                raise TemplateError(why, fix="load the tokenizer without split_special_tokens")
            labels[first:past] = ids[first:past]
        if MARKER.search(self.tokenizer.get_chat_template(tools=parse(tools) or None)):
            self._check_markers(messages, tools, text, starts, answers)
        return Row(ids, labels, messages=messages)

    def _close(self, answer: AnswerSpan, text: str, messages: Sequence[Message]) -> AnswerSpan:
        """An answer with its end, where the template writes no end token, as GLM's.

        There the model generates the token that opens the next turn and is stopped by it. So that token ends the
        answer: the one that follows in the dialogue or, after the last turn, one more than the template writes.
        """
        opener = self._opener(bool(messages[answer.turn].tool_calls))
        if opener is None or not (text.startswith(opener, answer.stop) or len(text) == answer.stop):
            why = f"the chat template closes the answer {text[answer.start : answer.stop][:20]!r} with no special "
            why += "token, so the model would never learn to stop"
            raise TemplateError(why, fix="let the template write eos_token after each assistant message")
        return answer._replace(stop=answer.stop + len(opener))

    def _check_ids(self, messages: Sequence[Message], tools: str, ids: list[int]) -> None:
        """The ids are the template's own whole, and no opening token is doubled."""
        if len(ids) > 1 and ids[0] == ids[1] and ids[0] in self.special:
            fix = "let the chat template write bos_token once, and nothing else before the first turn"
            raise TemplateError(f"the row opens with {self.special[ids[0]]!r} twice", fix=fix)
        # transformers' method encodes the rendered text by the very call that gave us the ids, so only a
        # tokenizer with a method of its own can differ. It is checked on every row.
        from transformers import PreTrainedTokenizerBase

        if type(self.tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template:
            return
        whole = self._apply(messages, tools, tokenize=True, return_dict=False)
        if list(whole) != ids:
            why = f"{type(self.tokenizer).__name__} makes {len(whole)} tokens of a dialogue whose text has {len(ids)}: "
            why += f"{self.tokenizer.decode(whole[:20])!r} is not {self.tokenizer.decode(ids[:20])!r}"
            raise TemplateError(why, fix="load the tokenizer as transformers' own class, from its tokenizer.json")

    def _check_prompt(self, text: str, ids: list[int], starts: list[int], first: int, start: int, content: str) -> None:
        """The ids before `first` are those that generation starts from: prompt_ids of the messages before the answer.

        A tokenizer cuts text at its special tokens first, so the two can differ only after the last of them.
        """
        last = first - 1
        # The id alone is not enough: unk is special and stands for any text that the vocabulary lacks.
        while last > 0 and not ((token := self.special.get(ids[last])) and text.startswith(token, starts[last])):
            last -= 1
        if ids[max(last, 0) : first] == self._tail_ids(text[starts[last] if last > 0 else 0 : start]):
            return
        if content[:1].isspace():
            why = f"the answer {content[:20]!r} starts with white space, which becomes one token with the end of the "
            why += "prompt: in use the model would never see that token"
            raise RowError(why, fix="strip the answers, or leave such rows out with data.on_bad_row=skip")
        why = f"a token spans the start of the answer {content[:20]!r}: in use the model would never see that token"
        raise TemplateError(why, fix="end the template's generation prompt with a newline or a special token")

    def _find_opener(self, calls: bool) -> str | None:
        """The special token that opens the turn after an answer (after calls: a tool's) if the template closes none."""
        talk = PROBE_CALL if calls else [Message("user", "hi"), Message("assistant", "hello")]
        longer = PROBE_RESULT if calls else [*talk, Message("user", "hi")]
        text, after = (self.render(part, tools=self._probe_tools if calls else "") for part in (talk, longer))
        token = self._special_text.match(after, len(text)) if after.startswith(text) else None
        return token[0] if token and token[0] != self.tokenizer.bos_token else None

    def _check_markers(
        self, messages: Sequence[Message], tools: str, text: str, starts: list[int], answers: Sequence[AnswerSpan]
    ) -> None:
        """The template's own {% generation %} markers agree with the labels.

        They may hold more only within the turn: its opening, which is the prompt, and white space after its end.
        """
        options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        marks: list[int] = self._apply(messages, tools, **options)["assistant_masks"]
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
            fix = "mark in the template what the model generates: the content of an answer and its end token"
            raise TemplateError(f"the chat template's generation markers {fault}", fix=fix)
