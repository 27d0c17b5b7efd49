"""Arrow: files and streams of record batches, as datasets keeps them."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from luthier.core.errors import DataError, first_line
from luthier.data.file_types.base import FileType, RawRow

AT_ONCE = 512  # rows that are in memory as Python objects


class Arrow(FileType):
    """Record batches in the file layout (feather too) or in the stream layout, which the datasets library writes."""

    text: ClassVar[bool] = False

    def rows(self, file: Path, columns: Sequence[str]) -> Iterator[RawRow]:
        import pyarrow

        number = 0
        with file.open("rb") as stream:
            try:
                names, batches, expected = self.batches(file, stream)
                if len(set(names)) != len(names):
                    raise DataError(f"{file}: two columns have the same name", fix="name each column once")
                for batch in batches:
                    batch.validate(full=True)  # a damaged one could otherwise crash the process
                    for start in range(0, batch.num_rows, AT_ONCE):
                        for values, problem in _rows(batch.slice(start, AT_ONCE)):
                            number += 1
                            yield RawRow(f"{file}: row {number}", values, problem)
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                why = f"{file}: invalid {self.name} file: {first_line(error)}"
                raise DataError(why, fix="write the file again") from None
        if expected is not None and number != expected:
            raise DataError(f"{file}: should have {expected} rows and has {number}", fix="write the file again")

    def batches(self, file: Path, stream: BinaryIO) -> tuple[list[str], Iterable[Any], int | None]:
        """Names of the columns, the record batches, and how many rows they should have in all, where that is known."""
        import pyarrow.ipc

        head = stream.read(6)
        stream.seek(0)
        if head.startswith(b"FEA1"):
            raise DataError(f"{file}: feather version 1 is not supported", fix="write it as feather 2 or parquet")
        if head != b"ARROW1":
            table = pyarrow.ipc.open_stream(stream)
            return table.schema.names, table, None
        table = pyarrow.ipc.open_file(stream)
        return table.schema.names, (table.get_batch(i) for i in range(table.num_record_batches)), None


def _rows(batch: Any) -> list[tuple[dict[str, Any], str]]:
    """The rows of a batch as Python objects, each with its problem; one bad cell must not lose the other rows."""
    import pyarrow

    try:
        return [(row, "") for row in batch.to_pylist()]
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [({"raw": "a row of a table"}, f"has a cell that cannot be read: {first_line(error)}")]
        return [_rows(batch.slice(i, 1))[0] for i in range(batch.num_rows)]
