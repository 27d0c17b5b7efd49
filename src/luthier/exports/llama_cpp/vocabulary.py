"""A run's tokenizer in llama.cpp's terms: the same text has to become the same tokens there.

A file names how llama.cpp splits text: byte-level BPE by the name of its pre-tokenizer, sentencepiece's BPE by a score
for each token. What has no name there is refused: a similar one makes a worse model without any error.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from luthier.core.errors import InputError
from luthier.rendering.template_limits import apply_chat_template

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel cuts by itself."""
DIGIT, DIGITS = "one digit", "digits"
_TABLE = yaml.safe_load(Path(__file__).with_name("pre_tokenizers.yaml").read_text(encoding="utf-8"))
NAMES = {(tuple[str, ...](each["cuts"]), bool(each["ignore_merges"])): str(name) for name, each in _TABLE.items()}
"""(expressions that cut text, in order; whether a word that is a token stays whole) -> llama.cpp's name for both."""

SPACE = "▁"
"""What sentencepiece writes for a space."""
BYTE = re.compile("<0x..>", re.DOTALL)
PROBES = (
    "The quick brown fox, 12345 times; it's HERE'S, we'll see...",
    "你好，世界！今天是2024年。琴匠修好了小提琴。",
    "emoji 😀👍🏽 👨‍👩‍👧 and ½ naïve café — “quotes”",
    "  two spaces\n\n\tand  a tab\r\nfor i in range(10): print(i)  ",
    "Привет мир 안녕하세요 こんにちは مرحبا",
)
"""Texts that llama.cpp has to split as the run does, beside the run's own."""


def vocabulary(tokenizer: Any, rows: int, ends: Sequence[int], *, dialogues: bool) -> dict[str, Any]:
    """{NAME of GGUFWriter.add_NAME: value} for a fast tokenizer. InputError if llama.cpp cannot split text as it does.

    `rows` is the number of rows of the embeddings, `ends` are the tokens that end an answer. With `dialogues` the model
    was trained on what the chat template writes, which has a BOS token or does not.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model = spec["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _unsupported(f"its model is {model['type']}, not a BPE of bytes or of sentencepiece")
    added = {token["id"]: token for token in spec["added_tokens"]}
    for token in added.values():
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _unsupported(f"its token {token['content']!r} strips white space (lstrip, rstrip or single_word)")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    names = {number: text for text, number in model["vocab"].items()}
    names |= {number: token["content"] for number, token in added.items()}
    if max(names) >= rows:
        raise _unsupported(f"it has token {max(names)}, and the embeddings have {rows} rows")
    sentencepiece = bool(model.get("byte_fallback"))
    tokens, types = _tokens(names, added, rows, model.get("unk_token"), sentencepiece)
    bos, template = tokenizer.bos_token, str(tokenizer.chat_template or "") if dialogues else ""
    opens = list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]
    made: dict[str, Any] = {"tokenizer_model": "llama" if sentencepiece else "gpt2"}
    made["tokenizer_pre"] = "default" if sentencepiece else _pre_tokenizer(spec, bool(model.get("ignore_merges")))
    made |= {"token_list": tokens, "token_types": types}
    if sentencepiece:
        by_token = _scores(model["vocab"], merges, set(added))
        made["token_scores"] = [by_token.get(text, 0.0) for text in tokens]
        made["add_space_prefix"] = _prefix(spec, template, tokenizer)
    else:
        made["token_merges"] = [" ".join(merge) for merge in merges]
    made["add_bos_token"] = opens and (not template or _written(tokenizer).startswith(bos))
    made |= _special(tokenizer, ends)
    if template:
        # llama.cpp takes some token as BOS if a file names none, and a template would write it.
        made["chat_template"] = "{%- set bos_token = '' -%}" + template if bos is None else template
    return made


def _unsupported(why: str) -> InputError:
    text = f"llama.cpp cannot split text as this tokenizer does: {why}"
    return InputError(text, fix="luthier export RUN --to merged, for programs that use tokenizer.json")


def _written(tokenizer: Any) -> str:
    dialogue = [{"role": "user", "content": "a"}]
    return str(apply_chat_template(tokenizer, dialogue, tokenize=False, add_generation_prompt=True))


def _special(tokenizer: Any, ends: Sequence[int]) -> dict[str, int]:
    """Token ids with a role. llama.cpp ends an answer at eos, eot and eom."""
    found = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    ids = {name: int(number) for name, number in found.items() if number is not None}
    others = [number for number in ends if number != ids.get("eos_token_id")]
    for name in ("eos_token_id", "eot_token_id", "eom_token_id"):
        if name not in ids and others:
            ids[name] = others.pop(0)
    if others:
        text = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(others)))
        raise _unsupported(f"an answer may end with four tokens or more, and a file names three: {text} are left")
    return ids


def _tokens(
    names: Mapping[int, str], added: Mapping[int, Any], rows: int, unknown: str | None, sentencepiece: bool
) -> tuple[list[str], list[int]]:
    """Text and type of each token; rows of the embeddings without a token get one that no text contains."""
    from gguf import TokenType

    tokens, types = [], []
    for number in range(rows):
        text = names.get(number, f"[PAD{number}]")
        if number not in names:
            kind = TokenType.UNUSED
        elif sentencepiece and text == unknown:
            kind = TokenType.UNKNOWN
        elif number in added:
            kind = TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED
        else:
            kind = TokenType.BYTE if sentencepiece and BYTE.fullmatch(text) else TokenType.NORMAL
        tokens.append(text)
        types.append(int(kind))
    if len(set(tokens)) < len(tokens) or "" in tokens:  # llama.cpp would end the process
        double = next(text for text in tokens if not text or tokens.count(text) > 1)
        raise _unsupported(f"it has the token {double!r} twice, or one without text")
    return tokens, types


def _pre_tokenizer(spec: Mapping[str, Any], whole_words: bool) -> str:
    """llama.cpp's name for the way a byte-level tokenizer splits text before it merges."""
    for step in _steps(spec["normalizer"], "normalizers"):
        if step["type"] != "NFC":  # llama.cpp does not normalize, and most text is in this form
            raise _unsupported(f"it normalizes text by {step['type']}")
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
            raise _unsupported(f"its pre-tokenizer has the step {json.dumps(step, ensure_ascii=False)}")
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise _unsupported("its pre-tokenizer does not end with ByteLevel")
    name = NAMES.get((tuple(cuts), whole_words))
    if name is None:
        how = " then ".join(map(repr, cuts)) + (", with ignore_merges" if whole_words else "")
        raise _unsupported(f"no pre-tokenizer is known there that cuts by {how}")
    return name


