"""Base and tuned model on the held-out rows and on the probe for forgetting, and the difference."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import evaluation, kernels, models
from luthier.core.events import SILENT, Progress
from luthier.evaluation import forgetting
from luthier.evaluation.contrast import contrast
from luthier.evaluation.metrics.base import metrics_of
from luthier.evaluation.records.context import EvalContext, Record, restored_records
from luthier.evaluation.scores import FEW, choose_primary, differences, evaluations, lacking, measure, scores
from luthier.pipeline.prepare import Loaded, load_base
from luthier.rendering.example import Example
from luthier.runs.folder import RunFolder
from luthier.runs.provenance import PACKAGES, environment

if TYPE_CHECKING:
    from torch import nn

WORTH = 5.0
"""Seconds of measuring the base below which doing so again costs less than an entry in the cache."""
UNMEASURED: dict[str, Any] = {"validation_examples": 0, "base": {}, "tuned": {}, "difference": {}, "primary_metric": ""}
UNMEASURED |= {"examples": {}, "forgetting": {}, "no_forgetting": "no row is held out"}
UNMEASURED |= {"counts": {"base": {}, "tuned": {}}, "caveats": []}
"""What `compare_with_base` would return for a run that holds no row out."""


@dataclass(slots=True)
class Measured:
    """What one model scored."""

    records: list[Record] = field(default_factory=list)
    """One per held-out example; none where the model was not measured."""
    probe: list[Record] = field(default_factory=list)
    """One per general text (see evaluation.forgetting)."""
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    """What measuring it took, though it may have been before."""

    def __post_init__(self) -> None:
        """What came from JSON holds numbers again."""
        self.records, self.probe = restored_records(self.records), restored_records(self.probe)


def subject_of(loaded: Loaded, progress: Progress = SILENT, side: str = "") -> EvalContext | None:
    """The rows of a side (the test rows, else the validation rows) with the model as it is; None without rows."""
    data, settings = loaded.data, loaded.config.evaluate
    _, examples, rows = data.side(side or data.held_out_side)
    count = len(examples) if settings.rows is None else settings.rows
    owner = [number for number in rows.owner if number < count]  # in order
    if not owner:
        return None
    labels = {*data.labels, *data.examples.labels, *examples.labels} - {None}
    return EvalContext(
        model=loaded.model,
        template=loaded.template,
        task=data.task,
        examples=list(examples[:count]),
        rows=rows[: len(owner)],
        owner=owner,
        max_length=loaded.tokens.max_length,
        settings=settings,
        labels=sorted(filter(None, labels)),
        progress=progress,
    )


def question_of(example: Example) -> str:
    """What a model is asked: the text of a row, or its messages before the answer."""
    return example.text or "\n".join(message.all_text for message in example.messages[:-1])


def measure_base(loaded: Loaded, folder: RunFolder, progress: Progress) -> Measured:
    """The untouched base's scores, kept in before.json so that a resumed run need not measure again.

    InputError where the recipe ranks by a score that these rows do not have: before anything is trained.
    """
    subject = subject_of(loaded, progress)
    if subject is None:
        return Measured()
    choose_primary(subject, list(metrics_of(evaluations(subject))))
    for why in lacking(subject):
        progress.note(why)
    return base_scores(loaded, subject, folder) if loaded.config.evaluate.before else Measured()


def base_scores(loaded: Loaded, subject: EvalContext | None, folder: RunFolder) -> Measured:
    """The base's scores from before.json, from the cache, or by measuring. Random weights are not measured."""
    if subject is None or loaded.config.model.init == "random":
        return Measured()
    progress = subject.progress
    decides = _decides(loaded, subject, folder)
    name = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()
    if what := folder.ledger.fault(folder.before):
        progress.warn(f"{folder.before} {what}: the base is measured again")
    elif folder.before.is_file():
        before = folder.read_json(folder.before)
        if before.pop("of", None) == name:
            progress.note("the base's scores are those of this run's before.json")
            return Measured(**before)
    known = {kind: subject.recall(kind, each) for kind, each in decides.items() if each["base"]}
    if known.get("base") is not None:
        progress.note("the base's scores are those it had before on the same rows and settings (evaluate.cache)")
    else:
        progress.stage(f"evaluating the base on {len(subject.examples)} held-out examples")
    made: dict[str, Any] = {}
    for kind, each in decides.items():
        made[kind] = known.get(kind)
        if made[kind] is None:
            began = time.perf_counter()
            found = _rows(subject) if kind == "base" else {"probe": forgetting.measure_probe(subject)}
            made[kind] = found | {"seconds": time.perf_counter() - began}
            if made[kind]["seconds"] >= WORTH and each["base"] and "failed verdicts" not in subject.counts:
                subject.keep(kind, each, made[kind])
    seconds = sum(each.pop("seconds") for each in made.values())
    measured = Measured(**made["base"], **made.get("probe", {}), seconds=seconds)
    kept = asdict(measured)
    del kept["seconds"]  # the file says what the base scores: it is the same however long that took
    folder.write_json(folder.before, {"of": name, **kept})
    return measured


def _rows(subject: EvalContext) -> dict[str, Any]:
    return {"records": measure(subject), "counts": dict(subject.counts)}


