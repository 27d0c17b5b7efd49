"""A run's tokenizer in llama.cpp's terms: the same text has to become the same tokens there.

llama.cpp cuts text by code of its own, which a file names: byte-level BPE by the name of its pre-tokenizer,
sentencepiece's BPE by a score for each token. What has no name there is refused, for a near one makes a worse model
without a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.core.errors import InputError
from luthier.rendering.template_limits import apply_chat_template

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel cuts by itself."""
SHORT_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = rf"{SHORT_WORDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"
LLAMA3 = rf"{SHORT_WORDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"
QWEN35 = (
    rf"{SHORT_WORDS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGIT, DIGITS = "one digit", "digits"
LINES, HAN = "[\r\n]", "[一-龥ࠀ-一가-퟿]+"
LETTERS = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-"
    r"ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
"""Of alphabets, as DeepSeek lists them."""
MARKS = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"
V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"""
    "\r\n"
    r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["
    "\r\n"
    r"]*|\s*["
    "\r\n"
    r"]+|\s+(?!\S)|\s+"
)

NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    ((GPT2,), False): "gpt-2",
    ((DIGIT, GPT2), False): "smollm",
    ((QWEN2,), False): "qwen2",
    ((QWEN35,), False): "qwen35",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "dbrx",
    ((LINES, LETTERS, MARKS, r"\s+$", HAN, DIGIT), False): "deepseek-llm",
    ((LINES, r"\s?\p{L}+", r"\s?\p{P}+", HAN, DIGIT), False): "deepseek-coder",
    ((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", V3), False): "deepseek-v3",
}
"""(expressions that cut text, in order; is a word that is a token left whole?) -> llama.cpp's name for both."""

SPACE = "▁"
"""What sentencepiece writes for a space."""
PROBES = (
    "The quick brown fox, 12345 times; it's HERE'S, we'll see...",
    "你好，世界！今天是2024年。琴匠修好了小提琴。",
    "emoji 😀👍🏽 👨‍👩‍👧 and ½ naïve café — “quotes”",
    "  two spaces\n\n\tand  a tab\r\nfor i in range(10): print(i)  ",
    "Привет мир 안녕하세요 こんにちは مرحبا",
)
"""Texts that llama.cpp has to cut as the run does, beside the run's own."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Lists with an entry per row of the embeddings, and what goes with them."""

    model: str
    """gpt2 (byte-level BPE) or llama (sentencepiece's BPE)."""
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    prefix: bool = False
    """Does a text get a space in front?"""
    add_bos: bool = False
    """Is the opening token put in front of a text that does not have it?"""
    ids: Mapping[str, int] = field(default_factory=dict)
    """bos, eos, eot, eom, unk, pad: those there are."""
    template: str = ""

    def write(self, writer: Any) -> None:
        """Into a GGUFWriter."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.model == "gpt2":
            writer.add_token_merges(self.merges)
        else:
            writer.add_add_space_prefix(self.prefix)
        writer.add_add_bos_token(self.add_bos)
        for name, number in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(number)
        if self.template:
            writer.add_chat_template(self.template)


def vocabulary(tokenizer: Any, rows: int, ends: Sequence[int], *, dialogues: bool) -> Vocabulary:
    """Of a fast tokenizer; `rows` of the embeddings, `ends` that end an answer. InputError where llama.cpp has no such.

    With `dialogues` the model was trained on what the chat template writes, which has an opening token or has none.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model = spec["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _foreign(f"its model is {model['type']}, not a BPE of bytes or of sentencepiece")
    added = {token["id"]: token for token in spec["added_tokens"]}
    for token in added.values():
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _foreign(f"its token {token['content']!r} takes white space with it (lstrip, rstrip or single_word)")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    names = {number: text for text, number in model["vocab"].items()}
    names |= {number: token["content"] for number, token in added.items()}
    if max(names) >= rows:
        raise _foreign(f"it has token {max(names)}, and the embeddings have {rows} rows")
    sentencepiece = bool(model.get("byte_fallback"))
    tokens, types = _tokens(names, added, rows, model.get("unk_token"), sentencepiece)
    bos, template = tokenizer.bos_token, str(tokenizer.chat_template or "") if dialogues else ""
    opens = list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]
    shared: dict[str, Any] = {
        "tokens": tokens,
        "types": types,
        "ids": _special(tokenizer, ends),
        "add_bos": opens and (not template or _written(tokenizer).startswith(bos)),
        # llama.cpp takes some token for the opening one where a file names none, and a template would write it.
        "template": "{%- set bos_token = '' -%}" + template if template and bos is None else template,
    }
    if sentencepiece:
        scores = _scores(model["vocab"], merges, set(added))
        return Vocabulary(
            "llama",
            "default",
            prefix=_prefix(spec, template, tokenizer),
            scores=[scores.get(text, 0.0) for text in tokens],
            **shared,
        )
    pre = _pre_tokenizer(spec, bool(model.get("ignore_merges")))
    return Vocabulary("gpt2", pre, merges=[" ".join(merge) for merge in merges], **shared)


def _foreign(why: str) -> InputError:
    return InputError(
        f"llama.cpp cannot cut text as this tokenizer does: {why}",
        fix="luthier export RUN --to merged, for programs that use tokenizer.json",
    )


def _written(tokenizer: Any) -> str:
    dialogue = [{"role": "user", "content": "a"}]
    return str(apply_chat_template(tokenizer, dialogue, tokenize=False, add_generation_prompt=True))


def _special(tokenizer: Any, ends: Sequence[int]) -> dict[str, int]:
    """The tokens with a part to play. llama.cpp ends an answer at eos, eot and eom."""
    found = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    ids = {name: int(number) for name, number in found.items() if number is not None}
    others = [number for number in ends if number != ids.get("eos")]
    for name in ("eos", "eot", "eom"):
        if name not in ids and others:
            ids[name] = others.pop(0)
    if others:
        text = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(others)))
        raise _foreign(f"an answer may end with four tokens or more, and a file names three: {text} are left")
    return ids


