"""The rows of files of past events, in chunks of bounded size: Arrow columns or plain values, not yet checked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from headrace.catalog.definitions import Column, Source
from headrace.dtypes import DType, arrow_type
from headrace.errors import DataError
from headrace.moments import EARLIEST_US, LATEST_US
from headrace.stores.import_files import ImportFile, file_columns, open_bytes
from headrace.stores.tables import as_declared

__all__ = ["ImportRows", "csv_cells", "plain_values", "read_chunks"]

CHUNK_ROWS = 200_000
CHUNK_BYTES = 64 << 20
BLOCK_BYTES = 4 << 20
TRUE_WORDS, FALSE_WORDS = ("true", "True", "TRUE", "1", "t"), ("false", "False", "FALSE", "0", "f")

Values = Any
"""A column: an Arrow array, or a list of plain values."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be taken apart: its number in the file, why, and its bytes."""

    number: int
    reason: str
    payload: bytes


@dataclass(slots=True)
class ImportRows:
    """Rows of one file, n of them: `number` is the place of each in the file from 0, rising; `columns` has the
    source's columns that the file has, under the source's names.

    `bad` are rows beside them that are none; `end` is the number after the last row, good or bad; `raw` holds the
    bytes of each row where the file has a row's in one place; `read` says how many of the file's bytes are read.
    """

    number: NDArray[np.int64]
    columns: dict[str, Values]
    end: int
    read: int
    bad: list[BadRow] = field(default_factory=list)
    raw: list[bytes] | None = None
    nbytes: int = 0

    def payload(self, row: int) -> bytes:
        """The row as one line of JSON."""
        if self.raw is not None:
            return self.raw[row]
        values = {name: _one_plain(column, row) for name, column in self.columns.items()}
        return orjson.dumps(values, default=str)


def read_chunks(
    source: Source, file: ImportFile, renamed: Mapping[str, str], skip: int, most_rows: int | None = None
) -> Iterator[ImportRows]:
    """The rows of `file` from number `skip` on, in chunks of about `most_rows` rows (None:
    CHUNK_ROWS) or CHUNK_BYTES.

    `renamed` gives the file's names of columns that are called otherwise there. Raises DataError for a file that is
    not what its kind says.
    """
    most_rows = most_rows or CHUNK_ROWS
    theirs = {column.name: renamed.get(column.name, column.name) for column in source.columns}
    try:
        present = {ours: name for ours, name in theirs.items() if name in file_columns(file)}
        blocks = _READERS[file.kind](source, file, theirs if file.kind == "ndjson" else present, skip, most_rows)
        yield from _with_constants(source, file, theirs, _joined(blocks, most_rows))
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file.path} cannot be read as {file.kind}: {error}.") from None


def _joined(blocks: Iterator[ImportRows], most_rows: int) -> Iterator[ImportRows]:
    """Small blocks put together; a block is never split."""
    held: list[ImportRows] = []
    for block in blocks:
        held.append(block)
        if sum(len(part.number) + len(part.bad) for part in held) >= most_rows or _bytes(held) >= CHUNK_BYTES:
            yield _concat(held)
            held = []
    if held:
        yield _concat(held)


def _bytes(parts: Sequence[ImportRows]) -> int:
    return sum(part.nbytes for part in parts)


def _concat(parts: list[ImportRows]) -> ImportRows:
    if len(parts) == 1:
        return parts[0]
    last = parts[-1]
    columns: dict[str, Values] = {}
    for name in last.columns:
        given = [part.columns[name] for part in parts]
        columns[name] = _chained(given)
    return ImportRows(
        np.concatenate([part.number for part in parts]),
        columns,
        last.end,
        last.read,
        [row for part in parts for row in part.bad],
        None if last.raw is None else [line for part in parts for line in part.raw or []],
        _bytes(parts),
    )


def _chained(parts: Sequence[Values]) -> Values:
    """One column of several of one type; of dictionaries each may have its own."""
    if any(isinstance(part, list) for part in parts):
        return [value for part in parts for value in (part if isinstance(part, list) else plain_values(part))]
    if pa.types.is_dictionary(parts[0].type):
        parts = [part.dictionary_decode() for part in parts]
    return pa.concat_arrays(parts)


