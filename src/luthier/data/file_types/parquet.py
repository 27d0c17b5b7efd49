"""Parquet: tables by columns, compressed inside."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from luthier.data.file_types.arrow import AT_ONCE, Arrow


class Parquet(Arrow):
    """Tables stored by columns, read a few hundred rows at a time."""

    def batches(self, file: Path, stream: BinaryIO) -> tuple[list[str], Iterable[Any], int | None]:
        """Columns are read in pieces, not whole row groups; truncating a memory-mapped file would crash the process."""
        import pyarrow.parquet

        options = {"buffer_size": 2**20, "pre_buffer": False, "page_checksum_verification": True}
        table = pyarrow.parquet.ParquetFile(stream, **options)
        batches = table.iter_batches(batch_size=AT_ONCE, use_threads=False)
        return table.schema_arrow.names, batches, table.metadata.num_rows
