"""What became of the rows, as progress messages."""

from pathlib import Path

from luthier.core.events import Progress
from luthier.data.prepared import Prepared
from luthier.data.read import BY_FORMAT, HUB


def report(data: Prepared, refused: Path, progress: Progress) -> None:
    """Report what became of the rows; `refused` is the file with those left out."""
    train, validation, test = data.train, data.validation, data.test
    sides = (train, validation, test)
    why = "" if data.decided else f" ({data.format_why})"  # a guess was reported when it was made
    progress.note(f"format {data.format.name}{why}, task {data.task.name}, template: {data.template_source}")
    counted = f"{train.kept:,} rows to train on ({train.tokens:,} tokens, {train.learned:,} learned)"
    counted = "rows to train on are read while training" if data.stream else counted
    progress.note(f"{counted}, {validation.kept:,} held out ({validation.source or 'none'})")
    for file in data.files:
        if file["encoding"] not in ("utf-8", HUB) and not file["encoding"].endswith(BY_FORMAT):
            progress.note(f"{file['file']} is read as {file['encoding']}")
    if test.kept:
        progress.note(f"{test.kept:,} test rows for the end ({test.source})")
    for portion in data.portions:
        progress.note(f"{portion.source}: {portion.rows} rows of an epoch, by weight {portion.weight:g}")
    if data.refusals:
        counts = {
            "refused": sum(side.refused for side in sides),
            "duplicates": sum(side.duplicates for side in sides),
            "in the validation rows too": train.leaks,
        }
        reasons = ", ".join(f"{count} {why}" for why, count in counts.items() if count)
        progress.warn(f"{len(data.refusals)} rows were left out ({reasons}); each with its reason in {refused}")
    leaks = validation.in_training + test.in_training
    if leaks and not train.leaks:
        progress.warn(
            f"{leaks} held-out rows are training rows too, which inflates the score; "
            "data.on_leak=drop takes them out of the training rows"
        )
    if cut := sum(side.cut for side in sides):
        progress.warn(f"{cut} rows were cut to fit train.max_length, by data.on_long_row")
    if not data.validation_rows:
        progress.warn("no row is held out, so nothing will show whether training helps")
