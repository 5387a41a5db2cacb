"""Rows of Parquet files."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.datasets.formats import RowError
from core.datasets.sources import open_source
from core.errors import InvalidDatasetError

__all__ = ["parquet_rows"]

_BATCH_ROWS = 64  # a batch is whole in memory, as Arrow and as Python objects


def parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | RowError]]:
    """Rows from 1. A compressed file is unpacked to disk first, because Parquet is read from its end.

    Raises InvalidDatasetError where the file is damaged.
    """
    number = 0
    with ExitStack() as stack:
        source = path
        with path.open("rb") as file:
            is_plain = file.read(4) == b"PAR1"
        if not is_plain:
            unpacked = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".parquet"))
            with open_source(path) as packed:
                shutil.copyfileobj(packed, unpacked)
            unpacked.flush()
            source = Path(unpacked.name)
        try:
            # Without pre-buffering and threads columns are decoded page by page: memory follows the batch.
            table = stack.enter_context(pq.ParquetFile(source, memory_map=True, pre_buffer=False))
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except UnicodeDecodeError as error:
            raise InvalidDatasetError(
                f"A text column of the Parquet file is not UTF-8, at or after row {number + 1}. Write it as UTF-8.",
                code="not_utf8",
            ) from error
        except (pa.ArrowException, OSError) as error:
            raise InvalidDatasetError(
                f"The Parquet file cannot be read after row {number}: {error}. Write it again and repeat the upload.",
                code="damaged_file",
            ) from error
