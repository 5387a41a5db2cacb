"""How large a Parquet file is once it is decoded, before anything of it is.

A file of a few kilobytes can hold gigabytes: a dictionary's one long text, named by a million rows. First comes what
the file says of itself; then, with texts still as places in their dictionaries, what each row would take.
"""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.datasets.sources import MAX_EXPANSION, unpacked_limit
from core.errors import InvalidDatasetError

__all__ = ["BATCH_BYTES", "check_sizes", "decoded_limit", "dictionary_columns", "row_bytes", "rows_at_once"]

BATCH_ROWS = 64
BATCH_BYTES = 32 * 1024**2  # a batch is whole in memory, as Arrow and as Python objects
MIN_DECODED_BYTES = 512 * 1024**2  # that any file's rows may take, one after the other
MAX_ROWS_PER_BYTE = 100  # of the file, and a million in any
MAX_LEAVES = 4096
MAX_DELTA_BYTES = 128 * 1024**2  # that a column in a row group may hold where values repeat one another's beginning
MAX_VALUES_PER_ROW = 250_000  # on average within a row group
CHECKED_CHUNK_BYTES = 32 * 1024**2  # of a column in a row group; above this it may not be packed more than 100 to 1
_OBJECT_BYTES = 64  # of a list, a struct or a number in Python


def check_sizes(metadata: pq.FileMetaData, file_bytes: int) -> None:
    """Refuse what the file says of itself to be too much. Raises InvalidDatasetError."""
    problem = ""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    unpacked_bytes, limit = sum(group.total_byte_size for group in groups), unpacked_limit(file_bytes)
    if metadata.num_columns > MAX_LEAVES:
        problem = f"has {metadata.num_columns:,} columns, and {MAX_LEAVES:,} are the most"
    elif metadata.num_rows > max(1_000_000, MAX_ROWS_PER_BYTE * file_bytes):
        problem = f"has {metadata.num_rows:,} rows in {file_bytes:,} bytes"
    elif unpacked_bytes > limit:
        problem = f"unpacks to {unpacked_bytes:,} bytes, and {limit:,} are the most for a file of its size"
    for index, group in enumerate(groups):
        for number in range(group.num_columns):
            problem = problem or _chunk_problem(group.column(number), group.num_rows, index)
    if problem:
        raise InvalidDatasetError(
            f"The Parquet file {problem}. Write it in smaller parts, or as JSON Lines.", code="file_too_large"
        )


def _chunk_problem(column: pq.ColumnChunkMetaData, rows: int, group: int) -> str:
    where = f"column {column.path_in_schema[:60]!r} of row group {group}"
    size, packed = column.total_uncompressed_size, column.total_compressed_size
    if size > max(CHECKED_CHUNK_BYTES, MAX_EXPANSION * packed):
        return f"packs {size:,} bytes into {packed:,}, more than {MAX_EXPANSION} to 1, in {where}"
    if "DELTA_BYTE_ARRAY" in column.encodings and column.num_values * size > MAX_DELTA_BYTES:
        # Each value may repeat all of the one before it, and a page of them is decoded at once.
        return f"may hold up to {column.num_values * size:,} bytes in the encoding DELTA_BYTE_ARRAY, in {where}"
    if column.num_values > MAX_VALUES_PER_ROW * max(1, rows):
        return f"has {column.num_values:,} values in {rows:,} rows, in {where}"
    return ""


def decoded_limit(file_bytes: int) -> int:
    """How much all rows of a file may take together: a text counts as often as it is named."""
    return max(MIN_DECODED_BYTES, unpacked_limit(file_bytes))


def dictionary_columns(metadata: pq.FileMetaData) -> list[str]:
    """The paths of texts that are stored as places in a dictionary somewhere in the file."""
    columns = (
        metadata.row_group(group).column(number)
        for group in range(metadata.num_row_groups)
        for number in range(metadata.num_columns)
    )
    return sorted(
        {
            column.path_in_schema
            for column in columns
            if column.physical_type == "BYTE_ARRAY" and any("DICTIONARY" in name for name in column.encodings)
        }
    )


def rows_at_once(group: pq.RowGroupMetaData, schema: pq.ParquetSchema) -> int:
    """How many rows of a group to decode at once, by what each may take once it is decoded."""
    per_row = 0
    for index in range(group.num_columns):
        column = group.column(index)
        values = -(-column.num_values // max(1, group.num_rows))
        per_row += column.total_uncompressed_size // max(1, group.num_rows)
        if column.physical_type == "FIXED_LEN_BYTE_ARRAY":
            per_row += values * max(0, schema.column(index).length)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, per_row)))


def row_bytes(batch: pa.RecordBatch) -> list[int]:
    """What each row of a batch would take as Python objects, about."""
    total = pa.array([0] * batch.num_rows, pa.int64())
    for column in batch.columns:
        total = pc.add(total, _sizes(column))
    sizes: list[int] = total.to_pylist()
    return sizes


def _sizes(array: pa.Array) -> pa.Array:
    """The bytes of each value of an array, those of what it holds included."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if pa.types.is_dictionary(kind):
        if not len(array.dictionary):
            return _constant(len(array), 0)
        return pc.fill_null(_sizes(array.dictionary).take(array.indices), 0)
    if pa.types.is_struct(kind):
        total = _constant(len(array), _OBJECT_BYTES)
        for child in array.flatten():
            total = pc.add(total, _sizes(child))
        return total
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        lengths = _lengths(array)
        inside = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(_sizes(_children(array)))])
        ends = pc.cumulative_sum(lengths)
        within = pc.subtract(inside.take(ends), inside.take(pc.subtract(ends, lengths)))
        return pc.add(within, pc.multiply(lengths, 8))
    if pa.types.is_fixed_size_list(kind):
        return _constant(len(array), kind.list_size * _OBJECT_BYTES)
    if pa.types.is_fixed_size_binary(kind):
        return _constant(len(array), kind.byte_width)
    if any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)):
        return pc.fill_null(pc.binary_length(array), 0).cast(pa.int64())
    if pa.types.is_large_binary(kind):
        return pc.fill_null(pc.binary_length(array), 0)
    return _constant(len(array), _OBJECT_BYTES // 2)


def _lengths(array: pa.Array) -> pa.Array:
    """How many values each list of an array holds."""
    if not pa.types.is_map(array.type):
        return pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
    offsets = array.offsets.cast(pa.int64())
    return pc.subtract(offsets.slice(1, len(array)), offsets.slice(0, len(array)))


def _children(array: pa.Array) -> pa.Array:
    """What the lists of an array hold, one after the other."""
    if not pa.types.is_map(array.type):
        return array.flatten()
    offsets = array.offsets
    first, last = offsets[0].as_py(), offsets[len(array)].as_py()
    fields = [array.keys.slice(first, last - first), array.items.slice(first, last - first)]
    return pa.StructArray.from_arrays(fields, names=["key", "value"])


def _constant(length: int, value: int) -> pa.Array:
    return pa.array([value], pa.int64()).take(pa.array([0] * length, pa.int32()))
