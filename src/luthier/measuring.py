"""Base and tuned model on the held-out rows, and the difference."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from luthier.folder import RunFolder, write_json, write_jsonl
from luthier.stages import Loaded, load_base, prepare_data, tokenize
from luthier.training.progress import Progress

if TYPE_CHECKING:
    from luthier.evaluation.base import Record, Subject


def subject_of(loaded: Loaded) -> Subject | None:
    """The test rows, else the validation rows, with the model as it is now; None where there are none."""
    from luthier.evaluation.base import Subject

    data, settings = loaded.data, loaded.config.evaluate
    _, examples, rows = data.side("test" if data.test_rows else "validation")
    count = len(examples) if settings.rows is None else settings.rows
    owner = [number for number in rows.owner if number < count]  # in order
    if not owner:
        return None
    return Subject(
        model=loaded.model, template=loaded.template, task=data.task,
        examples=list(examples[:count]), rows=rows[: len(owner)], owner=owner,
        batch_size=settings.batch_size, max_new_tokens=settings.max_new_tokens, generate=settings.generate,
        max_length=loaded.max_length,
    )  # fmt: skip


def measure_base(loaded: Loaded, folder: RunFolder, progress: Progress) -> list[Record]:
    """Records of the untouched base, kept in before.json so that a resumed run need not measure again."""
    from luthier.evaluation.score import measure

    if folder.before.is_file():
        return list(json.loads(folder.before.read_text(encoding="utf-8")))
    subject = subject_of(loaded) if loaded.config.evaluate.before and loaded.config.model.init == "pretrained" else None
    if subject is None:
        return []
    progress.stage(f"evaluating the base on {len(subject.examples)} held-out examples")
    records = measure(subject)
    write_json(folder.before, records)
    return records


def compare(subject: Subject, base: list[Record], folder: RunFolder) -> dict[str, Any]:
    """Measure `subject`, set it against the base's records and write predictions.jsonl."""
    from luthier.evaluation.score import differences, evaluations, measure, scores

    tuned, chosen = measure(subject), evaluations(subject)
    both = len(base) == len(tuned)
    predictions = [
        {"where": e.where, "text": e.text or "\n".join(m.said for m in e.messages[:-1]), "answer": e.answer,
         "base": base[i] if both else {}, "tuned": record}
        for i, (e, record) in enumerate(zip(subject.examples, tuned, strict=True))
    ]  # fmt: skip
    write_jsonl(folder.predictions, predictions)
    return {
        "validation_examples": len(tuned),
        "base": scores(base, chosen) if both else {},
        "tuned": scores(tuned, chosen),
        "difference": differences(base, tuned, chosen) if both else {},
    }


def base_again(loaded: Loaded, subject: Subject, folder: RunFolder, progress: Progress) -> list[Record]:
    """The untouched base on the same rows: with the adapter switched off, or loaded anew where there is none."""
    from luthier.evaluation.score import measure

    if loaded.config.model.init == "random":
        return []
    progress.stage(f"evaluating the base on {len(subject.examples)} held-out examples")
    switch = loaded.config.method.disabled(loaded.model)
    if switch is not None:
        with switch:
            return measure(subject)
    data = prepare_data(loaded.config, Progress())
    base = load_base(loaded.config, data, tokenize(loaded.config, data, progress))
    plain = subject_of(base)
    return measure(plain) if plain is not None else []
