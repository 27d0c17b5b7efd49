"""The tables of README.md from results.jsonl: before and after, and each arm against Luthier's quantized one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from luthier.evaluation.scores import counted, difference

Line = dict[str, Any]
TITLES = {
    "luthier-nf4": "Luthier, the recipe as written (nf4)",
    "luthier-int8": "Luthier, the recipe as written (int8)",
    "trainer-nf4": "transformers.Trainer + PEFT, the same (nf4)",
    "trainer-int8": "transformers.Trainer + PEFT, the same (int8)",
    "luthier-bf16": "Luthier, bfloat16 without quantization",
    "luthier-fp32": "Luthier, float32 without quantization",
    "trainer-bf16": "transformers.Trainer + PEFT, bfloat16 without quantization",
}
NAMES = {"accuracy": "accuracy, %", "rouge_l": "ROUGE-L", "loss": "loss"}
GAINS = {
    "accuracy": ("points of accuracy", 100),
    "exact_match": ("points of exact answers", 100),
    "rouge_l": ("points of ROUGE-L", 100),
    "bleu": ("points of BLEU", 1),
}
"""What training gained, as the notes tell it, and the factor to points."""
FORMS: dict[str, Callable[[float], str]] = {
    "accuracy": lambda value: f"{100 * value:.1f}",
    "rouge_l": lambda value: f"{100 * value:.1f}",
    "loss": lambda value: f"{value:.3f}",
}


def interval(score: Line, form: Callable[[float], str]) -> str:
    return f"{form(score['value'])} ({form(score['low'])} to {form(score['high'])})"


def apart(ours: Line, theirs: Line, metric: str) -> str:
    """Theirs less ours on the same held-out rows, with the paired bootstrap's 95 % interval."""
    one, other = (line["records"]["tuned"] for line in (ours, theirs))
    if metric == "accuracy":
        change = np.array([int(b) - int(a) for a, b in zip(one["right"], other["right"], strict=True)], float)
        weights = np.ones(len(change))
    elif metric == "loss":
        change, weights = np.array(other["loss_sum"]) - np.array(one["loss_sum"]), np.array(one["targets"], float)
    else:
        change = np.array(other[metric]) - np.array(one[metric])
        weights = np.ones(len(change))
    resampled = np.concatenate([counts @ change / (counts @ weights) for counts in counted(len(change))])
    found = difference(float(change.sum() / weights.sum()), resampled, higher=metric != "loss")
    return interval(found, FORMS[metric])


def base_of(line: Line, lines: Sequence[Line]) -> Line:
    """The scores of the untouched base: those of the arm of Luthier on the same weights."""
    kind = line["arm"].partition("-")[2]
    return next((one["base"] for one in lines if one["arm"] == f"luthier-{kind}" and "base" in one), {})


def rows_of(lines: Sequence[Line]) -> list[str]:
    """A table of one recipe: a row for each arm and seed."""
    metric = str(next(line["primary_metric"] for line in lines if "primary_metric" in line))
    shown = [metric] if metric == "loss" else [metric, "loss"]
    head = "".join(f" {NAMES[name]} before | after |" for name in shown)
    ours = {line["seed"]: line for line in lines if line["arm"] == lines[0]["arm"]}
    against = "".join(f" {NAMES[name]} less the first row's |" for name in shown)
    made = [
        f"| | seed |{head}{against} training, processor seconds | tokens/s of processor time | peak memory |",
        "|---|---|" + "---|---|" * len(shown) + "---|" * len(shown) + "---|---|---|",
    ]
    for line in lines:
        base, cells = base_of(line, lines), [TITLES[line["arm"]], str(line["seed"])]
        for name in shown:
            form = FORMS[name]
            cells += [interval(base[name], form) if base else "", interval(line["tuned"][name], form)]
        first = ours.get(line["seed"])
        cells += ["" if first in (None, line) else apart(first, line, name) for name in shown]
        used = line["processor_seconds"]
        cost = [f"{used:,.0f}", f"{line['tokens'] / used:,.0f}", f"{line['peak'] / 1e9:.2f} GB"] if used else []
        cells += cost or ["resumed", "", ""]
        made.append("| " + " | ".join(cells) + " |")
    return made


def agreement(line: Line, plain: Line, own: Line) -> str:
    """Whether transformers alone finds what Luthier's evaluation does."""
    gap = np.abs(np.array(plain["loss_sum"]) - np.array(own["loss_sum"][: len(plain["loss_sum"])]))
    text = f"{TITLES[line['arm']]}, seed {line['seed']}: transformers alone gives the loss of {len(gap)} held-out rows"
    text += f" within {gap.max():.1e} nats of Luthier's evaluation (mean {gap.mean():.1e})"
    if "right" in plain:
        same = sum(a == b for a, b in zip(plain["right"], own["right"], strict=False))
        text += f", and the same label for {same} of {len(gap)}"
    return text + "."


def notes_of(lines: Sequence[Line]) -> list[str]:
    """What the table does not show: whether the arms saw the same, and whether both evaluations agree."""
    found = {line["arm"]: line for line in lines}
    first = lines[0]
    made = [
        f"`{first['command']}`: {first['steps']} steps, {first['tokens']:,} tokens, "
        f"{len(first['records']['tuned']['loss_sum'])} held-out rows, {first['made']['date']}, {first['made']['machine']}."
    ]
    for line in lines:
        plain, own = line["records"].get("plain"), line["records"]["tuned"]
        if plain is not None:
            made.append(agreement(line, plain, own))
        gained = [
            interval(change[metric], lambda value, factor=factor: f"{factor * value:.1f}") + f" {name}"  # type: ignore[misc]
            for metric, (name, factor) in GAINS.items()
            if metric in (change := line.get("difference", {})) and change[metric]["verdict"] != "within noise"
        ]
        if gained:
            made.append(f"{TITLES[line['arm']]}, seed {line['seed']}: gained {', '.join(gained)}.")
        if line.get("forgetting"):
            lost, change = line["forgetting"], line["forgetting"]["difference"]
            text = (
                f"{TITLES[line['arm']]}, seed {line['seed']}: bits per byte of general text {lost['base']:.3f} before, "
            )
            text += f"{lost['tuned']:.3f} after, {interval(change, FORMS['loss'])}: {change['verdict']}."
            made.append(text)
    kinds = {arm.partition("-")[2] for arm in found}
    for kind in sorted(kinds):
        pair = [found.get(f"{who}-{kind}") for who in ("luthier", "trainer")]
        if all(pair):
            one, other = (line["losses"] for line in pair if line is not None)
            made.append(
                f"{kind}: training loss of the first step {one[0]:.4f} by Luthier and {other[0]:.4f} by Trainer, "
                f"of all steps {np.mean(one):.4f} and {np.mean(other):.4f}."
            )
    return made


def text_of(lines: Sequence[Line]) -> str:
    """The tables of all recipes."""
    made: list[str] = []
    for recipe in sorted({line["recipe"] for line in lines}):
        own = sorted(
            (line for line in lines if line["recipe"] == recipe), key=lambda line: list(TITLES).index(line["arm"])
        )
        made += [f"### {recipe}", "", *rows_of(own), "", *[f"- {note}" for note in notes_of(own)], ""]
    return "\n".join(made)
