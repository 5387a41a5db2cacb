"""Rows of Parquet files, as they were before they were put into columns.

A struct has all of its fields in every row, so a table of tool calls with different arguments is full of nulls that
nobody wrote. Whether a null was written cannot be told from Parquet: every null field of a struct is taken as absent.
Nulls in maps, in lists, in columns of their own and in JSON text stay.
"""

import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.datasets.parquet_sizes import (
    BATCH_BYTES,
    check_sizes,
    decoded_limit,
    dictionary_columns,
    row_bytes,
    rows_at_once,
)
from core.datasets.repeated_keys import TWICE_FIX, said_twice
from core.datasets.row_errors import RowError
from core.datasets.sources import MAX_ROW_BYTES, open_source
from core.errors import InvalidDatasetError
from core.scratch import PREFIX

__all__ = ["parquet_rows"]

Clean = Callable[[Any], Any]


def parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | RowError]]:
    """Rows from 1, or what is wrong with that row. A compressed file is unpacked to disk: Parquet is read from its end.

    Raises InvalidDatasetError where the file is damaged, or larger than a file may be.
    """
    number = 0
    with ExitStack() as stack:
        source = path
        with path.open("rb") as file:
            is_plain = file.read(4) == b"PAR1"
        if not is_plain:
            unpacked = stack.enter_context(tempfile.NamedTemporaryFile(prefix=PREFIX, suffix=".parquet"))
            with open_source(path) as packed:
                shutil.copyfileobj(packed, unpacked)
            unpacked.flush()
            source = Path(unpacked.name)
        try:
            decoded_bytes, limit = 0, decoded_limit(source.stat().st_size)
            for batch in _batches(source):
                sizes = row_bytes(batch)
                decoded_bytes += sum(size for size in sizes if size <= MAX_ROW_BYTES)
                if decoded_bytes > limit:
                    raise _too_much(number, limit)
                for row in _rows(batch, sizes, number):
                    number += 1
                    yield number, row
        except UnicodeDecodeError as error:
            raise InvalidDatasetError(
                f"A text column of the Parquet file is not UTF-8, at or after row {number + 1}. Write it as UTF-8.",
                code="not_utf8",
            ) from error
        except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            raise InvalidDatasetError(
                f"The Parquet file cannot be read after row {number}: {str(error)[:300]}. Write it again and repeat "
                "the upload.",
                code="damaged_file",
            ) from error


def _batches(source: Path) -> Iterator[pa.RecordBatch]:
    """Batches of rows, their texts as places in dictionaries where they are stored so."""
    with pq.ParquetFile(source, memory_map=True, pre_buffer=False) as file:
        metadata = file.metadata
    check_sizes(metadata, source.stat().st_size)
    # Without pre-buffering and threads columns are decoded page by page: memory follows the batch.
    with pq.ParquetFile(
        source, memory_map=True, pre_buffer=False, read_dictionary=dictionary_columns(metadata)
    ) as file:
        for index in range(metadata.num_row_groups):
            rows = rows_at_once(metadata.row_group(index), file.schema)
            yield from file.iter_batches(batch_size=rows, row_groups=[index], use_threads=False)


def _rows(batch: pa.RecordBatch, sizes: list[int], before: int) -> Iterator[Mapping[str, Any] | RowError]:
    names = _unique(batch.schema.names)
    cleans = [_cleaner(column.type) for column in batch.columns]
    step = len(sizes) if sum(sizes) <= BATCH_BYTES and max(sizes, default=0) <= MAX_ROW_BYTES else 1
    for start in range(0, len(sizes), max(1, step)):
        if sizes[start] > MAX_ROW_BYTES:
            yield _too_large(before + start + 1, sizes[start])
            continue
        columns = [
            _values(column.slice(start, step), clean) for column, clean in zip(batch.columns, cleans, strict=True)
        ]
        for index, values in enumerate(zip(*columns, strict=True), start=before + start + 1):
            repeated = next((value for value in values if isinstance(value, _RepeatedKeyError)), None)
            if repeated is not None:
                yield RowError(index, f"a map {said_twice(str(repeated))}", None, TWICE_FIX)
            else:
                yield dict(zip(names, values, strict=True))


def _too_much(number: int, limit: int) -> InvalidDatasetError:
    return InvalidDatasetError(
        f"The rows of the Parquet file take more than {limit:,} bytes once they are decoded, from row {number + 1} or "
        "soon after. Write it in smaller parts.",
        code="file_too_large",
    )


def _too_large(number: int, size: int) -> RowError:
    problem = f"it takes about {size:,} bytes, and {MAX_ROW_BYTES:,} are the most."
    return RowError(number, problem, None, "Split it.", code="row_too_large")


def _values(column: pa.Array, clean: Clean | None) -> list[Any]:
    values: list[Any] = column.to_pylist()
    return values if clean is None else [value if value is None else _cleaned(value, clean) for value in values]


class _RepeatedKeyError(Exception):
    """Raised when a map has a key twice."""


def _cleaned(value: Any, clean: Clean) -> Any:
    try:
        return clean(value)
    except _RepeatedKeyError as error:
        return error


def _unique(names: list[str]) -> list[str]:
    found: dict[str, None] = {}
    counts: Counter[str] = Counter()
    for wanted in names:
        name = wanted
        while name in found:
            counts[wanted] += 1
            name = f"{wanted}_{counts[wanted] + 1}"
        found[name] = None
    return list(found)


def _cleaner(kind: pa.DataType) -> Clean | None:
    """What makes a value of Arrow's what it was: without added nulls, short floats with their own digits."""
    if isinstance(kind, pa.ExtensionType):
        kind = kind.storage_type
    if pa.types.is_float32(kind):
        return _shortest
    if pa.types.is_struct(kind):
        return _struct_cleaner(kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        item = _cleaner(kind.value_type)
        return None if item is None else _list_cleaner(item)
    if pa.types.is_map(kind):
        return _map_cleaner(_cleaner(kind.item_type) or _same)
    return None


def _struct_cleaner(kind: pa.StructType) -> Clean:
    cleans = [(field.name, _cleaner(field.type) or _same) for field in kind]
    return lambda value: {name: clean(value[name]) for name, clean in cleans if value[name] is not None}


def _list_cleaner(item: Clean) -> Clean:
    return lambda value: [_kept(item, inner) for inner in value]


def _map_cleaner(item: Clean) -> Clean:
    def clean(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for name, inner in pairs:
            if name in found:
                raise _RepeatedKeyError(name)
            found[name] = _kept(item, inner)
        return found

    return clean


def _kept(clean: Clean, value: Any) -> Any:
    return None if value is None else clean(value)


def _same(value: Any) -> Any:
    return value


def _shortest(value: float) -> float:
    """The float with the fewest digits that is the same in 32 bits: 0.1, not 0.10000000149011612."""
    for digits in range(6, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("f", short) == struct.pack("f", value):
            return short
    return value
