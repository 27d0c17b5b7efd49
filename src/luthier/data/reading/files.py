"""A file as lines or blocks of text: compressed or plain, in common encodings, in constant memory."""

import codecs
import errno
import gzip
import io
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.core.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LINE_LIMIT = 64 * 2**20
"""Bytes of one line, one row over several lines, or one document of plain text. A longer one is refused."""
BOMB_SIZE, BOMB_RATIO = 2**30, 200
"""A compressed file is refused where it decompresses to more than this many bytes AND this many times its own size."""
BLOCK = 2**17
SHOWN = 200  # characters that are kept of a row over the limit
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
        before = _stamp(file)
        try:
            yield
        except DataError:
            _same(file, before)  # a half-written file causes errors that would mislead
            raise
        _same(file, before)
    except OSError as error:
        raise refusal(file, error) from error


def _stamp(file: Path) -> tuple[int, ...]:
    there = file.stat()
    if not stat.S_ISREG(there.st_mode):
        kind = "a folder" if stat.S_ISDIR(there.st_mode) else "a pipe or a device, which cannot be read twice"
        raise DataError(f"{file}: is {kind}, not a file", fix="save the data as a file")
    return there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns


def _same(file: Path, before: tuple[int, ...]) -> None:
    if _stamp(file) != before:
        raise DataError(
            f"{file}: changed while it was read", fix="wait until it is written to its end, then start again"
        ) from None


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a stream; closing it closes their source."""

    def __init__(self, pieces: Iterator[bytes], source: io.BufferedReader) -> None:
        self._pieces, self._source, self._rest = pieces, source, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(memoryview(buffer)), len(self._rest))
        memoryview(buffer)[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        self._source.close()
        super().close()


def open_bytes(file: Path) -> io.BufferedReader:
    """The bytes of a file, decompressed where its first bytes are those of gzip or zstd, whatever its name."""
    source: io.BufferedReader = io.BufferedReader(io.FileIO(file), BLOCK)
    head = source.peek(4)[:4]
    zstd = head.startswith(ZSTD) or (head[1:4] == ZSTD_SKIPPED and head[0] >> 4 == 5)
    if not zstd and not head.startswith(GZIP):
        return source
    return io.BufferedReader(_Pieces(_decompressed(file, source, "zstd" if zstd else "gzip"), source), BLOCK)


def _decompressed(file: Path, source: io.BufferedReader, kind: str) -> Iterator[bytes]:
    """Pieces of a compressed file; DataError where it is damaged, or grows like a decompression bomb."""
    size = 0
    try:
        if kind == "gzip":
            read = gzip.GzipFile(fileobj=source).read1
        else:
            import pyarrow

            read = pyarrow.CompressedInputStream(source, "zstd").read
        while piece := read(BLOCK):
            size += len(piece)
            if size > BOMB_SIZE and size > BOMB_RATIO * source.tell():
                grown = f"over {BOMB_SIZE:,} bytes and {BOMB_RATIO} times its own size, which data does not do"
                fix = "decompress it yourself if that is intended"
                raise DataError(f"{file}: decompresses to {grown}", fix=fix)
            yield piece
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the data's
            raise
        why = f"the {kind} data is damaged or cut off: {error}"
        raise DataError(f"{file}: {why}", fix="fetch or compress the file again") from None


def encoding_of(file: Path) -> str:
    """Name of a file's encoding: utf-8, utf-8-sig (with a mark), utf-16 (with a mark) or gb18030.

    The whole file is decoded, block by block: an encoding is returned only if it can read all of it. A file of
    UTF-8 with some damage stays UTF-8, and the damaged rows are refused one by one.
    """
    with watched(file), open_bytes(file) as stream:
        block = stream.read(BLOCK)
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
            while block:
                decoder.decode(block)
                block = stream.read(BLOCK)
            decoder.decode(b"", final=True)
            return "utf-8"
        except UnicodeDecodeError:
            return _weighed(file)


def _weighed(file: Path) -> str:
    """GB18030, or UTF-8 with some damage? Chinese in one can be read as other Chinese in the other, so count."""
    tries = {name: codecs.getincrementaldecoder(name)("surrogateescape") for name in ("utf-8", "gb18030")}
    good, bad = dict.fromkeys(tries, 0), dict.fromkeys(tries, 0)
    high, line, first = 0, 1, 0
    with open_bytes(file) as stream:
        while block := stream.read(BLOCK):
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


def _open_text(file: Path, encoding: str) -> tuple[io.BufferedReader, str]:
    """The file without its mark, and the codec of its lines. UTF-16 is recoded, to find line ends as bytes."""
    stream = open_bytes(file)
    if encoding == "utf-16":
        return io.BufferedReader(_Pieces(_recoded(stream), stream), BLOCK), "utf-8"
    if encoding == "utf-8-sig":
        stream.read(len(codecs.BOM_UTF8))
    return stream, "gb18030" if encoding == "gb18030" else "utf-8"


def _recoded(stream: io.BufferedReader) -> Iterator[bytes]:
    # Half characters pass through here and are invalid UTF-8 afterwards: the line with one is refused.
    decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")
    while block := stream.read(BLOCK):
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        yield b"\xff"


def lines(file: Path, encoding: str) -> Iterator[tuple[int, str, int, str]]:
    """(number, line with its end, bytes, fault) of each line; with a fault, the line is its readable part."""
    stream, codec = _open_text(file, encoding)
    number = 0
    with stream:
        while raw := stream.readline(LINE_LIMIT + 1):
            number += 1
            if len(raw) > LINE_LIMIT:
                shown, size = raw[:SHOWN], len(raw)
                while raw and not raw.endswith(b"\n"):
                    raw = stream.readline(BLOCK)
                    size += len(raw)
                yield number, shown.decode(codec, "backslashreplace"), size, too_long(size)
                continue
            try:
                yield number, raw.decode(codec), len(raw), ""
            except UnicodeDecodeError as error:
                # UTF-16 was recoded, so its byte positions differ
                place = "" if encoding == "utf-16" else f", the first at byte {error.start + 1} of the line"
                yield number, raw.decode(codec, "backslashreplace"), len(raw), not_text(encoding) + place


def blocks(file: Path, encoding: str) -> Iterator[str]:
    """Blocks of text, for formats without lines; bytes that are not text are lone surrogates in it."""
    stream, codec = _open_text(file, encoding)
    decoder = codecs.getincrementaldecoder(codec)("surrogateescape")
    with stream:
        while block := stream.read(BLOCK):
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)


def not_text(encoding: str) -> str:
    """The reason to refuse a row with bytes that its encoding does not have."""
    return f"holds bytes that are not {encoding.upper().removesuffix('-SIG')}"


def too_long(size: int, unit: str = "bytes") -> str:
    """The reason to refuse a line or row over the limit."""
    return f"is {size:,} {unit} long, over the limit of {LINE_LIMIT:,} for one row"
