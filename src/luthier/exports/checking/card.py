"""The model card that lies beside an export: what it is, how to load it, what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.core.strict_json import to_json
from luthier.core.version import __version__
from luthier.exports.checking.tuned import Tuned

LIBRARIES = {"adapter": "peft", "gguf": "gguf", "gguf_adapter": "gguf", "ollama": "gguf"}
Checks = Sequence[Mapping[str, Any]]


def is_local(base: str) -> bool:
    """Whether it is a folder of this machine or the embedded model, not a hub id."""
    return base == "builtin" or base.startswith((".", "/", "~")) or Path(base).is_dir()


def card(tuned: Tuned, target: str, use: Sequence[str], parity: Checks, checked: Mapping[str, Any], **more: str) -> str:
    """README.md in the form that model hubs read: a block of YAML, with `more` keys, then text. It names no folder."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    facts, local = tuned.facts, is_local(tuned.base)
    head = {
        "library_name": LIBRARIES.get(target, "transformers"),
        "tags": ["luthier", tuned.method.name],
        "pipeline_tag": "text-classification" if tuned.classifies else "text-generation",
        **({} if local else {"base_model": tuned.base}),
        **more,
    }
    loader = PackageLoader("luthier.exports.checking", ".")
    pages = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    values = {"target": target, "use": use, "parity": parity, "checked": checked, "facts": {"tuned": {}, **facts}}
    values["head"] = {key: to_json(value, ensure_ascii=False) for key, value in head.items()}  # JSON is YAML, quoted
    values["origin"] = Path(tuned.base).expanduser().name if local else tuned.base
    page = pages.get_template("card.md.jinja")
    return page.render(values, tuned=tuned, name=Path(tuned.run).name, version=__version__)