def _with_constants(
    source: Source, file: ImportFile, theirs: Mapping[str, str], chunks: Iterator[ImportRows]
) -> Iterator[ImportRows]:
    """The chunks with the columns that stand in the file's folders' names, where the file itself has none."""
    given = dict(file.constants)
    for chunk in chunks:
        for column in source.columns:
            if column.name not in chunk.columns and theirs[column.name] in given:
                text = pa.array([given[theirs[column.name]]], pa.string())
                chunk.columns[column.name] = csv_cells(column, text) * len(chunk.number)
        yield chunk


def _read_parquet(
    source: Source, file: ImportFile, names: Mapping[str, str], skip: int, most_rows: int
) -> Iterator[ImportRows]:
    with pa.parquet.ParquetFile(file.path) as table:
        held = set(table.schema_arrow.names)
        names = {ours: name for ours, name in names.items() if name in held}
        sizes = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        total, size = max(1, sum(sizes)), _size(file)
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        groups = [i for i in range(len(sizes)) if starts[i + 1] > skip]
        at = int(starts[groups[0]]) if groups else total
        for rows in table.iter_batches(most_rows, row_groups=groups, columns=sorted(set(names.values()))):
            first, at = at, at + rows.num_rows
            if at <= skip:
                continue
            rows = rows.slice(max(skip - first, 0))
            columns = {ours: rows.column(name) for ours, name in names.items()}
            number = np.arange(at - rows.num_rows, at)
            yield ImportRows(number, columns, at, size * at // total, nbytes=rows.nbytes)


def _size(file: ImportFile) -> int:
    with open(file.path, "rb") as content:
        return content.seek(0, 2)


def _read_ndjson(
    source: Source, file: ImportFile, names: Mapping[str, str], skip: int, most_rows: int
) -> Iterator[ImportRows]:
    content, raw = open_bytes(file)
    at = 0
    with raw, content:
        while lines := content.readlines(BLOCK_BYTES):
            if not at:
                lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            given = [line.rstrip(b"\r\n") for line in lines if line.strip()]
            first, at = at, at + len(given)
            if at > skip:
                yield _json_rows(given[max(skip - first, 0) :], max(skip, first), names, raw)


def _json_rows(lines: list[bytes], first: int, names: Mapping[str, str], raw: IO[bytes]) -> ImportRows:
    numbers, events, kept, bad = [], [], [], []
    for number, line in enumerate(lines, first):
        event = _loads_or_none(line)
        if type(event) is dict:
            numbers.append(number)
            events.append(event)
            kept.append(line)
        else:
            bad.append(BadRow(number, "not a JSON object", line))
    columns: dict[str, Values] = {ours: [event.get(name) for event in events] for ours, name in names.items()}
    if any(ours != name for ours, name in names.items()):  # what is kept of a bad row has the source's names
        kept = [orjson.dumps({ours: column[i] for ours, column in columns.items()}) for i in range(len(events))]
    nbytes = 4 * sum(map(len, lines))
    return ImportRows(np.array(numbers, np.int64), columns, first + len(lines), raw.tell(), bad, kept, nbytes)


def _loads_or_none(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def _read_csv(
    source: Source, file: ImportFile, names: Mapping[str, str], skip: int, most_rows: int
) -> Iterator[ImportRows]:
    """Rows of another number of cells than the header's are bad; all are numbered in the order of the file."""
    found: dict[int, BadRow] = {}

    def on_invalid(row: Any) -> str:
        reason = f"the row has {row.actual_columns} cells, the header {row.expected_columns}"
        found[row.number - 2] = BadRow(row.number - 2, reason, orjson.dumps({"row": row.text}))
        return "skip"

    content, raw = open_bytes(file)
    at = 0
    with raw, content:
        if _is_blank(content):
            return
        blocks = pa.csv.open_csv(
            content,
            read_options=pa.csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_invalid),
            convert_options=_all_text(names.values()),
        )
        for rows in blocks:
            numbers, at = _number_rows(rows.num_rows, at, found)
            bad = [found.pop(number) for number in sorted(found) if number < at]
            yield _csv_rows(source, names, rows, numbers, at, bad, skip, raw.tell())
        bad = [found[number] for number in sorted(found) if number >= skip]
        if bad:
            nothing = rows.slice(0, 0)
            yield _csv_rows(source, names, nothing, numbers[:0], bad[-1].number + 1, bad, skip, raw.tell())


def _is_blank(content: IO[bytes]) -> bool:
    """Whether nothing at all is in the file, of which Arrow makes an error; goes back to its beginning."""
    blank = not content.read(64).strip()
    content.seek(0)
    return blank


def _all_text(names: Any) -> Any:
    wanted = sorted(set(names))
    return pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in wanted},
        include_columns=wanted,
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )


