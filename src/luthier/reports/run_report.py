"""One self-contained HTML page about a run: gains, loss curve, held-out examples, data and recipe."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Any

import yaml
from markupsafe import Markup, escape
from pydantic import BaseModel

from luthier.core.registry import Plugin
from luthier.core.shell import redacted
from luthier.core.units import duration, gigabytes
from luthier.evaluation.metrics.base import metrics_of
from luthier.recipe.config import RunConfig
from luthier.reports import page
from luthier.reports.chart import Words, loss_chart, same, worded

Json = Mapping[str, Any]
WORST = 12
"""Held-out examples shown for their loss, beside those that got better or worse."""
LONGEST, ALIKE = 2000, 0.3
"""Differences are marked in texts of at most so many words, of which so large a share is in both."""
MOST_LABELS = 20
"""Classes in the table of what was taken for what; of more, those most often confused."""


def render(
    result: Json, data: Json, history: Sequence[Json], config: RunConfig, environment: Json, predictions: Sequence[Json]
) -> str:
    """The page of a run, from what its folder has. `result` has `total_steps` where the run is not finished."""
    filters = {
        "figure": figure,
        "scale": scale_of,
        "metric": metric_words,
        "signed": signed,
        "duration": duration,
        "bytes": gigabytes,
    }
    whole = redacted(config.dump())
    values: dict[str, Any] = {
        "result": result,
        "data": data,
        "environment": environment,
        "recipe": whole,
        "own": own_settings(config),
    }
    chart = loss_chart(history, base=base_loss(result), kept_step=result.get("kept_step"))
    values |= {"chart": page.charts(chart), "points": points_of(history), "epochs": next(epochs_of(history), None)}
    values |= {"examples": examples_of(result, predictions), "matrices": confusion(predictions)}
    return page.render("run_report", filters, drawn="adopted" not in result, **values)


def base_loss(result: Json) -> float | None:
    """The base's loss on the rows of the held-out curve; None where it was measured on other rows, or not at all."""
    known = result["base"].get("loss") if result.get("measured_on") == "validation" else None
    return known["value"] if known else None


