"""`luthier list` and `luthier explain`: help made from the same docstrings as errors and docs."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from luthier.builtin import data_names
from luthier.config import FAMILIES, RunConfig, fields_at
from luthier.errors import InputError, did_you_mean
from luthier.evaluation.base import EVALUATIONS
from luthier.exports.base import EXPORTS
from luthier.methods.base import METHODS, QUANTIZED, Method
from luthier.plugins import Config, Family, word_for_none
from luthier.strict_yaml import parse_value

KINDS: dict[str, Family[Any]] = {**FAMILIES, "evaluation": EVALUATIONS, "export": EXPORTS}


def listing(kind: str) -> str:
    """One line for each member of a kind."""
    singular = kind.removesuffix("s")
    if kind == "data":
        return "\n".join(f"builtin:{name}" for name in data_names())
    if singular == "model":
        return (
            "builtin      the embedded small base model (Qwen2 architecture), English and Chinese\n"
            "FOLDER       a model folder in Hugging Face's layout\n"
            "ORG/NAME     a hub id that transformers loads"
        )
    if singular not in KINDS:
        known = [*(f"{name}s" for name in KINDS), "data", "models"]
        raise InputError(f"nothing to list as {kind!r}{did_you_mean(kind, known)}; known are {', '.join(known)}")
    if singular == "method":
        return _methods()
    lines = []
    for name in KINDS[singular].names():
        lines.append(f"{name:<18} {_first_line(KINDS[singular].get(name))}")
    return "\n".join(lines)


def _methods() -> str:
    """The methods as a table, then the names of the field that are settings of one."""
    lines = [f"{'method':<17}{'paper':<12}{'share':>7}  {'merges':<7}{'quant.':<7}tasks"]
    for name in METHODS.names():
        found = METHODS.get(name)
        lines.append(
            f"{name:<17}{found.paper or '-':<12}{_share(found.typical_share):>7}  {_yes(found.mergeable):<7}"
            f"{_yes(found.quantized_base):<7}{'all' if found.encoder_decoder else 'no T5':<7}{_first_line(found)}"
        )
    lines += ["", "also called"]
    lines += [f"{name:<17}{_meaning(name)}" for name in METHODS.presets]
    lines += [
        "",
        "share    trained parameters of Qwen2-0.5B with the method's defaults",
        "quant.   trains on a base in 8 or 4 bit (model.quantize)",
        "tasks    all: chat, complete and classify; no T5: not on encoder-decoders",
    ]
    return "\n".join(lines)


def _meaning(preset: str) -> str:
    """What a recipe would say without the preset."""
    name, values = METHODS.presets[preset]
    said = [f"method={name}", *(f"method.{key}={typed(value)}" for key, value in values.items())]
    if preset in QUANTIZED:
        quantize, optimizer = QUANTIZED[preset]
        said += [f"model.quantize={quantize}", *([f"train.optimizer={optimizer}"] if optimizer else [])]
    return " ".join(said)


def _share(share: float) -> str:
    return f"{share:.2%}" if share >= 0.0001 else f"{share:.3%}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def explanation(kind: str, name: str) -> str:
    """Idea, formula, paper and fields of one plugin, or the fields of one block of a recipe."""
    singular = kind.removesuffix("s") if kind.removesuffix("s") in KINDS else kind
    if singular in KINDS:
        family = KINDS[singular]
        if not name:
            raise InputError(f"which {singular}? one of: {', '.join(family.names())}")
        found = family.get(name)
        lines = [inspect.getdoc(sys.modules[found.__module__]) or ""]
        if name in family.presets:
            lines.insert(0, f"{name} is {_meaning(name)}\n")
        if issubclass(found, Method):
            lines += _facts(found)
        return "\n".join(
            [*lines, "", fields(found, "" if singular in ("evaluation", "export") else f"{_key(singular)}.")]
        ).rstrip()
    if kind not in RunConfig.model_fields:
        members = {member: each for each, family in KINDS.items() for member in family.names()}
        if kind in members and not name:  # `explain lora` is `explain method lora`
            return explanation(members[kind], kind)
        known = [*KINDS, *fields_at(RunConfig, ()), *members]
        raise InputError(
            f"nothing to explain as {kind!r}{did_you_mean(kind, known)}; known are {', '.join(known[: -len(members)])}"
        )
    block = RunConfig.model_fields[kind].annotation
    if isinstance(block, type) and issubclass(block, Config):
        return f"{_first_line(block)}\n\n{fields(block, f'{kind}.')}"
    return _field(kind, RunConfig.model_fields[kind])


def _facts(found: type[Method]) -> list[str]:
    """What the table of methods says, in words."""
    encoder = found.suggested_lr_encoder or found.suggested_lr
    facts = [
        f"Trains: {_share(found.typical_share)} of Qwen2-0.5B with the defaults",
        f"Learning rate when the recipe gives none: {found.suggested_lr:g}, on encoders {encoder:g}",
        f"Merges into the base: {_yes(found.mergeable)}",
        f"Base in 8 or 4 bit (model.quantize): {_yes(found.quantized_base)}",
        f"Encoder-decoders such as T5: {_yes(found.encoder_decoder)}",
    ]
    return ["", *([f"Paper: https://arxiv.org/abs/{found.paper}"] if found.paper else []), *facts]


def _key(kind: str) -> str:
    return "data.format" if kind == "format" else kind


def fields(block: type[Config], prefix: str) -> str:
    """Each field with its default and what it is for."""
    spellings: dict[str, list[str]] = {}
    for alias, field_name in block.aliases.items():
        spellings.setdefault(field_name, []).append(alias)
    lines = []
    for field_name, field in block.model_fields.items():
        lines.append(_field(f"{prefix}{field_name}", field, spellings.get(field_name, ())))
    return "\n".join(lines) if lines else "(no fields)"


def _field(key: str, field: FieldInfo, spellings: Sequence[str] = ()) -> str:
    """One key with its default, which can be typed as it stands, and what it is for."""
    default = (
        "" if field.is_required() else f" = {typed(field.get_default(call_default_factory=True), word_for_none(field))}"
    )
    text = " ".join((field.description or "").split())
    text += f" Also read as: {', '.join(spellings)}." if spellings else ""
    return f"{key}{default}\n" + textwrap.fill(text, 100, initial_indent="    ", subsequent_indent="    ")


def typed(value: Any, none: str = "none") -> str:
    """`value` as one types it behind `key=` in a shell."""
    if value == "":
        return '""'
    text = _as_yaml(value, none)
    return text if re.fullmatch(r"[\w./,\[\]-]+", text) else shlex.quote(text)


def _as_yaml(value: Any, none: str = "none") -> str:
    if value is None:
        return none
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, tuple | list):
        return f"[{','.join(map(_as_yaml, value))}]"
    if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) and parse_value(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _first_line(value: Any) -> str:
    return (inspect.getdoc(value) or "").split("\n")[0]