def _tokens(
    names: Mapping[int, str], added: Mapping[int, Any], rows: int, unknown: str | None, sentencepiece: bool
) -> tuple[list[str], list[int]]:
    """Text and type of each token; rows of the embeddings without a token get one that no text contains."""
    from gguf import TokenType

    taken, tokens, types = set(names.values()), [], []
    for number in range(rows):
        text = names.get(number)
        if text is None:
            text = f"[PAD{number}]"
            while text in taken:
                text = f"[{text}]"
            kind = TokenType.UNUSED
        elif sentencepiece and text == unknown:
            kind = TokenType.UNKNOWN
        elif number in added:
            kind = TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED
        else:
            kind = TokenType.BYTE if sentencepiece and _is_byte(text) else TokenType.NORMAL
        taken.add(text)
        tokens.append(text)
        types.append(int(kind))
    if len(set(tokens)) < len(tokens) or "" in tokens:  # llama.cpp would end the process
        double = next(text for text in tokens if not text or tokens.count(text) > 1)
        raise _foreign(f"it has the token {double!r} twice, or one without text")
    return tokens, types


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _pre_tokenizer(spec: Mapping[str, Any], whole_words: bool) -> str:
    """llama.cpp's name for the way a byte-level tokenizer cuts text before it merges."""
    for step in _steps(spec["normalizer"], "normalizers"):
        if step["type"] != "NFC":  # llama.cpp takes text as it comes, which is mostly in this form
            raise _foreign(f"it normalizes text by {step['type']}")
    cuts = []
    steps = _steps(spec["pre_tokenizer"], "pretokenizers")
    for step in steps:
        kind = step["type"]
        if kind == "Split" and "Regex" in step["pattern"] and step["behavior"] == "Isolated" and not step["invert"]:
            cuts.append(step["pattern"]["Regex"])
        elif kind == "Digits":
            cuts.append(DIGIT if step["individual_digits"] else DIGITS)
        elif kind == "ByteLevel" and not step["add_prefix_space"]:
            cuts += [GPT2] if step["use_regex"] else []
        else:
            raise _foreign(f"its pre-tokenizer has the step {json.dumps(step, ensure_ascii=False)}")
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise _foreign("its pre-tokenizer does not end with ByteLevel")
    name = NAMES.get((tuple(cuts), whole_words))
    if name is None:
        told = " then ".join(map(repr, cuts)) + (", with ignore_merges" if whole_words else "")
        raise _foreign(f"no pre-tokenizer is known there that cuts by {told}")
    return name


def _steps(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """A step, or those of a sequence."""
    if part is None:
        return []
    return list(part[key]) if part["type"] == "Sequence" else [part]


def _prefix(spec: Mapping[str, Any], template: str, tokenizer: Any) -> bool:
    """Whether sentencepiece's tokenizer puts a space before each stretch of text. InputError where it does more."""
    steps = [*_steps(spec["normalizer"], "normalizers"), *_steps(spec["pre_tokenizer"], "pretokenizers")]
    prefix = spaces = False
    for step in steps:
        if step["type"] == "Prepend" and step["prepend"] == SPACE:
            prefix = True
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE:
            spaces = True
        elif step["type"] == "Metaspace" and step["replacement"] == SPACE and not step.get("split", True):
            spaces = True
            scheme = step["prepend_scheme"]
            # Only the start of a text gets the space: none where the chat template starts with a special token.
            first = scheme == "first" and not _starts_special(template, tokenizer)
            prefix = prefix or scheme == "always" or first
        else:
            raise _foreign(f"it prepares text by {json.dumps(step, ensure_ascii=False)}")
    if not spaces:
        raise _foreign(f"it does not write a space as {SPACE!r}")
    return prefix


def _starts_special(template: str, tokenizer: Any) -> bool:
    return bool(template) and _written(tokenizer).startswith(tuple(tokenizer.all_special_tokens))


def _scores(vocab: Mapping[str, int], merges: Sequence[tuple[str, ...]], added: set[int]) -> dict[str, float]:
    """A score for each token that a merge makes, higher for earlier ones.

    llama.cpp joins two neighbours where the result is a token, the best score first; tokenizer.json lists pairs. They
    are the same where the list has every pair that makes a token, those of one token together, as it is made from
    a sentencepiece model. Else InputError.
    """
    scores: dict[str, float] = {}
    last = ""
    for left, right in merges:
        made = left + right
        if made != last and made in scores:
            raise _foreign(f"pairs that make the token {made!r} stand apart in its list of merges")
        scores.setdefault(made, -float(len(scores)))
        last = made
    pairs = set(merges)
    for text, number in vocab.items():
        if number in added or _is_byte(text):
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if (left, right) not in pairs and left in vocab and right in vocab:
                raise _foreign(f"its list of merges lacks {left!r} with {right!r}, which llama.cpp would join")
    return scores
