"""The fields of a recipe for a form, from the same classes as YAML, command line and help. It imports torch."""

import inspect
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, TypeAdapter

from luthier.builtin import data_names
from luthier.core.registry import Config, Family, NameOf, word_for_none
from luthier.evaluation.metrics.base import EVALUATIONS
from luthier.exports.base import EXPORTS
from luthier.methods.base import PRESETS
from luthier.recipe.config import FAMILIES, RunConfig


def form() -> dict[str, Any]:
    """{blocks, families, data, presets}: the fields of each block, and of each member of a family by its name."""
    blocks = {
        key: _fields(field.annotation)
        for key, field in RunConfig.model_fields.items()
        if key not in FAMILIES and isinstance(field.annotation, type) and issubclass(field.annotation, Config)
    }
    families = {kind: _members(family) for kind, family in {**FAMILIES, "export": EXPORTS}.items()}
    evaluations = EVALUATIONS.names()
    return {
        "blocks": blocks,
        "families": families,
        "data": data_names(),
        "presets": sorted(PRESETS),
        "metrics": evaluations,
    }


def _members(family: Family[Any]) -> list[dict[str, Any]]:
    made = []
    for name in family.names():
        found = family.get(name)
        about = {key: getattr(found, key) for key in ("family", "paper", "typical_share") if hasattr(found, key)}
        made.append(
            {"name": name, "help": (inspect.getdoc(found) or "").split("\n")[0], **about, "fields": _fields(found)}
        )
    return made


def _fields(block: type[Config]) -> list[dict[str, Any]]:
    return [_field(block, key) for key in block.model_fields]


def _field(block: type[Config], key: str) -> dict[str, Any]:
    field = block.model_fields[key]
    default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, BaseModel):
        default = default.model_dump(mode="json", exclude_defaults=True)
    made = {
        "key": key,
        "help": " ".join((field.description or "").split()),
        "default": word_for_none(field) if default is None else default,
        "choices": _choices(field.annotation, field.metadata),
    }
    return {**made, **_kind(field.annotation)}


def _choices(annotation: Any, metadata: Iterable[Any]) -> list[Any]:
    for each in metadata:
        if isinstance(each, NameOf):
            return each.names()
    schema = _schema(annotation)
    options = [schema, *schema.get("anyOf", [])]
    return [value for option in options for value in option.get("enum", [])]


def _kind(annotation: Any) -> dict[str, Any]:
    """How a value is typed: bool, integer, number, string, or anything that YAML can say."""
    schema = _schema(annotation)
    options = [each for each in [schema, *schema.get("anyOf", [])] if each.get("type") not in (None, "null")]
    kinds = {str(each["type"]) for each in options}
    kind = kinds.pop() if len(kinds) == 1 else "any"
    return {"kind": kind if kind in ("boolean", "integer", "number", "string") else "any"}


def _schema(annotation: Any) -> dict[str, Any]:
    try:
        return TypeAdapter(annotation).json_schema()
    except Exception:  # a type that JSON schema cannot say, such as a family's
        return {}
