"""From examples to rows of tokens, in parallel processes, with the reason of each example that gives none."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from luthier.core.errors import DataError, InputError
from luthier.core.events import Progress
from luthier.data import cache
from luthier.data.parallel import in_order, processors
from luthier.data.prepared import SIDES, Prepared
from luthier.data.rows import Encoded, Rows
from luthier.data.settings import DataConfig
from luthier.data.store import DataFolder, Examples, Refusal, example_of, plain
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


@dataclass(slots=True)
class EncodedPiece:
    """The rows and failures of a piece of the examples, numbered within it."""

    rows: Encoded = field(default_factory=Encoded)
    failures: dict[int, tuple[RowError, int]] = field(default_factory=dict)
    """Errors of the examples without rows, with the tokens of the longest row where that is too long."""
    whole: "array[int]" = field(default_factory=lambda: array("I"))
    """Tokens of each row without the limit, where they were asked for."""


def encode(
    data: Prepared,
    template: Template,
    config: DataConfig,
    max_length: int,
    *,
    progress: Progress | None = None,
    whole: "array[int] | None" = None,
) -> None:
    """Fill the rows of every side with tokens; rows over the limit follow data.on_long_row.

    `whole` gets the tokens of each row without the limit.
    """
    data.template_source = template.source
    policy = config.on_long_row or ("split" if data.task.splits_long_rows else "stop")
    if policy == "split" and not data.task.splits_long_rows:
        raise InputError(
            f"data.on_long_row: task {data.task.name} cannot split a row",
            fix="data.on_long_row=truncate_prompt, truncate_answer, skip or stop",
        )
    if data.stream is not None:
        data.stream.begin(partial(rows_of, data.task, template, max_length, policy), policy)
    every = sum(len(data.side(name).examples) for name in SIDES)
    name = ""
    if config.cache and whole is None and every >= CACHED_FROM:
        decides: dict[str, Any] = {
            "examples": data.fingerprint,
            "task": data.task.spec(),
            "tokenizer": identity(template),
        }
        decides |= {"max_length": max_length, "policy": policy, "on_bad_row": config.on_bad_row}
        name = cache.key("rows", decides)
        if _restore(data, name):
            return
    work = partial(encode_piece, data.task, template, max_length, policy, whole is not None)
    in_pieces = partial(in_order, work, workers=workers_for(config, every))
    folder = cache.begin() if name else DataFolder()
    run = _Encoder(data, config, policy, in_pieces, folder, progress or Progress(), every)
    for side in SIDES:
        run.encode(side, whole)
    if not data.rows and data.stream is None:
        first = data.refusals[0]
        raise DataError(
            f"{config.path}: no row is left to train on, {len(data.refusals)} were refused; "
            f"the first: {first.where}: {first.reason}"
        )
    if name:
        run.keep(name)


def encode_piece(
    task: Task, template: Template, max_length: int, policy: LongRow, measure: bool, records: Sequence[bytes]
) -> EncodedPiece:
    """Encode some examples; failures are returned, not raised."""
    made = EncodedPiece()
    for number, record in enumerate(records):
        example = example_of(record)
        try:
            rows = rows_of(task, template, max_length, policy, example)
        except RowError as error:
            lengths = _whole(task, template, example) if error.kind == "long" else []
            made.failures[number] = error.with_traceback(None), max(lengths, default=0)
        else:
            for row in rows:
                made.rows.add(row, number)
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


@dataclass(slots=True)
class _Encoder:
    """Encodes all sides once."""

    data: Prepared
    config: DataConfig
    policy: LongRow
    work: Callable[[Iterable[list[bytes]]], Iterator[EncodedPiece]]
    folder: DataFolder
    progress: Progress
    every: int
    done: int = 0
    kept: "dict[str, array[int]]" = field(default_factory=dict)
    """For each side, the places of the examples that have rows."""
    refused: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: {side: [] for side in SIDES})
    """For each side, the places of the other examples, with the reason."""

    def encode(self, side: str, whole: "array[int] | None") -> None:
        """The rows of one side, and the examples that have any."""
        examples = self.data.side(side).examples
        rows, kept = Rows(self.folder, side), array("Q")
        begin = 0
        for made in self.work(pieces(examples)):
            new: dict[int, int] = {}
            for number in range(min(PIECE, len(examples) - begin)):
                if number in made.failures:
                    self._refuse(made.failures[number][0], side, begin + number)
                else:
                    new[number] = len(kept)
                    kept.append(begin + number)
            rows.extend(made.rows, [new[number] for number in made.rows.owner])
            if whole is not None:
                whole.extend(made.whole)
            begin += len(new) + len(made.failures)
            self.done += len(new) + len(made.failures)
            self.progress.rows(self.done, self.every)
        self.kept[side] = kept
        _fill(self.data, side, rows, kept, self.refused[side])

    def _refuse(self, error: RowError, side: str, place: int) -> None:
        """Leave an example out, or stop, by the policies."""
        long = error.kind == "long"
        if self.policy == "skip" if long else self.config.on_bad_row == "skip":
            self.refused[side].append((place, error.reason))
            return
        examples = self.data.side(side).examples
        others = self._others(examples) if long else ""
        fix = error.fix or FIXES.get(error.kind, FIXES["bad"])
        raise DataError(f"{examples.where(place)}: {error.reason}{others}", fix=fix)

    def _others(self, examples: Examples) -> str:
        """How many rows are over the limit in all, so that it has to be raised only once."""
        failures = (failure for made in self.work(pieces(examples)) for failure in made.failures.values())
        tokens = [tokens for error, tokens in failures if error.kind == "long"]
        return f"; {len(tokens)} of {len(examples)} rows are too long, the longest has {max(tokens)} tokens"

    def keep(self, name: str) -> None:
        """Put all rows into the cache."""
        arrays: dict[str, array[int]] = {}
        for side in SIDES:
            arrays |= {f"{side}.kept": self.kept[side], **self.data.side(side).rows.state()}
        cache.keep(name, self.folder, {"refused": self.refused}, arrays)


def _restore(data: Prepared, name: str) -> bool:
    """Fill `data` from the cache entry of an earlier run, if there is one."""
    found = cache.find(name)
    if found is None:
        return False
    folder, values, arrays = found
    for side in SIDES:
        rows = Rows.restored(DataFolder.existing(folder), side, arrays)
        _fill(data, side, rows, arrays[f"{side}.kept"], values["refused"][side])
    return True


def _fill(data: Prepared, side: str, rows: Rows, kept: "array[int]", refused: Iterable[tuple[int, str]]) -> None:
    """Set the rows of one side, count them, and keep what was left out."""
    counts, examples, _ = data.side(side)
    rows.examples = examples.take(kept)
    data.fill(side, rows.examples, rows)
    counts.refused += len(examples) - len(kept)
    counts.kept, counts.windows = len(kept), len(rows)
    counts.cut, counts.cut_tokens = sum(cut > 0 for cut in rows.cut), sum(rows.cut)
    counts.tokens, counts.learned = sum(rows.lengths), sum(rows.learned)
    counts.longest = max(rows.lengths, default=0)
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
    parts = [
        transformers.__version__,
        tokenizers.__version__,
        type(tokenizer).__name__,
        str(tokenizer.chat_template),
        str(tokenizer.special_tokens_map),
        str(tokenizer.init_kwargs.get("split_special_tokens")),
        backend.to_str() if backend is not None else str(sorted(tokenizer.get_vocab().items())),
    ]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def pieces(examples: Examples) -> Iterator[list[bytes]]:
    """The records of the examples, PIECE at a time."""
    records = examples.records()
    while some := list(islice(records, PIECE)):
        yield some
