"""Examples on disk: a data set may be larger than memory.

A run reads all of its data before step one, and a million short rows as Python objects take some GB. So they
stand in one file and are read from it one by one; what stays in memory is some tens of bytes per row.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, overload

from luthier.core.strict_json import to_json
from luthier.rendering.example import Example, Message

DIGEST = 16
"""Bytes of a digest: among a billion examples, two different ones share it with a chance of 1e-21."""
PLACE = ("where", "group")
OWN = tuple(field.name for field in fields(Example) if field.name not in PLACE)
DIALOGUES = tuple(OWN.index(name) for name in ("messages", "rejected"))
_own, _place = attrgetter(*OWN), attrgetter(*PLACE)
_message = attrgetter(*(field.name for field in fields(Message)))


class Place:
    """A folder of data files that goes when nothing uses it any more, or is kept under a name for the next run."""

    def __init__(self, parent: Path | None = None) -> None:
        self.folder, self.grows = Path(tempfile.mkdtemp(prefix="luthier-data-", dir=parent)), True
        self._gone = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    @classmethod
    def kept(cls, folder: Path) -> Place:
        """A folder that stays."""
        place = cls.__new__(cls)
        place.folder, place.grows = folder, False
        return place

    def keep(self, name: Path) -> None:
        """Rename the folder; whoever has files of it open must have let go of them."""
        self.folder.rename(name)
        self._gone.detach()
        self.folder, self.grows = name, False


class Records:
    """Byte strings in one file, in the order they were added, read by number."""

    def __init__(self, place: Place, name: str, ends: array[int] | None = None) -> None:
        self.place, self.name = place, name
        self.ends = array("Q", [0]) if ends is None else ends
        self._file: BinaryIO | None = None
        self._opened_by = 0

    def append(self, record: bytes) -> None:
        """Add one more."""
        file = self._open()
        file.seek(0, os.SEEK_END)
        file.write(record)
        self.ends.append(self.ends[-1] + len(record))

    def extend(self, flat: bytes, ends: Iterable[int]) -> None:
        """Add several that stand one behind another in `flat`; `ends` counts from the begin of the file."""
        self.append(flat)
        self.ends.pop()
        self.ends.extend(ends)

    @property
    def path(self) -> Path:
        """The file."""
        return self.place.folder / self.name

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, number: int) -> bytes:
        return self.between(number, number + 1)

    def between(self, first: int, past: int) -> bytes:
        """Several that stand one behind another."""
        file = self._open()
        file.seek(self.ends[first])  # writes what is pending
        return file.read(self.ends[past] - self.ends[first])

    def _open(self) -> BinaryIO:
        if self._file is None or self._opened_by != os.getpid():  # processes would share the place in the file
            self._file = self.path.open("a+b" if self.place.grows else "rb")
            self._opened_by = os.getpid()
        return self._file

    def release(self) -> None:
        """Close the file; it is opened again when it is needed."""
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that was left out, whole, with the reason."""

    where: str
    reason: str
    row: Any


class Refusals(Sequence[Refusal]):
    """The rows that were left out, on disk: they may be most of the data."""

    def __init__(self, refusals: Iterable[Refusal] = ()) -> None:
        self._records = Records(Place(), "refused.jsonl")
        self.files: dict[str, None] = {}
        """Names of the files, or data sets, that they come from."""
        self.extend(refusals)

    def append(self, refusal: Refusal) -> None:
        """Add one; what JSON cannot hold (a date of a parquet file) becomes text."""
        self.files[file_of(refusal.where)] = None
        line = {"where": refusal.where, "reason": refusal.reason, "row": refusal.row}
        self._records.append(to_json(line, default=str).encode() + b"\n")

    def extend(self, refusals: Iterable[Refusal]) -> None:
        """Add several."""
        for refusal in refusals:
            self.append(refusal)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, place: int) -> Refusal: ...
    @overload
    def __getitem__(self, place: slice) -> list[Refusal]: ...
    def __getitem__(self, place: int | slice) -> Refusal | list[Refusal]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return Refusal(**json.loads(self._records[place % len(self)]))


