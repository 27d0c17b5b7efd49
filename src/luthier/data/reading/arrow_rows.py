"""Rows of parquet and arrow files, a few hundred at a time."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError
from luthier.data.reading.rows import RawRow

AT_ONCE = 512  # rows that are in memory as Python objects


def read_parquet(file: Path) -> Iterator[RawRow]:
    """Rows of a parquet file, a few hundred at a time."""
    import pyarrow
    import pyarrow.parquet

    # Columns are read in pieces, not whole row groups. No memory map: truncating the file would crash the process.
    options = {"buffer_size": 2**20, "pre_buffer": False, "page_checksum_verification": True}
    with file.open("rb") as stream:
        try:
            with pyarrow.parquet.ParquetFile(stream, **options) as table:
                batches = table.iter_batches(batch_size=AT_ONCE, use_threads=False)
                yield from _table_rows(file, table.schema_arrow.names, batches, table.metadata.num_rows)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{file}: invalid parquet file: {_first(error)}", fix="write the file again") from None


def read_arrow(file: Path) -> Iterator[RawRow]:
    """Rows of an arrow file: the file layout (feather too) or the stream layout, which `datasets` writes."""
    import pyarrow
    import pyarrow.ipc

    with file.open("rb") as stream:
        head = stream.read(6)
        stream.seek(0)
        if head.startswith(b"FEA1"):
            raise DataError(f"{file}: feather version 1 is not supported", fix="write it as feather 2 or parquet")
        try:
            if head == b"ARROW1":
                table = pyarrow.ipc.open_file(stream)
                batches = (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                table = batches = pyarrow.ipc.open_stream(stream)
            yield from _table_rows(file, table.schema.names, batches)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{file}: invalid arrow file: {_first(error)}", fix="write the file again") from None


def _first(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _table_rows(file: Path, names: list[str], batches: Iterable[Any], expected: int | None = None) -> Iterator[RawRow]:
    import pyarrow

    if len(set(names)) != len(names):
        raise DataError(f"{file}: two columns have the same name", fix="name each column once")
    number = 0
    for batch in batches:
        batch.validate(full=True)  # a damaged one could otherwise crash the process
        for start in range(0, batch.num_rows, AT_ONCE):
            part = batch.slice(start, AT_ONCE)
            try:
                rows = [RawRow("", row) for row in part.to_pylist()]
            except (pyarrow.ArrowException, ValueError, OverflowError):  # one bad cell must not lose the other rows
                rows = [_table_row(part.slice(i, 1)) for i in range(part.num_rows)]
            for row in rows:
                number += 1
                yield RawRow(f"{file}: row {number}", row.values, row.problem)
    if expected is not None and number != expected:
        raise DataError(f"{file}: should have {expected} rows and has {number}", fix="write the file again")


def _table_row(one: Any) -> RawRow:
    import pyarrow

    try:
        return RawRow("", one.to_pylist()[0])
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        return RawRow("", {"raw": "a row of a table"}, f"has a cell that cannot be read: {_first(error)}")
