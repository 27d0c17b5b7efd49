"""Rows that are read while the run trains: data sets too large to read first, of a known number of steps.

The order is that of a shuffle buffer: `data.shuffle_buffer` examples are read ahead, one of them is drawn at random,
the next one read takes its place. Each draw is a pure function of seed, epoch and number, so a resumed run repeats it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from random import Random
from typing import Any

from luthier.core.errors import DataError, InputError
from luthier.data.file_types.base import RawRow
from luthier.data.formats.base import Format
from luthier.data.prepared import Encoded, SplitCounts
from luthier.data.settings import DataConfig
from luthier.data.store import Refusal, Refusals, plain
from luthier.rendering.example import FIXES, Example, RowError
from luthier.rendering.row import LongRow, Row

NOT_STREAMED = {
    "mix": "sets are mixed by number of rows, which a stream does not know",
    "limit": "rows are taken after shuffling all of them; train.steps says how long to train",
    "deduplicate": "all rows would have to be remembered",
    "stratify": "no share is held out of a stream",
    "group": "no share is held out of a stream",
    "weight": "a weight is for a mix",
    "on_leak": "the training rows are not known before they train",
}
"""Setting of the data block -> why a stream cannot serve it."""


def refuse_settings(config: DataConfig) -> None:
    """InputError for settings that need all rows to be read first."""
    default = DataConfig()
    for key, why in NOT_STREAMED.items():
        if getattr(config, key) != getattr(default, key):
            raise InputError(f"data.{key}: not with data.streaming=true: {why}", fix=f"leave data.{key} out")
    for key in ("validation", "test"):
        if isinstance(getattr(config, key), float):
            why = f"data.{key}: no share can be held out of a stream, which is not read to its end first"
            raise InputError(why, fix=f"data.{key}=FILE, the name of a split, or none")


@dataclass(slots=True)
class Stream:
    """The training rows of a run, in order. `begin` it, then take `rows`."""

    source: Callable[[], Iterator[RawRow]]
    """Opens the data at its first row."""
    reader: Format
    config: DataConfig
    counts: SplitCounts
    """Counts of the first epoch."""
    refusals: Refusals
    """Rows left out in the first epoch."""
    epoch: int = 0
    read: int = 0
    """Rows read in this epoch."""
    drawn: int = 0
    """Examples drawn from the buffer in this epoch."""
    given: int = 0
    """Rows of the current example that were returned."""
    _encode: Callable[[Example], list[Row]] | None = None
    _policy: LongRow = "stop"
    _raw: Iterator[RawRow] = field(default_factory=lambda: iter(()))
    _digest: Any = None
    _buffer: list[tuple[int, list[Row]]] = field(default_factory=list)
    """Numbers and rows of the examples that were read and not drawn."""
    _current: tuple[int, list[Row]] = (0, [])

    def begin(self, encode: Callable[[Example], list[Row]], policy: LongRow) -> None:
        """Set how an example becomes rows, and what is done with long ones."""
        self._encode, self._policy = encode, policy
        self._open()

    def _open(self) -> None:
        self._raw, self.read, self.drawn, self._buffer = self.source(), 0, 0, []
        self._digest = blake2b(digest_size=16)

    def rows(self) -> Iterator[Row]:
        """Row after row, without end. DataError where one stops the run by policy, or no row can be used."""
        while True:
            while self.given < len(self._current[1]):
                self.given += 1
                yield self._current[1][self.given - 1]
            self._fill()
            if not self._buffer:
                if not self.drawn:
                    first = f"; the first: {self.refusals[0].where}: {self.refusals[0].reason}" if self.refusals else ""
                    why = f"{self.config.path}: no row can be used, {self.counts.refused} were refused"
                    raise DataError(why + first)
                self.epoch += 1
                self._open()
                continue
            place = Random(f"{self.config.seed}:{self.epoch}:{self.drawn}").randrange(len(self._buffer))
            self._buffer[place], self._buffer[-1] = self._buffer[-1], self._buffer[place]
            self._current, self.given = self._buffer.pop(), 0
            self.drawn += 1

    def _fill(self) -> None:
        """Read until the buffer is full."""
        while len(self._buffer) < self.config.shuffle_buffer and (raw := next(self._raw, None)) is not None:
            rows = self._rows_of(raw)
            self.read += 1  # after what may raise: such a row is fixed, and a resumed run reads it again
            self._digest.update(_bytes(raw))
            if rows:
                self._buffer.append((self.read, rows))

    def _rows_of(self, raw: RawRow) -> list[Row]:
        """Rows of one row read; none where it is left out by policy."""
        assert self._encode is not None
        first, counts = self.epoch == 0, self.counts
        counts.read += first
        example = None
        try:
            if raw.problem:
                raise RowError(raw.problem)
            example = replace(self.reader.read(raw.values), where=raw.where)
            rows = self._encode(example)
        except RowError as error:
            policy = self._policy if error.kind == "long" else self.config.on_bad_row
            if policy != "skip" and error.kind != "unwanted":
                fix = error.fix or FIXES.get(error.kind, FIXES["bad"])
                raise DataError(f"{raw.where}: {error.reason}", fix=fix) from None
            if first:
                counts.refused += 1
                self.refusals.append(Refusal(raw.where, error.reason, plain(example) if example else raw.values))
            return []
        if first:
            encoded = Encoded()
            for row in rows:
                encoded.add(row, 0)
            counts.add(1, encoded)
        return rows

    def state(self) -> dict[str, Any]:
        """The position of the stream, for a checkpoint."""
        made: dict[str, Any] = {"epoch": self.epoch, "read": self.read, "drawn": self.drawn, "given": self.given}
        made |= {"hand": self._current[0], "buffer": [number for number, _ in self._buffer]}
        made |= {"digest": self._digest.hexdigest(), "part": asdict(self.counts), "refused": len(self.refusals)}
        return made

    def go_on(self, state: Mapping[str, Any], refused: Iterator[Refusal]) -> None:
        """Go to `state`, with the rows `refused` before; InputError where the rows up to there have changed."""
        assert self._encode is not None
        self.epoch = state["epoch"]
        self._open()
        wanted = {state["hand"], *state["buffer"]}
        found: dict[int, list[Row]] = {0: []}
        while self.read < state["read"] and (raw := next(self._raw, None)) is not None:
            self.read += 1
            self._digest.update(_bytes(raw))
            if self.read in wanted:
                try:
                    found[self.read] = self._encode(replace(self.reader.read(raw.values), where=raw.where))
                except RowError:
                    break  # another row than before: the digest differs
        if self.read != state["read"] or self._digest.hexdigest() != state["digest"]:
            why = f"{self.config.path}: the rows have changed since the run was started"
            raise InputError(why, fix="run=ANOTHER_DIR")
        self.drawn, self.given = state["drawn"], state["given"]
        self._current = (state["hand"], found[state["hand"]])
        self._buffer = [(number, found[number]) for number in state["buffer"]]
        for key, value in state["part"].items():
            setattr(self.counts, key, value)
        self.refusals.extend(each for _, each in zip(range(state["refused"]), refused, strict=False))


def _bytes(raw: RawRow) -> bytes:
    return json.dumps([raw.problem, raw.values], sort_keys=True, default=str).encode() + b"\n"