class Store:
    """All examples that were read, in one file, with what is asked of all of them in memory."""

    def __init__(self, records: Records | None = None) -> None:
        self.records = Records(Place(), "examples") if records is None else records
        self.digests: list[bytes] = []
        """Of each example's content: equal examples have equal digests."""
        self.labels: list[str | None] = []
        self.groups: list[str] = []
        self.files: dict[str, None] = {}
        """Names of the files, or data sets, that the examples come from."""
        self._names: dict[str, str] = {}

    def add(self, example: Example) -> None:
        """Append an example."""
        content = content_record(example)
        self.records.append(content + b"\n" + json.dumps(_place(example)).encode())
        self.digests.append(digest(content))
        self.files[file_of(example.where)] = None
        label, group = example.label, example.group
        # One string for all rows that share it.
        self.labels.append(None if label is None else self._names.setdefault(label, label))
        self.groups.append(self._names.setdefault(group, group))

    def __len__(self) -> int:
        return len(self.digests)

    def where(self, number: int) -> str:
        """Where an example stands, read without the rest of it."""
        return str(json.loads(self.records[number].rpartition(b"\n")[2])[0])

    def set_down(self) -> tuple[dict[str, Any], dict[str, array[int]]]:
        """What is not in the file, for `again`: values and arrays. Lets go of the file."""
        self.records.release()
        names = {name: code for code, name in enumerate(self._names)}
        return {"names": list(names), "files": list(self.files)}, {
            "ends": self.records.ends,
            "digests": array("B", b"".join(self.digests)),
            "labels": array("i", (-1 if label is None else names[label] for label in self.labels)),
            "groups": array("i", (names[group] for group in self.groups)),
        }

    @classmethod
    def again(cls, place: Place, values: Mapping[str, Any], arrays: Mapping[str, array[int]]) -> Store:
        """The examples whose file stands in `place`."""
        store, names = cls(Records(place, "examples", arrays["ends"])), values["names"]
        store.files = dict.fromkeys(values["files"])
        digests = arrays["digests"].tobytes()
        store.digests = [digests[at : at + DIGEST] for at in range(0, len(digests), DIGEST)]
        store.labels = [None if code < 0 else names[code] for code in arrays["labels"]]
        store.groups = [names[code] for code in arrays["groups"]]
        return store


class Examples(Sequence[Example]):
    """Some examples of a store, in some order; each is read from disk when it is asked for."""

    def __init__(self, store: Store, numbers: Iterable[int]) -> None:
        self.store = store
        self.numbers: array[int] = array("Q", numbers)
        """Of each example in the store."""

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Examples:
        """A store of these alone."""
        store = Store()
        for example in examples:
            store.add(example)
        return cls(store, range(len(store)))

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> Examples: ...
    def __getitem__(self, place: int | slice) -> Example | Examples:
        if isinstance(place, slice):
            return Examples(self.store, self.numbers[place])
        return example_of(self.store.records[self.numbers[place]])

    def records(self) -> Iterator[bytes]:
        """Each example as it stands in the file."""
        return (self.store.records[number] for number in self.numbers)

    def where(self, place: int) -> str:
        """Where one example stands."""
        return self.store.where(self.numbers[place])

    def take(self, places: Iterable[int]) -> Examples:
        """Those at these places."""
        return Examples(self.store, (self.numbers[place] for place in places))

    @property
    def digests(self) -> list[bytes]:
        """Digest of each one's content, in order."""
        return [self.store.digests[number] for number in self.numbers]

    @property
    def labels(self) -> list[str | None]:
        """Label of each, in order."""
        return [self.store.labels[number] for number in self.numbers]

    @property
    def groups(self) -> list[str]:
        """Group of each, in order."""
        return [self.store.groups[number] for number in self.numbers]


def plain(example: Example) -> dict[str, Any]:
    """What an example holds, without where it stands and without what is empty, for people."""
    made = {key: value for key, value in asdict(example).items() if value and key not in PLACE}
    for name in ("messages", "rejected"):
        if name in made:
            made[name] = [{k: v for k, v in m.items() if v or k in ("content", "learn")} for m in made[name]]
    return made


def file_of(where: str) -> str:
    """The file, or data set, that a place names."""
    return where.rpartition(": ")[0]


def content_record(example: Example) -> bytes:
    """The example without where it stands, as one line of JSON: equal examples, equal bytes."""
    values = list(_own(example))
    for at in DIALOGUES:
        values[at] = [_message(message) for message in values[at]]
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def digest(content: bytes) -> bytes:
    """Digest of a `content_record`."""
    return blake2b(content, digest_size=DIGEST).digest()


def example_of(record: bytes) -> Example:
    """The example that stands in a record of a store."""
    content, _, place = record.partition(b"\n")
    values = json.loads(content.decode("utf-8", "surrogatepass"))
    for at in DIALOGUES:
        values[at] = tuple(Message(*message) for message in values[at])
    return Example(**dict(zip(OWN, values, strict=True)), **dict(zip(PLACE, json.loads(place), strict=True)))
