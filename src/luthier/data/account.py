"""The account of the rows, in words."""

from __future__ import annotations

from pathlib import Path

from luthier.core.events import Progress
from luthier.data.prepared import Prepared
from luthier.data.read import BY_FORMAT, HUB


def say(data: Prepared, refused: Path, progress: Progress) -> None:
    """Tell what became of the rows; `refused` is the file with those left out."""
    part = data.train
    counted = f"{part.kept:,} rows to train on ({part.tokens:,} tokens, {part.learned:,} learned)"
    why = "" if data.decided else f" ({data.format_why})"  # a guess was said when it was made
    progress.note(f"format {data.format.name}{why}, task {data.task.name}, template: {data.template_source}")
    progress.note(
        f"{'rows to train on are read while training' if data.stream else counted}, "
        f"{data.validation.kept:,} held out ({data.validation.source or 'none'})"
    )
    for file in data.files:
        if file["encoding"] not in ("utf-8", HUB) and not file["encoding"].endswith(BY_FORMAT):
            progress.note(f"{file['file']} is read as {file['encoding']}")
    if data.test.kept:
        progress.note(f"{data.test.kept:,} test rows for the end ({data.test.source})")
    for portion in data.portions:
        progress.note(f"{portion.source}: {portion.rows} rows of an epoch, by weight {portion.weight:g}")
    if data.refusals:
        counts = {
            "refused": part.refused + data.validation.refused + data.test.refused,
            "duplicates": part.duplicates + data.validation.duplicates + data.test.duplicates,
            "in the validation rows too": part.leaks,
        }
        told = ", ".join(f"{count} {why}" for why, count in counts.items() if count)
        progress.warn(f"{len(data.refusals)} rows were left out ({told}); each with its reason in {refused}")
    leaks = data.validation.in_training + data.test.in_training
    if leaks and not part.leaks:
        progress.warn(
            f"{leaks} held-out rows stand in the training rows too, which flatters the score; "
            "data.on_leak=drop takes them out of the training rows"
        )
    if cut := part.cut + data.validation.cut + data.test.cut:
        progress.warn(f"{cut} rows were cut to fit train.max_length, by data.on_long_row")
    if not data.validation_rows:
        progress.warn("no row is held out, so nothing will tell whether training helps")
