"""From examples to rows of tokens, in parallel processes, with the reason of each example that gives none."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from luthier.core.errors import DataError, InputError
from luthier.core.events import SILENT, Progress
from luthier.data import cache
from luthier.data.parallel import in_order
from luthier.data.prepared import SIDES, Encoded, Prepared, Rows
from luthier.data.settings import DataConfig
from luthier.data.store import DataFolder, Examples, Refusal, example_of, plain
from luthier.kernels.process import processors
from luthier.rendering.chat_template import Template
from luthier.rendering.example import FIXES, Example, RowError
from luthier.rendering.row import LongRow, Row
from luthier.tasks.base import Task

PIECE = 200
"""Examples that a process encodes at a time."""
PARALLEL_FROM = 5_000
"""Examples from which more than one process is worth its start."""
CACHED_FROM = 10_000
NO_LIMIT = 2**40


def encode(
    data: Prepared,
    template: Template,
    config: DataConfig,
    max_length: int,
    *,
    progress: Progress = SILENT,
    whole: "array[int] | None" = None,
) -> None:
    """Fill the rows of every side with tokens; `whole` gets the number of tokens of each row without the limit."""
    data.template_source = template.source
    policy = config.on_long_row or ("split" if data.task.splits_long_rows else "stop")
    if policy == "split" and not data.task.splits_long_rows:
        why = f"data.on_long_row: task {data.task.name} cannot split a row"
        raise InputError(why, fix="data.on_long_row=truncate_prompt, truncate_answer, skip or stop")
    if data.stream is not None:
        data.stream.begin(partial(rows_of, data.task, template, max_length, policy), policy)
    every = sum(len(data.side(name).examples) for name in SIDES)
    name = ""
    if config.cache and whole is None and every >= CACHED_FROM:
        decides: dict[str, Any] = {"examples": data.fingerprint, "task": data.task.spec(), "max_length": max_length}
        decides |= {"tokenizer": identity(template), "policy": policy, "on_bad_row": config.on_bad_row}
        name = cache.key("rows", decides)
        if found := cache.find(name):
            for side in SIDES:
                _fill(data, Rows(found[0], side, found[2]), found[1]["refused"][side])
            return
    work = partial(encode_piece, data.task, template, max_length, policy, whole is not None)
    in_pieces = partial(in_order, work, workers=workers_for(config, every))
    folder = cache.begin() if name else DataFolder()
    refused: dict[str, list[tuple[int, str]]] = {side: [] for side in SIDES}
    arrays: dict[str, array[int]] = {}
    done = 0
    for side in SIDES:
        examples, rows = data.side(side).examples, Rows(folder, side)
        for number, made in enumerate(in_pieces(pieces(examples))):
            for place, (error, _) in made.failures.items():
                if (policy if error.kind == "long" else config.on_bad_row) != "skip":
                    raise _stopping(error, examples, number * PIECE + place, in_pieces)
                refused[side].append((number * PIECE + place, error.reason))
            rows.extend(made, number * PIECE)
            if whole is not None:
                whole.extend(made.whole)
            done += len(made.kept) + len(made.failures)
            progress.rows(done, every)
        _fill(data, rows, refused[side])
        arrays |= rows.state()
    if not data.rows and data.stream is None:
        first = data.refusals[0]
        why = f"{config.path}: no row is left to train on, {len(data.refusals)} were refused"
        raise DataError(f"{why}; the first: {first.where}: {first.reason}")
    if name:
        cache.keep(name, folder, {"refused": refused}, arrays)


def encode_piece(
    task: Task, template: Template, max_length: int, policy: LongRow, measure: bool, records: Sequence[bytes]
) -> Encoded:
    """Encode some examples; failures are returned, not raised."""
    made = Encoded()
    for number, record in enumerate(records):
        example = example_of(record)
        try:
            rows = rows_of(task, template, max_length, policy, example)
        except RowError as error:
            too_long = [max_length + 1]  # also where more is wrong with it
            lengths = (_whole(task, template, example) or too_long) if error.kind == "long" else []
            made.failures[number] = error.with_traceback(None), max(lengths, default=0)
        else:
            for row in rows:
                made.add(row, len(made.kept))
            made.kept.append(number)
            lengths = [len(row.ids) + row.cut for row in rows]
            if measure and policy == "split" and len(rows) > 1:
                lengths = _whole(task, template, example)
        if measure:
            made.whole.extend(lengths)
    return made


def rows_of(task: Task, template: Template, max_length: int, policy: LongRow, example: Example) -> list[Row]:
    """The rows of one example; RowError where there is none to learn from."""
    rows = task.encode(example, template, max_length, policy)
    if not any(row.learned for row in rows):
        raise RowError("no token of the row carries loss")
    return rows


def _whole(task: Task, template: Template, example: Example) -> list[int]:
    try:
        return [len(row.ids) for row in task.encode(example, template, NO_LIMIT, "stop")]
    except RowError:
        return []


def _stopping(
    error: RowError, examples: Examples, place: int, work: Callable[[Iterable[list[bytes]]], Iterator[Encoded]]
) -> DataError:
    """The error of the example at `place`; of a long one with how many are, so that the limit is raised only once."""
    others = ""
    if error.kind == "long":
        failures = (failure for made in work(pieces(examples)) for failure in made.failures.values())
        tokens = [tokens for failed, tokens in failures if failed.kind == "long"]
        others = f"; {len(tokens)} of {len(examples)} rows are too long, the longest has {max(tokens)} tokens"
    fix = error.fix or FIXES.get(error.kind, FIXES["bad"])
    return DataError(f"{examples.where(place)}: {error.reason}{others}", fix=fix)


def _fill(data: Prepared, rows: Rows, refused: Iterable[tuple[int, str]]) -> None:
    """Set the rows of one side, count them, and keep what was left out."""
    counts, examples, _ = data.side(rows.side)
    rows.examples = examples.take(rows.kept)
    data.fill(rows)
    counts.refused += len(examples) - len(rows.kept)
    counts.add(len(rows.kept), rows)
    data.refusals.extend(Refusal(examples.where(place), why, plain(examples[place])) for place, why in refused)


def workers_for(config: DataConfig, examples: int) -> int:
    """Processes to use on so many examples."""
    return config.workers or (processors() if examples >= PARALLEL_FROM else 1)


def identity(template: Template) -> str:
    """A hash of what decides the tokens of a text: tokenizer, chat template and versions of the libraries."""
    import tokenizers
    import transformers

    tokenizer = template.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [transformers.__version__, tokenizers.__version__, type(tokenizer).__name__, str(tokenizer.chat_template)]
    parts += [str(tokenizer.special_tokens_map), str(tokenizer.init_kwargs.get("split_special_tokens"))]
    parts.append(backend.to_str() if backend is not None else str(sorted(tokenizer.get_vocab().items())))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def pieces(examples: Examples) -> Iterator[list[bytes]]:
    """The records of the examples, PIECE at a time."""
    records = (examples.store.records[number] for number in examples.numbers)
    while some := list(islice(records, PIECE)):
        yield some
