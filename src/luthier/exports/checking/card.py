"""The model card that lies beside an export: what it is, how to load it, what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.core.strict_json import to_json
from luthier.core.version import __version__
from luthier.exports.checking.tuned import Tuned

LIBRARIES = {"adapter": "peft", "gguf": "gguf", "gguf_adapter": "gguf", "ollama": "gguf"}


def is_local(base: str) -> bool:
    """Whether it is a folder of this machine or the embedded model, not a hub id."""
    return base == "builtin" or base.startswith((".", "/", "~")) or Path(base).is_dir()


def card(
    tuned: Tuned,
    target: str,
    use: Sequence[str],
    parity: Sequence[dict[str, Any]],
    checked: Mapping[str, Any],
    **more: str,
) -> str:
    """README.md in the form that model hubs read: a block of YAML, with `more` keys, then text. It names no folder."""
    facts, local = tuned.facts, is_local(tuned.base)
    origin = Path(tuned.base).expanduser().name if local else tuned.base
    head = {
        "library_name": LIBRARIES.get(target, "transformers"),
        "tags": ["luthier", tuned.method.name],
        "pipeline_tag": "text-classification" if tuned.classifies else "text-generation",
        **({} if local else {"base_model": tuned.base}),
        **more,
    }
    # JSON is YAML, and quotes what must be quoted.
    lines = ["---", *(f"{key}: {to_json(value, ensure_ascii=False)}" for key, value in head.items()), "---", ""]
    lines += [f"# {Path(tuned.run).name}", ""]
    lines += [f"`{origin}`, fine-tuned with {tuned.method.name} by Luthier {__version__}.", ""]
    lines += ["```sh" if target == "ollama" else "```python", *use, "```", "", "## Training", "", "| | |", "|---|---|"]
    shown = {
        "task": tuned.task,
        "training rows": facts.get("train_rows"),
        "steps": facts.get("steps"),
        "learning rate": facts.get("lr"),
        "trained parameters": facts.get("trainable"),
        "base in training": tuned.quantize if tuned.quantize != "none" else None,
    }
    lines += [f"| {key} | {value} |" for key, value in shown.items() if value is not None]
    if facts.get("tuned"):
        lines += ["", f"## On {facts['validation_examples']} held-out examples", ""]
        lines += ["| score | base | tuned | 95 % CI |", "|---|---|---|---|"]
    for name, score in facts.get("tuned", {}).items():
        base = facts.get("base", {}).get(name)
        before = f"{base['value']:.4g}" if base else ""
        lines.append(f"| {name} | {before} | {score['value']:.4g} | {score['low']:.4g} to {score['high']:.4g} |")
    lines += ["", "## Parity with the run", ""]
    lines += [f"- {key.capitalize().replace('_', ' ')}: {text}." for key, text in checked.items()]
    for each in parity:
        lines.append(
            f"- Against {each['against']}, {each['prompts']} held-out prompts: largest difference of a logit "
            f"{each['largest']:.3g} (spread {each['spread']:.3g}), the same most likely token at "
            f"{each['same_top']:.2%} of {each['positions']} positions, the same greedy answer to "
            f"{each['same_answers']:.0%} of the prompts."
        )
    return "\n".join(lines) + "\n"