def _number_rows(n: int, at: int, bad: Mapping[int, BadRow]) -> tuple[NDArray[np.int64], int]:
    """The numbers of the next `n` good rows from `at` on, those of bad rows left out, and the number after them."""
    inside = sorted(number for number in bad if number >= at)
    numbers = np.arange(at, at + n)
    for number in inside:
        numbers[numbers >= number] += 1
    return numbers, int(numbers[-1]) + 1 if n else at


def _csv_rows(
    source: Source,
    names: Mapping[str, str],
    rows: pa.RecordBatch,
    numbers: NDArray[np.int64],
    end: int,
    bad: list[BadRow],
    skip: int,
    read: int,
) -> ImportRows:
    fresh = int(np.searchsorted(numbers, skip))
    rows, numbers = rows.slice(fresh), numbers[fresh:]
    columns: dict[str, Values] = {
        column.name: _csv_column(column, rows.column(names[column.name]))
        for column in source.columns
        if column.name in names
    }
    return ImportRows(numbers, columns, end, read, [row for row in bad if row.number >= skip], nbytes=4 * rows.nbytes)


_READERS = {"parquet": _read_parquet, "csv": _read_csv, "ndjson": _read_ndjson}


def _csv_column(column: Column, text: pa.Array) -> Values:
    """A column of cells in its type where all fit, else as `csv_cells`; timestamps stay text."""
    if column.dtype in (DType.STRING, DType.TIMESTAMP):
        return text
    try:
        return text.cast(arrow_type(column.dtype))
    except pa.ArrowInvalid:
        return csv_cells(column, text)


def csv_cells(column: Column, text: pa.Array) -> list[Any]:
    """The cells of one column in its type, plain; one that does not fit stays text."""
    if column.dtype in (DType.STRING, DType.TIMESTAMP):
        values: list[Any] = text.to_pylist()
        return values
    try:
        return plain_values(text.cast(arrow_type(column.dtype)))
    except pa.ArrowInvalid:
        return [_cell(column.dtype, value) for value in text.to_pylist()]


def _cell(dtype: DType, value: str | None) -> Any:
    if value is None:
        return None
    if dtype is DType.BOOL:
        return True if value in TRUE_WORDS else False if value in FALSE_WORDS else value
    try:
        number = int(value) if dtype.is_integer else float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def plain_values(column: Any) -> list[Any]:
    """Values as JSON holds them: timestamps and dates as text, decimals as floats; an infinity, for which JSON has no
    number, as text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return plain_values(column.dictionary_decode())
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _moments(as_declared(column, DType.TIMESTAMP, "the column"))
    if pa.types.is_time(kind):
        column = column.cast(pa.string())
    elif pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    values: list[Any] = column.to_pylist()
    if pa.types.is_floating(kind) and pc.any(pc.is_inf(column)).as_py():
        return [str(value) if value is not None and math.isinf(value) else value for value in values]
    return values


def _moments(column: pa.Array) -> list[Any]:
    """Timestamps as text; those outside the years 1 to 9999, which no text holds, as what no reader takes for one."""
    texts: list[Any] = column.cast(pa.string()).to_pylist()
    times_us = np.asarray(column.cast(pa.int64()).fill_null(0))
    for row in np.flatnonzero((times_us < EARLIEST_US) | (times_us > LATEST_US)).tolist():
        texts[row] = f"{times_us[row]} us after 1970"
    return texts


def _one_plain(column: Values, row: int) -> Any:
    return column[row] if isinstance(column, list) else plain_values(column.slice(row, 1))[0]