def _steps(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """A step as a list, or those of a sequence."""
    if part is None:
        return []
    return list(part[key]) if part["type"] == "Sequence" else [part]


def _prefix(spec: Mapping[str, Any], template: str, tokenizer: Any) -> bool:
    """Whether sentencepiece's tokenizer puts a space before each stretch of text. InputError if it does more."""
    prefix = spaces = False
    for step in [*_steps(spec["normalizer"], "normalizers"), *_steps(spec["pre_tokenizer"], "pretokenizers")]:
        if step["type"] == "Prepend" and step["prepend"] == SPACE:
            prefix = True
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE:
            spaces = True
        elif step["type"] == "Metaspace" and step["replacement"] == SPACE and not step.get("split", True):
            # "first": only the start of a text gets it, so none does if the chat template starts with a special token.
            special = template and _written(tokenizer).startswith(tuple(tokenizer.all_special_tokens))
            scheme, spaces = step["prepend_scheme"], True
            prefix = prefix or scheme == "always" or (scheme == "first" and not special)
        else:
            raise _unsupported(f"it prepares text by {json.dumps(step, ensure_ascii=False)}")
    if not spaces:
        raise _unsupported(f"it does not write a space as {SPACE!r}")
    return prefix


def _scores(vocab: Mapping[str, int], merges: Sequence[tuple[str, ...]], added: set[int]) -> dict[str, float]:
    """A score for each token that a merge makes, higher for earlier ones.

    llama.cpp joins two neighbors if the result is a token, the best score first; tokenizer.json lists pairs. They are
    the same if the list has every pair that makes a token, those of one token together, as it does when made from a
    sentencepiece model. Otherwise InputError.
    """
    scores: dict[str, float] = {}
    last = ""
    for left, right in merges:
        made = left + right
        if made != last and made in scores:
            raise _unsupported(f"pairs that make the token {made!r} stand apart in its list of merges")
        scores.setdefault(made, -float(len(scores)))
        last = made
    pairs = set(merges)
    for text, number in vocab.items():
        if number in added or BYTE.fullmatch(text):
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if (left, right) not in pairs and left in vocab and right in vocab:
                raise _unsupported(f"its list of merges lacks {left!r} with {right!r}, which llama.cpp would join")
    return scores
