"""Files of past events: which files a path names, what each is known by, and the columns that it brings."""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from headrace.catalog.definitions import Source
from headrace.errors import DataError
from headrace.stores.tables import as_declared

__all__ = ["ImportFile", "check_columns", "file_columns", "find_files", "fingerprint", "open_bytes"]

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "ndjson",
}
HASH_BYTES = 64 << 20
HEAD_BYTES = 1 << 20
NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class ImportFile:
    """One file of events. kind: `parquet`, `csv`, `ndjson`; CSV and NDJSON may be gzipped (`.gz`).

    `constants` are columns that stand in the names of its folders (`day=2024-05-01`), as text or null.
    """

    path: str
    kind: str
    constants: tuple[tuple[str, str | None], ...] = ()

    def as_plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ImportFile:
        """The inverse of `as_plain`, also after JSON."""
        return cls(plain["path"], plain["kind"], tuple((name, value) for name, value in plain["constants"]))


def find_files(text: str, names: Collection[str], kind: str | None = None) -> list[ImportFile]:
    """The files that `text` names, each once: a file, a folder (with all below it), a Delta table or a glob.

    `kind` states what they are, unset their suffixes do; `names` are the columns that their folders' names may hold.
    Raises DataError where there is none, or one of no known kind.
    """
    path = Path(os.path.abspath(text))
    places = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    found = [
        replace(file, constants=tuple(item for item in _constants(Path(file.path).parent) if item[0] in names))
        for place in places
        for file in (_of_folder(place, kind) if place.is_dir() else [_of_file(place, kind)])
    ]
    if not found:
        raise DataError(
            f"An import reads a file, a folder or a glob of Parquet, CSV or NDJSON files, or a Delta table, {text!r} "
            "names none; correct the path, or say what the files are by --format."
        )
    return list(dict.fromkeys(found))


def _of_file(path: Path, kind: str | None) -> ImportFile:
    known = kind or _kind_of(path)
    if known is None:
        raise DataError(
            f"A file's suffix must be one of {', '.join(SUFFIXES)} (or with .gz), got {path.name!r}; add --format."
        )
    return ImportFile(str(path), known)


def _kind_of(path: Path) -> str | None:
    name = path.name.lower()
    kind = SUFFIXES.get(Path(name.removesuffix(".gz")).suffix)
    return None if kind == "parquet" and name.endswith(".gz") else kind


def _of_folder(folder: Path, kind: str | None) -> list[ImportFile]:
    """The files below a folder, hidden ones and those that begin with `_` left out; a Delta table's are its own."""
    found: list[ImportFile] = []
    for where, folders, names in os.walk(folder):
        if "_delta_log" in folders:
            folders.clear()
            found += _of_delta(Path(where))
            continue
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        for name in sorted(names):
            path = Path(where, name)
            known = kind or _kind_of(path)
            if known is not None and not name.startswith((".", "_")):
                found.append(ImportFile(str(path), known))
    return sorted(found, key=lambda file: file.path)


def _of_delta(folder: Path) -> list[ImportFile]:
    """The files of the newest version of a Delta table."""
    try:
        table = DeltaTable(str(folder))
        features = table.protocol().reader_features or []
        actions = pa.table(table.get_add_actions(flatten=True))
        paths = [folder / unquote(path) for path in actions["path"].to_pylist()]
    except DeltaError as error:
        raise DataError(f"{folder} cannot be read as a Delta table: {error}.") from None
    beyond = {"deletionVectors", "columnMapping"} & set(features)
    if beyond:
        raise DataError(
            f"An import reads the files of a Delta table as they are, {folder} uses {', '.join(sorted(beyond))}; "
            "write its rows to a plain table or to Parquet."
        )
    return [ImportFile(str(path), "parquet") for path in sorted(paths)]


def _constants(folders: Path) -> tuple[tuple[str, str | None], ...]:
    """Columns in the names of folders, as Hive, Spark and Delta write them."""
    parts = [part.partition("=") for part in folders.parts if "=" in part]
    return tuple((unquote(name), None if value == NULL_FOLDER else unquote(value)) for name, _, value in parts)