def _decides(loaded: Loaded, subject: EvalContext, folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Everything that the base's scores on the rows follow from, and those on the general texts, if they are wanted."""
    config, settings = loaded.config, subject.settings
    code = hashlib.sha256()
    for package in (evaluation, kernels, models):
        for file in sorted(Path(package.__path__[0]).rglob("*.py")):
            code.update(file.read_bytes())
    where = next(subject.model.parameters())
    both: dict[str, Any] = {
        "base": folder.base_hashes(),
        "code": code.hexdigest(),
        "model": config.model.model_dump(mode="json", exclude={"path", "hub", "revision", "device", "dtype"}),
        "placed": [where.device.type, str(where.dtype)],
        "versions": {name: environment()["packages"][name] for name in PACKAGES},
    }
    rows = hashlib.sha256(Path(settings.check).read_bytes() if settings.check is not None else b"")
    for row, owner in zip(subject.rows, subject.owner, strict=True):
        example = subject.examples[owner]
        rows.update(repr((row.ids, row.labels, owner, example.messages, example.tools, example.label)).encode())
    ranking = {"before", "metric", "examples", "cache", "check", "forgetting"}
    decides: dict[str, dict[str, Any]] = {
        "base": both
        | {
            "rows": rows.hexdigest(),
            "labels": subject.labels,
            "task": subject.task.spec(),
            # A classification head is drawn by the seed.
            "seed": config.seed if subject.task.model_class == "classification" else None,
            "settings": settings.model_dump(mode="json", exclude=ranking),
            "installed": [find_spec(name) is not None for name in ("rouge_score", "sacrebleu")],
        }
    }
    if settings.forgetting and not forgetting.applies(subject):
        texts = repr(forgetting.probe_rows(subject))
        batches = settings.model_dump(mode="json", include={"batch_size", "batch_tokens"})
        decides["probe"] = both | {"texts": hashlib.sha256(texts.encode()).hexdigest(), "settings": batches}
    return decides


def compare_with_base(subject: EvalContext, base: Measured, folder: RunFolder) -> dict[str, Any]:
    """Measure `subject`, set it against the base and write predictions.jsonl."""
    result, predictions = against_base(subject, base)
    folder.write_jsonl(folder.predictions, predictions)
    return result


def against_base(subject: EvalContext, base: Measured) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure `subject` and set it against the base: (what result.json has of it, a prediction for each example)."""
    # Without the base there is nothing to compare the general texts with.
    tuned = Measured(**_rows(subject), probe=forgetting.measure_probe(subject) if base.probe else [])
    chosen = evaluations(subject)
    both = len(base.records) == len(tuned.records)
    predictions = [
        {
            "where": e.where,
            "text": question_of(e),
            "answer": e.answer,
            "base": base.records[i] if both else {},
            "tuned": record,
        }
        for i, (e, record) in enumerate(zip(subject.examples, tuned.records, strict=True))
    ]
    found = {"base": scores(base.records, chosen) if both else {}, "tuned": scores(tuned.records, chosen)}
    primary = choose_primary(subject, list(found["tuned"]))
    for name, side in found.items():
        if primary in side:  # it comes first, wherever scores are shown
            side[primary]["primary_metric"] = True
            found[name] = {primary: side[primary], **side}
    why = forgetting.applies(subject) or ("" if subject.settings.forgetting else "evaluate.forgetting is false")
    caveats, cut, limit = lacking(subject), tuned.counts.get("cut answers", 0), subject.settings.max_new_tokens
    if len(tuned.records) < FEW:
        caveats.append(f"fewer than {FEW} examples: the intervals are too narrow")
    caveats += no_better_than_chance(found["tuned"], tuned.records)
    if cut:
        cut_off = f"{cut} of {tuned.counts['answers']} answers of the tuned model did not end within {limit} tokens"
        caveats.append(f"{cut_off} (evaluate.max_new_tokens)")
    result = {
        "measured_with": subject.settings.model_dump(mode="json"),
        "validation_examples": len(tuned.records),
        **found,
        "primary_metric": primary,
        "difference": differences(base.records, tuned.records, chosen) if both else {},
        "examples": contrast(predictions, primary, chosen, subject.settings.examples) if both else {},
        "forgetting": forgetting.forgetting(base.probe, tuned.probe),
        "no_forgetting": why or ("" if base.probe else "the base was not measured"),
        "counts": {"base": base.counts, "tuned": tuned.counts},
        "caveats": caveats,
    }
    return result, predictions


def no_better_than_chance(scores: Mapping[str, Mapping[str, Any]], records: Sequence[Record]) -> list[str]:
    """What to say of a model that does not tell labels apart, by the interval of its MCC; empty where it does."""
    if "mcc" not in scores or scores["mcc"]["low"] > 0:
        return []
    most, times = Counter(record["chosen"] for record in records).most_common(1)[0]
    return [
        f"the tuned model is no better than chance (MCC not above 0): it answers {most!r} to {times} of {len(records)} "
        "examples; try train.lr three times lower or higher, more train.epochs, or another method (luthier compare)"
    ]


@contextmanager
def base_model(loaded: Loaded) -> "Iterator[nn.Module]":
    """The base of a tuned model: with the adapter switched off, or loaded again where there is none."""
    switch = loaded.config.method.disabled(loaded.model)
    with nullcontext() if switch is None else switch:
        yield loaded.model if switch is not None else load_base(loaded.config, loaded.tokens).model
