"""What a file type is, and what those of text share: a file as lines or blocks of text, in constant memory."""

import codecs
import errno
import gzip
import io
import re
import stat
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

from luthier.core.errors import DataError
from luthier.core.registry import Family, Plugin

LINE_LIMIT = 64 * 2**20
"""Characters of one line, one row over several lines, or one document of plain text. A longer one is refused."""
BOMB_SIZE, BOMB_RATIO = 2**30, 200
"""A compressed file is refused where it decompresses to more than this many bytes AND this many times its own size."""
BLOCK = 2**17
SHOWN = 200  # characters that are kept of a row over the limit
LINE = re.compile(r"[^\n]*\n|[^\n]+")  # or the part of one in a block
LONE = re.compile(r"[\ud800-\udfff]")  # half a character of UTF-16; with surrogateescape, a byte that is not text

GZIP, ZSTD, ZSTD_SKIPPED = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"
FOREIGN = (
    (b"PK\x03\x04", "a zip or Excel file", "export it as csv or jsonl"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file", "export it as csv or jsonl"),
    (b"%PDF-", "a PDF", "extract its text"),
    (b"PAR1", "a parquet file", "give it a name that ends in .parquet"),
    (b"ARROW1", "an arrow file", "give it a name that ends in .arrow"),
    (b"BZh", "compressed with bzip2", "decompress it, or compress it with gzip"),
    (b"\xfd7zXZ\x00", "compressed with xz", "decompress it, or compress it with gzip"),
    (GZIP, "compressed twice", "decompress it once"),
    (ZSTD, "compressed twice", "decompress it once"),
    (codecs.BOM_UTF32_LE, "in UTF-32", "convert the file to UTF-8"),
    (codecs.BOM_UTF32_BE, "in UTF-32", "convert the file to UTF-8"),
)


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row of a file. `problem` is why it is not a row at all; then `values` holds its raw text."""

    where: str
    values: Mapping[str, Any]
    problem: str = ""


class FileType(Plugin):
    """A kind of data file; its name is the suffix without the dot."""

    required: ClassVar[tuple[str, ...]] = ("rows",)

    text: ClassVar[bool] = True
    """Is it text in some encoding? Then it may also be compressed: NAME.csv.gz."""
    headless: ClassVar[bool] = False
    """May it lack the line of column names, which data.columns gives then?"""
    empty: ClassVar[str] = "has no rows"
    """What is wrong with a file without any row."""

    def rows(self, file: Path, columns: Sequence[str]) -> Iterator[RawRow]:
        """Every row with its place, one by one in constant memory; a bad row is reported in it and stops nothing."""
        raise NotImplementedError


PRESETS: dict[str, tuple[str, dict[str, Any]]] = {"tsv": ("csv", {"tab": True})}
PRESETS |= {"json": ("jsonl", {}), "ndjson": ("jsonl", {}), "feather": ("arrow", {}), "ipc": ("arrow", {})}
FILE_TYPES = Family(FileType, "kind of file", presets=PRESETS)


def kind_of(path: str) -> Literal["file", "folder", ""]:
    """What is at a path; '' for nothing. DataError for a broken link, or a folder that may not be read."""
    try:
        return "folder" if stat.S_ISDIR(Path(path).stat().st_mode) else "file"
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the path
        if "\0" not in path and Path(path).is_symlink():
            target = Path(path).readlink()
            raise DataError(f"{path}: is a link to {target}, which is not there", fix="fix the link") from None
        return ""
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return ""
        raise refusal(path, error) from None


def refusal(path: Path | str, error: OSError) -> DataError:
    """A system error of a file as a DataError."""
    if isinstance(error, PermissionError):
        return DataError(f"{path}: may not be read: permission denied", fix=f"chmod u+r {path}, or ask its owner")
    if error.errno == errno.ELOOP:
        return DataError(f"{path}: is a link that leads back to itself", fix="fix the link")
    return DataError(f"{path}: cannot be read: {error.strerror or error}", fix="check the file and its disk")


@contextmanager
def watched(file: Path) -> Iterator[None]:
    """Turns system errors of reading `file` into DataErrors, and reports a file that changes meanwhile."""
    try:
        before, failure = _stamp(file), None
        try:
            yield
        except DataError as error:
            failure = error
        if _stamp(file) != before:  # a half-written file causes errors that would mislead
            fix = "wait until it is written to its end, then start again"
            raise DataError(f"{file}: changed while it was read", fix=fix)
        if failure is not None:
            raise failure
    except OSError as error:
        raise refusal(file, error) from error


def _stamp(file: Path) -> tuple[int, ...]:
    there = file.stat()
    if not stat.S_ISREG(there.st_mode):
        kind = "a folder" if stat.S_ISDIR(there.st_mode) else "a pipe or a device, which cannot be read twice"
        raise DataError(f"{file}: is {kind}, not a file", fix="save the data as a file")
    return there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns


def byte_blocks(file: Path) -> Generator[bytes, None, None]:
    """The bytes of a file, decompressed where it begins as gzip or zstd does; DataError for a decompression bomb."""
    with io.BufferedReader(io.FileIO(file), BLOCK) as source:
        head = source.peek(4)[:4]
        kind, read, size = "", source.read, 0
        if head.startswith(GZIP):
            kind, read = "gzip", gzip.GzipFile(fileobj=source).read
        elif head.startswith(ZSTD) or (head[1:4] == ZSTD_SKIPPED and head[0] >> 4 == 5):
            import pyarrow

            kind, read = "zstd", pyarrow.CompressedInputStream(source, "zstd").read
        try:
            while block := read(BLOCK):
                size += len(block)
                if kind and size > BOMB_SIZE and size > BOMB_RATIO * source.tell():
                    grown = f"over {BOMB_SIZE:,} bytes and {BOMB_RATIO} times its own size, which data does not do"
                    fix = "decompress it yourself if that is intended"
                    raise DataError(f"{file}: decompresses to {grown}", fix=fix)
                yield block
        except (EOFError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the data's
                raise
            why = f"the {kind} data is damaged or cut off: {error}"
            raise DataError(f"{file}: {why}", fix="fetch or compress the file again") from None


def encoding_of(file: Path) -> str:
    """The encoding that reads the whole file: utf-8, utf-8-sig (with a mark), utf-16 (with a mark) or gb18030.

    A file of UTF-8 with some damage stays UTF-8, and the damaged rows are refused one by one.
    """
    with watched(file), closing(byte_blocks(file)) as source:
        block = next(source, b"")
        for magic, what, fix in FOREIGN:
            if block.startswith(magic):
                raise DataError(f"{file}: this is {what}, not text", fix=fix)
        if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        if block.startswith(codecs.BOM_UTF8):
            return "utf-8-sig"
        odd, even = block[1::2].count(0), block[::2].count(0)
        if max(odd, even) > len(block) / 4 and min(odd, even) < len(block) / 50:
            raise DataError(f"{file}: looks like UTF-16 without its mark", fix="convert the file to UTF-8")
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for each in chain([block], source):
                decoder.decode(each)
            decoder.decode(b"", final=True)
            return "utf-8"
        except UnicodeDecodeError:
            return _weighed(file)


def _weighed(file: Path) -> str:
    """GB18030, or UTF-8 with some damage? Chinese in one can be read as other Chinese in the other, so count."""
    tries = {name: codecs.getincrementaldecoder(name)("surrogateescape") for name in ("utf-8", "gb18030")}
    good, bad = dict.fromkeys(tries, 0), dict.fromkeys(tries, 0)
    high, line, first = 0, 1, 0
    for block in byte_blocks(file):
        high += len(block) - len(block.translate(None, bytes(range(128, 256))))
        for name, decoder in tries.items():
            text = decoder.decode(block)
            wrong = len(LONE.findall(text))
            bad[name] += wrong
            good[name] += len(text) - len(text.encode("ascii", "ignore")) - wrong
            if name == "utf-8":
                if wrong and not first and (found := LONE.search(text)):
                    first = line + text.count("\n", 0, found.start())
                line += text.count("\n")
    if not bad["utf-8"] or good["utf-8"] > bad["utf-8"]:  # none bad: it only ends within a character
        return "utf-8"
    # Chinese fills its pairs with high bytes; in a Western text each stands alone before a Latin letter.
    if good["gb18030"] > 20 * bad["gb18030"] and high - bad["gb18030"] >= 1.4 * good["gb18030"]:
        return "gb18030"
    raise DataError(f"{file}: line {first or line} is neither UTF-8 nor GB18030", fix="convert the file to UTF-8")


def blocks(file: Path, encoding: str) -> Iterator[str]:
    """The text of a file, block by block; bytes that are not text are lone surrogates in it."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass" if encoding == "utf-16" else "surrogateescape")
    for block in byte_blocks(file):
        yield decoder.decode(block)
    try:
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError:  # half a code unit of UTF-16
        yield "\udcff"


