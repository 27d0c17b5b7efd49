"""Examples on disk, read one by one: a million short rows as Python objects take several GB, here some tens of MB."""

import json
import os
import shutil
import tempfile
import weakref
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, overload

from luthier.core.strict_json import to_json
from luthier.rendering.example import Example, Message

DIGEST = 16
"""Bytes of a digest: among a billion examples, two different ones share it with a probability of 1e-21."""
PLACE = ("where", "group")
CONTENT = tuple(field.name for field in fields(Example) if field.name not in PLACE)
DIALOGUES = tuple(CONTENT.index(name) for name in ("messages", "rejected"))
_content, _place = attrgetter(*CONTENT), attrgetter(*PLACE)
_message = attrgetter(*(field.name for field in fields(Message)))
T = TypeVar("T")


class DataFolder:
    """A temporary folder of data files, deleted when nothing uses it any more, or kept under a name."""

    def __init__(self, parent: Path | None = None, *, existing: Path | None = None) -> None:
        """A new folder in `parent`, or an `existing` one, which stays and is read only."""
        self.path, self.writable = existing or Path(tempfile.mkdtemp("", "luthier-data-", parent)), existing is None
        if self.writable:
            self._delete = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def keep(self, name: Path) -> None:
        """Rename the folder, so that it stays. Its files must be closed."""
        self.path.rename(name)
        self._delete.detach()
        self.path, self.writable = name, False


class Records:
    """Byte strings in one file, in the order they were added, read by number."""

    def __init__(self, folder: DataFolder, name: str, ends: "array[int] | None" = None) -> None:
        self.folder, self.name = folder, name
        self.ends = ends or array("Q", [0])
        self._file: BinaryIO | None = None
        self._opened_by = 0

    def append(self, record: bytes) -> None:
        self.extend(record, [self.ends[-1] + len(record)])

    def extend(self, flat: bytes, ends: Iterable[int]) -> None:
        """Add several records, one after another in `flat`; `ends` counts bytes from the start of the file."""
        file = self._open()
        file.seek(0, os.SEEK_END)
        file.write(flat)
        self.ends.extend(ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, number: int) -> bytes:
        return self.between(number, number + 1)

    def between(self, first: int, past: int) -> bytes:
        """The records from `first` to before `past`, one after another."""
        file = self._open()
        file.seek(self.ends[first])  # writes what is pending
        return file.read(self.ends[past] - self.ends[first])

    def _open(self) -> BinaryIO:
        if self._file is None or self._opened_by != os.getpid():  # processes would share the position in the file
            self._file = (self.folder.path / self.name).open("a+b" if self.folder.writable else "rb")
            self._opened_by = os.getpid()
        return self._file

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        if self._file is not None:
            self._file.close()
            self._file = None


