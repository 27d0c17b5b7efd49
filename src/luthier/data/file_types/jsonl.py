"""JSON: an array or one object per line, read item by item. A bad item is reported and affects no other."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from luthier.core.errors import DataError
from luthier.data.file_types import base
from luthier.data.file_types.base import LONE, FileType, RawRow, blocks, encoding_of, lines, readable_part

DEPTH = 64
"""Lists and objects may be nested this deep: parsers differ in their limits, so this one is fixed."""


class _Unusable(ValueError):
    """Text that Python would read as JSON, and that is invalid or not safe to use."""


def _constant(text: str) -> NoReturn:
    raise _Unusable(f"invalid JSON: {text} is not a number in JSON; write null, or leave the key out")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Unusable(f"the key {twice!r} is there twice in one object")
    return made


_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_JSON = json.JSONDecoder(parse_constant=_constant, object_pairs_hook=_object)


class Jsonl(FileType):
    """Objects whose keys are the columns, in an array or one per line, whatever the suffix."""

    def rows(self, file: Path, columns: Sequence[str]) -> Iterator[RawRow]:
        encoding = encoding_of(file)
        begin = next((text.lstrip()[0] for text in blocks(file, encoding) if text.strip()), "")
        if begin == "[":
            for number, (item, size) in enumerate(_items(file, blocks(file, encoding)), 1):
                where = f"{file}: row {number}"
                text, fault = readable_part(item, size, encoding, "row")
                yield RawRow(where, {"raw": text.strip()}, fault) if fault else _json_row(where, text)
            return
        first = True
        for number, text, _, fault in lines(file, encoding):
            if not fault and not text.strip():
                continue
            where, whole, cut = f"{file}: line {number}", text.rstrip("\r\n"), not text.endswith("\n")
            row = RawRow(where, {"raw": whole}, fault) if fault else _json_row(where, whole, cut=cut)
            if first and row.problem and text.lstrip().startswith("{"):  # perhaps one object over several lines
                beginning = "".join(islice(blocks(file, encoding), base.LINE_LIMIT // base.BLOCK + 1))
                with suppress(ValueError, RecursionError):
                    keys = list(_JSON.decode(beginning[: base.LINE_LIMIT]))
                    why = f"holds one object, not rows (its keys: {', '.join(map(ascii, keys[:8]))})"
                    raise DataError(f"{file}: {why}", fix="rows are a JSON array [...] or one object per line")
            first = False
            yield row


def _json_row(where: str, text: str, *, cut: bool = False) -> RawRow:
    """The row of a piece of JSON. `cut`: the file ends right after it."""
    try:
        value = _JSON.decode(text)
        problem = "" if isinstance(value, dict) else f"should be an object with columns, not {type(value).__name__}"
        # Only such an escape makes half a character, and only brackets make depth: other rows need no check.
        if not problem and (_HALF.search(text) or text.count("{") + text.count("[") > DEPTH):
            problem = _fault(value)
    except json.JSONDecodeError as error:
        end = "; the file ends here, so it may have been cut off" if cut else ""
        problem = f"invalid JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}{end}"
    except _Unusable as error:
        problem = str(error)
    except RecursionError:
        problem = f"lists and objects are nested more than {DEPTH} deep"
    except ValueError:
        problem = "a number has more digits than Python reads"
    return RawRow(where, {"raw": text.strip()}, problem) if problem else RawRow(where, value)


def _fault(row: Mapping[str, Any]) -> str:
    """Why a parsed row cannot be used, or ''. Without recursion, which it guards against."""
    stack: list[tuple[str, Any, int]] = [(name, item, 2) for name, value in row.items() for item in (name, value)]
    while stack:
        name, item, depth = stack.pop()
        if isinstance(item, str):
            if LONE.search(item):
                return f"{name!a} holds half a character (a lone surrogate such as \\ud800), which text cannot"
        elif isinstance(item, dict | list):
            if depth > DEPTH:
                return f"lists and objects are nested more than {DEPTH} deep"
            within = [*item, *item.values()] if isinstance(item, dict) else item
            stack += [(name, inner, depth + 1) for inner in within]
    return ""


def _items(file: Path, pieces: Iterator[str]) -> Iterator[tuple[str, int]]:
    """(text, length) of each item of an array, cut at the commas; of one over the limit only the beginning."""
    scan = _Scan()
    kept: list[str] = []
    size = number = 0
    opened = closed = False
    for piece in pieces:
        at = 0
        if not opened:
            at = piece.find("[") + 1
            opened = at > 0
        while opened and not closed:
            end = scan.end(piece, at)
            part = piece[at:] if end < 0 else piece[at:end]
            size += len(part)
            kept.append(part)
            if size > base.LINE_LIMIT:
                kept = [kept[0][: base.SHOWN]]
            if end < 0:
                break
            at, mark, text = end + 1, piece[end], "".join(kept)
            closed = mark == "]"
            if not closed or number or text.strip():
                number += 1
                yield text, size
            if mark == "}":
                raise _invalid_array(file, f"a }} without its {{ is after row {number}")
            kept, size = [], 0
        if closed and piece[at:].strip():
            raise _invalid_array(file, f"there is more after the closing ], after row {number}")
    if not closed:
        raise _invalid_array(file, f"it ends within row {number + 1}, without the closing ]")


def _invalid_array(file: Path, why: str) -> DataError:
    return DataError(f"{file}: invalid JSON array: {why}", fix="fix the file there; it may have been cut off")


_IN_STRING, _OUTSIDE = re.compile(r'["\\]'), re.compile(r'["\[\]{},]')


class _Scan:
    """Finds where items of an array end, while their text comes in pieces, by strings and brackets alone."""

    def __init__(self) -> None:
        self.depth, self.in_string, self.skip = 0, False, 0

    def end(self, text: str, at: int) -> int:
        """Place of the mark that ends the item, or -1 where it goes on after `text`."""
        at, self.skip = at + self.skip, 0
        while found := (_IN_STRING if self.in_string else _OUTSIDE).search(text, at):
            at, mark = found.end(), found[0]
            if mark == "\\":
                at += 1
            elif mark == '"':
                self.in_string = not self.in_string
            elif mark in "[{":
                self.depth += 1
            elif not self.depth:
                return at - 1
            elif mark != ",":
                self.depth -= 1
        self.skip = max(0, at - len(text))
        return -1