def lines(file: Path, encoding: str) -> Iterator[tuple[int, str, int, str]]:
    """(number, line with its end, characters, fault) of each line; with a fault, the line is its readable part."""
    number, size = 1, 0
    parts: list[str] = []
    for part in chain(chain.from_iterable(map(LINE.findall, blocks(file, encoding))), [""]):
        parts.append(part)
        size += len(part)
        if size > LINE_LIMIT:
            parts = ["".join(parts)[:SHOWN]]
        if part.endswith("\n") or (size and not part):  # the last line may lack its end
            text, fault = readable_part("".join(parts), size, encoding, "line")
            yield number, text, size, fault
            number, size, parts = number + 1, 0, []


def readable_part(text: str, size: int, encoding: str, what: str) -> tuple[str, str]:
    """A line or row (`what`) of so many characters, or its readable part and why it cannot be used."""
    fault = too_long(size) if size > LINE_LIMIT else ""
    try:
        text.encode()  # a lone surrogate stands for a byte that is not text
    except UnicodeEncodeError as error:
        before = len(text[: error.start].encode(encoding.removesuffix("-sig")))
        place = "" if encoding == "utf-16" else f", the first at byte {before + 1} of the {what}"
        fault = fault or f"holds bytes that are not {encoding.upper().removesuffix('-SIG')}{place}"
        codes = {ord(lone): f"\\u{ord(lone):04x}" for lone in LONE.findall(text)}
        codes |= {code: f"\\x{code - 0xDC00:02x}" for code in codes if 0xDC80 <= code <= 0xDCFF}
        text = text.translate(codes)
    return text, fault


def too_long(size: int) -> str:
    """The reason to refuse a line or row over the limit."""
    return f"is {size:,} characters long, over the limit of {LINE_LIMIT:,} for one row"