class OnDisk(Sequence[T]):
    """A sequence whose items are read from disk one by one."""

    @abstractmethod
    def read(self, number: int) -> T:
        """The item with this number, from 0."""

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> list[T]: ...
    def __getitem__(self, number: int | slice) -> T | list[T]:
        if isinstance(number, slice):
            return [self.read(one) for one in range(len(self))[number]]
        return self.read(range(len(self))[number])


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that was left out, whole, with the reason."""

    where: str
    reason: str
    row: Any


class Refusals(OnDisk[Refusal]):
    """The rows that were left out, on disk: they may be most of the data."""

    def __init__(self, refusals: Iterable[Refusal] = ()) -> None:
        self._records = Records(DataFolder(), "refused.jsonl")
        self.files: dict[str, None] = {}
        """Names of the files or data sets that the rows come from."""
        self.extend(refusals)

    def append(self, refusal: Refusal) -> None:
        """Add one; what JSON cannot hold (a date of a parquet file) becomes text."""
        self.files[refusal.where.rpartition(": ")[0]] = None
        line = {"where": refusal.where, "reason": refusal.reason, "row": refusal.row}
        self._records.append(to_json(line, default=str).encode() + b"\n")

    def extend(self, refusals: Iterable[Refusal]) -> None:
        for refusal in refusals:
            self.append(refusal)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, number: int) -> Refusal:
        return Refusal(**json.loads(self._records[number]))


class Store:
    """All examples that were read, in one file; digests, labels and groups are in memory."""

    def __init__(
        self, folder: DataFolder | None = None, kept: "tuple[Mapping[str, Any], Mapping[str, array[int]]] | None" = None
    ) -> None:
        """Without examples, or with those whose file is in `folder`: then `kept` is what `state` returned."""
        values, arrays = kept or ({}, {})
        self.records = Records(folder or DataFolder(), "examples", arrays.get("ends"))
        self.files: dict[str, None] = dict.fromkeys(values.get("files", ()))
        """Names of the files or data sets that the examples come from."""
        self.names: dict[str, int] = {name: code for code, name in enumerate(values.get("names", ()))}
        """Each label and group -> its code."""
        self.digests, self.labels, self.groups = (
            arrays.get(name, array(code)) for name, code in (("digests", "B"), ("labels", "i"), ("groups", "i"))
        )
        """For each example the DIGEST bytes of its content, and the codes of its label (-1 for none) and its group."""

    def add(self, example: Example) -> None:
        content = content_record(example)
        self.records.append(content + b"\n" + json.dumps(_place(example)).encode())
        self.files[example.where.rpartition(": ")[0]] = None
        self.digests.frombytes(example_digest(content))
        label, group = example.label, example.group
        self.labels.append(-1 if label is None else self.names.setdefault(label, len(self.names)))
        self.groups.append(self.names.setdefault(group, len(self.names)))

    def __len__(self) -> int:
        return len(self.records)

    def where(self, number: int) -> str:
        """File and line of an example, without reading the rest of it."""
        return str(json.loads(self.records[number].rpartition(b"\n")[2])[0])

    def state(self) -> "tuple[dict[str, Any], dict[str, array[int]]]":
        """What another start needs beside the file, as values and arrays. Closes the file."""
        self.records.close()
        arrays = {"digests": self.digests, "labels": self.labels, "groups": self.groups}
        return {"names": list(self.names), "files": list(self.files)}, {"ends": self.records.ends, **arrays}


class Examples(OnDisk[Example]):
    """Some examples of a store, in some order."""

    def __init__(self, store: Store, numbers: Iterable[int]) -> None:
        self.store = store
        self.numbers: array[int] = array("Q", numbers)
        """Number of each example in the store."""

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "Examples":
        """A store of these alone."""
        store = Store()
        for example in examples:
            store.add(example)
        return cls(store, range(len(store)))

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, number: int) -> Example:
        return example_of(self.store.records[self.numbers[number]])

    def where(self, place: int) -> str:
        """File and line of the example at `place`."""
        return self.store.where(self.numbers[place])

    def take(self, places: Iterable[int]) -> "Examples":
        """The examples at these places."""
        return Examples(self.store, (self.numbers[place] for place in places))

    @property
    def digests(self) -> list[bytes]:
        """Digest of each example's content, in order."""
        every = self.store.digests.tobytes()
        return [every[number * DIGEST : (number + 1) * DIGEST] for number in self.numbers]

    @property
    def labels(self) -> list[str | None]:
        """Label of each example, in order."""
        names = [*self.store.names, None]  # of which -1 is the last
        return [names[self.store.labels[number]] for number in self.numbers]

    @property
    def groups(self) -> list[str]:
        """Group of each example, in order."""
        names = list(self.store.names)
        return [names[self.store.groups[number]] for number in self.numbers]


def plain(example: Example) -> dict[str, Any]:
    """What an example holds, for people: without its place and without what is empty."""
    made = {key: value for key, value in asdict(example).items() if value and key not in PLACE}
    for name in made.keys() & {"messages", "rejected"}:
        made[name] = [{k: v for k, v in m.items() if v or k in ("content", "learn")} for m in made[name]]
    return made


def content_record(example: Example) -> bytes:
    """The example without its place, as one line of JSON: equal examples, equal bytes."""
    values = list(_content(example))
    for at in DIALOGUES:
        values[at] = [_message(message) for message in values[at]]
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def example_digest(content: bytes) -> bytes:
    """Digest of a `content_record`."""
    return blake2b(content, digest_size=DIGEST).digest()


def example_of(record: bytes) -> Example:
    """The example of a record of a store."""
    content, _, place = record.partition(b"\n")
    values = json.loads(content.decode("utf-8", "surrogatepass"))
    for at in DIALOGUES:
        values[at] = tuple(Message(*message) for message in values[at])
    return Example(**dict(zip(CONTENT, values, strict=True)), **dict(zip(PLACE, json.loads(place), strict=True)))