def open_bytes(file: ImportFile) -> tuple[IO[bytes], IO[bytes]]:
    """The file's content, and the file itself, which says how much of it is read. Close both, the content first."""
    raw = open(file.path, "rb")  # noqa: SIM115
    return (gzip.open(raw, "rb") if file.path.lower().endswith(".gz") else raw), raw  # type: ignore[return-value]


def fingerprint(file: ImportFile) -> Iterator[int | str]:
    """Reads the file in slices: how many bytes each had, at last what the file is known by: its content, wherever it
    lies, and the columns in its folders' names."""
    digest = hashlib.sha256(repr(file.constants).encode() if file.constants else b"")
    with open(file.path, "rb") as content:
        while block := content.read(HASH_BYTES):
            digest.update(block)
            yield len(block)
    yield digest.hexdigest()


def file_columns(file: ImportFile) -> dict[str, pa.DataType | None]:
    """The columns of a file with their types, None where its kind has none (CSV, NDJSON: those of its first rows).

    Raises DataError for a file that is not what its kind says.
    """
    try:
        if file.kind == "parquet":
            schema = pa.parquet.read_schema(file.path)
            found: dict[str, pa.DataType | None] = dict(zip(schema.names, schema.types, strict=True))
        elif file.kind == "csv":
            found = dict.fromkeys(_csv_names(file))
        else:
            found = dict.fromkeys(_ndjson_names(file))
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file.path} cannot be read as {file.kind}: {error}.") from None
    return {**found, **{name: None for name, _ in file.constants if name not in found}}


def _csv_names(file: ImportFile) -> list[str]:
    content, raw = open_bytes(file)
    with raw, content:
        head = content.read(HEAD_BYTES)
    if not head.strip():
        return []
    lines = head.splitlines(keepends=True)
    whole = b"".join(lines[:-1]) if len(head) == HEAD_BYTES and len(lines) > 1 else head
    options = pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda row: "skip")
    names: list[str] = pa.csv.open_csv(pa.BufferReader(whole), parse_options=options).schema.names
    return names


def _ndjson_names(file: ImportFile) -> list[str]:
    content, raw = open_bytes(file)
    names: dict[str, None] = {}
    with raw, content:
        for line in content.readlines(HEAD_BYTES):
            try:
                event = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
            except orjson.JSONDecodeError:
                continue
            names |= dict.fromkeys(event) if isinstance(event, dict) else {}
    return list(names)


def check_columns(
    source: Source, files: Sequence[ImportFile], renamed: Mapping[str, str], absent: Collection[str]
) -> None:
    """Raises DataError for the first of `files` whose columns do not fit those of `source`.

    `renamed` gives the name in the file of a source's column that is called otherwise there, `absent` names columns
    that may be missing. The rows of NDJSON may leave out what is null: it must only have the event time.
    """
    names = [column.name for column in source.columns]
    unknown = [name for name in (*renamed, *absent) if name not in names]
    if unknown:
        raise DataError(
            f"--map and --null name columns of source {source.name!r}, {unknown[0]!r} is none; "
            f"it has: {', '.join(names)}."
        )
    added = {name for name, _ in source.added}
    for file in files:
        _check_file(source, file, file_columns(file), renamed, {*absent, *added})


def _check_file(
    source: Source,
    file: ImportFile,
    found: Mapping[str, pa.DataType | None],
    renamed: Mapping[str, str],
    absent: Collection[str],
) -> None:
    if not found and file.kind != "parquet":
        return  # an empty file
    for column in source.columns:
        theirs = renamed.get(column.name, column.name)
        optional = column.name in absent or file.kind == "ndjson"
        if theirs not in found:
            if column.name == source.timestamp or not optional or column.name in renamed:
                raise DataError(_missing(source, file, column.name, theirs, list(found)))
            continue
        kind = found[theirs]
        if kind is not None:
            as_declared(pa.array([], kind), column.dtype, f"Column {theirs!r} of {file.path}")


def _missing(source: Source, file: ImportFile, name: str, theirs: str, found: Sequence[str]) -> str:
    remedy = f"name the column that holds it by --map {name}=COLUMN"
    if name != source.timestamp:
        remedy += f", or take it as null by --null {name}"
    shown = ", ".join(found) or "none"
    what = "its event time" if name == source.timestamp else "every column of its source"
    return f"A file for {source.name!r} must have {what}, {file.path} has no {theirs!r} among {shown}; {remedy}."