def points_of(history: Sequence[Json], most: int = 100) -> list[Json]:
    """Lines of a table with the curve's values: every evaluation, and steps at equal distances."""
    steps = [line for line in history if "loss" in line]
    held = {line["step"]: line["validation_loss"] for line in history if "validation_loss" in line}
    every = max(1, -(-len(steps) // most))
    chosen = [line for n, line in enumerate(steps, 1) if n % every == 0 or n in (1, len(steps)) or line["step"] in held]
    return [{**line, "held_out": held.get(line["step"])} for line in chosen]


def epochs_of(history: Sequence[Json]) -> Any:
    """Epochs after the last step, if there was one."""
    return (line["epoch"] for line in reversed(history) if "epoch" in line)


def own_settings(config: RunConfig) -> str:
    """The settings that differ from the defaults, as YAML; base and method always."""
    changed = _changed(config, config.model_dump(mode="json"))
    changed.pop("run", None)
    first = {"model": {"path": config.model.path, **changed.pop("model", {})}}
    first["method"] = changed.pop("method", {"name": config.method.name})
    return redacted(yaml.safe_dump({**first, **changed}, allow_unicode=True, sort_keys=False))


def _changed(block: BaseModel, dumped: Mapping[str, Any]) -> dict[str, Any]:
    """What of a dumped block is not its default; of a plugin its name too."""
    found: dict[str, Any] = {"name": dumped["name"]} if isinstance(block, Plugin) else {}
    for key, field in type(block).model_fields.items():
        value, default = getattr(block, key), field.get_default(call_default_factory=True, validated_data={})
        if value != default:
            found[key] = _changed(value, dumped[key]) if isinstance(value, BaseModel) else dumped[key]
    return found


def examples_of(result: Json, predictions: Sequence[Json]) -> list[Json]:
    """Held-out examples for one table: those that got worse or better, then those with the highest loss, each once."""
    compared, sign = result.get("examples") or {}, {"regressions": "worse", "gains": "better"}
    kinds = {
        (row["where"], row["text"][:200]): (kind, row["base_score"], row["tuned_score"])
        for side, kind in sign.items()
        for row in compared.get(side, ())
    }
    rows: list[dict[str, Any]] = []
    for row in [*predictions_in(kinds, predictions), *worst(predictions)]:
        kind, before, after = kinds.get((row["where"], row["text"][:200]), ("", None, None))
        if row not in [each["row"] for each in rows]:
            by = compared.get("by", "")
            change = change_words(by, before, after) if kind else same("")
            rows.append({"row": row, "kind": kind, "change": change, "loss": loss_of(row)})
    return [{**each, "sides": answers_of(each["row"])} for each in rows]


def predictions_in(kinds: Mapping[tuple[str, str], Any], predictions: Sequence[Json]) -> list[Json]:
    """The predictions of these examples, in their order."""
    found = {(row["where"], row["text"][:200]): row for row in reversed(predictions)}
    return [found[key] for key in kinds if key in found]


def loss_of(row: Json) -> float | None:
    """Loss of the tuned model per target; None where it is not finite."""
    loss = row["tuned"].get("loss_sum", 0.0)
    return None if loss is None else loss / max(1, row["tuned"].get("targets", 1))


def worst(predictions: Sequence[Json], count: int = WORST) -> list[Json]:
    """Wrong answers first, then the highest loss per target."""

    def badness(row: Json) -> tuple[bool, float]:
        tuned, loss = row["tuned"], loss_of(row)
        wrong = "chosen" in tuned and tuned["chosen"] != tuned["label"]
        return wrong, math.inf if loss is None else loss

    return sorted(predictions, key=badness, reverse=True)[:count]


def answers_of(row: Json) -> dict[str, Any]:
    """{base, tuned}: what each says, with the words that the other does not say marked, and whether it is right."""
    said = {side: spoken(row[side]) for side in ("base", "tuned")}
    marked = word_difference(said["base"], said["tuned"]) if said["base"] else ("", escape(said["tuned"]))
    found: dict[str, Any] = {}
    for side, text in zip(("base", "tuned"), marked, strict=True):
        record = row[side]
        wrong = "chosen" in record and record["chosen"] != record["label"]
        label = str(record.get("chosen", ""))
        found[side] = {"text": text, "label": label if label != said[side] else "", "wrong": wrong}
    return found


def spoken(record: Json) -> str:
    """What a model said on an example: its number, its answer, or its label."""
    if "guess" in record:
        return "NaN" if record["guess"] is None else f"{record['guess']:.3f}"
    return str(record.get("said") or record.get("chosen", ""))


def word_difference(before: str, after: str) -> tuple[Markup, Markup]:
    """Both texts with what only they have marked, by words and by Chinese characters; unmarked where little is common.

    The texts are escaped.
    """
    parts = [re.findall(r"[\u2e80-\u9fff\uac00-\ud7af]|\w+|\s+|[^\w\s]", text) for text in (before, after)]
    if max(map(len, parts)) > LONGEST:
        return escape(before), escape(after)
    match = SequenceMatcher[str](None, parts[0], parts[1], autojunk=False)
    if match.ratio() < ALIKE:
        return escape(before), escape(after)
    made: list[list[str]] = [[], []]
    for what, *ends in match.get_opcodes():
        for side, tag in enumerate(("del", "ins")):
            text = escape("".join(parts[side][ends[2 * side] : ends[2 * side + 1]]))
            made[side].append(f"<{tag}>{text}</{tag}>" if what != "equal" and text.strip() else text)
    return Markup("".join(made[0])), Markup("".join(made[1]))


def confusion(predictions: Sequence[Json]) -> list[dict[str, Any]]:
    """{side, labels, rows, most} for base and tuned: rows[i][j] counts examples of label i that were taken for j."""
    found = []
    for side in ("base", "tuned"):
        pairs = Counter((row[side]["label"], row[side]["chosen"]) for row in predictions if "chosen" in row[side])
        if not pairs:
            continue
        weight: Counter[str] = Counter()
        for (label, chosen), number in pairs.items():
            for name in {label, chosen}:
                weight[name] += number + (1_000_000 if label != chosen else 0)
        labels = sorted(name for name, _ in weight.most_common(MOST_LABELS))
        rows = [[pairs[label, chosen] for chosen in labels] for label in labels]
        most = max(max(row) for row in rows)
        found.append(
            {"side": side, "labels": labels, "rows": rows, "most": most, "left_out": len(weight) - len(labels)}
        )
    return found


def metric_words(name: str) -> Words:
    """The name of a metric, of a part of the data or of a kind of general text, in words."""
    known = {
        "train": worded("train"),
        "validation": worded("validation"),
        "test": worded("test"),
        "all": worded("all"),
        "english": worded("English"),
        "chinese": worded("Chinese"),
        "code": worded("code"),
        "arithmetic": worded("arithmetic"),
        "dialogue": worded("dialogue"),
        "facts": worded("facts"),
        "accuracy": worded("accuracy"),
        "loss": worded("loss"),
        "perplexity": worded("perplexity"),
        "exact_match": worded("exact match"),
        "macro_f1": worded("macro F1"),
        "mcc": worded("MCC"),
        "squared_error": worded("squared error"),
        "pass_rate": worded("pass rate"),
        "judge": worded("judge's grade"),
    }
    return known.get(name, same(name.replace("_", " ")))


@cache
def scale_of(name: str) -> str | None:
    """The range of a metric that is not a share, such as "0 to 100", or ""; None for a share."""
    scales = {known: metric.scale for known, metric in metrics_of().items()} | {"bits_per_byte": ""}
    return scales.get(name)


def change_words(name: str, before: float, after: float) -> Words:
    """As `shift`, in every language."""
    text = shift(name, before, after)
    known = {"right → wrong": worded("right → wrong"), "wrong → right": worded("wrong → right")}
    return known.get(text, same(text))


def signed(name: str, value: float) -> Words:
    """A difference with its sign: shares in percentage points."""
    if scale_of(name) is None and math.isfinite(value):
        return worded("{0} points", f"{100 * value:+.1f}")
    return same(figure(name, value, sign=True))


def shift(name: str, before: float, after: float) -> str:
    """The score of one example before and after; right or wrong in words."""
    if name in ("accuracy", "exact_match", "pass_rate") and {before, after} <= {0, 1}:
        return " → ".join("right" if each else "wrong" for each in (before, after))
    return f"{figure(name, before)} → {figure(name, after)}"


def figure(name: str, value: float | None, *, sign: bool = False) -> str:
    """A metric for people: shares in percent (points, with a sign, for a difference), the rest as numbers."""
    if value is None or not math.isfinite(value):
        return "NaN"
    plus, scale = "+" if sign else "", scale_of(name)
    if scale is None:
        return f"{100 * value:{plus}.1f}" + (" points" if sign else " %")
    if scale.startswith("0 to"):
        return f"{value:{plus}.2f}"
    return (
        f"{value:{plus}.3f}"
        if abs(value) < 1000
        else f"{value:{plus},.0f}"
        if abs(value) < 1e9
        else f"{value:{plus}.3g}"
    )
