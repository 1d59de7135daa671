from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from deltalake import write_deltalake

from headrace.catalog.definitions import Column, DType, Source
from headrace.errors import DataError
from headrace.stores import import_rows
from headrace.stores.import_files import ImportFile, check_columns, file_columns, find_files, fingerprint
from headrace.stores.import_rows import read_chunks

TRIPS = Source(
    "trips",
    (
        Column("id", DType.STRING),
        Column("city", DType.STRING),
        Column("km", DType.FLOAT64),
        Column("n", DType.INT64),
        Column("ts", DType.TIMESTAMP),
    ),
    "ts",
    event_id="id",
    added=(("n", 2),),
)
NAMES = [column.name for column in TRIPS.columns]
LINE = '{{"id": "{0}", "km": {0}, "ts": "2024-05-01T00:00:00Z"}}'


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def paths(text: str, **named: Any) -> list[str]:
    return [os.path.basename(file.path) for file in find_files(text, NAMES, **named)]


def test_a_path_names_a_file_a_folder_a_glob_or_a_delta_table(tmp_path: Path) -> None:
    for name in ("b.csv", "a/x.parquet", "a/y.ndjson.gz", "a/_SUCCESS", "a/.part.csv", "_tmp/z.csv", "notes.txt"):
        touch(tmp_path / name)
    assert paths(str(tmp_path)) == ["x.parquet", "y.ndjson.gz", "b.csv"]
    assert paths(str(tmp_path / "*" / "*.parquet")) == ["x.parquet"]
    assert paths(str(tmp_path / "notes.txt"), kind="csv") == ["notes.txt"]
    write_deltalake(str(tmp_path / "d"), pa.table({"id": ["1"]}))
    write_deltalake(str(tmp_path / "d"), pa.table({"id": ["2"]}), mode="overwrite")
    (kept,) = find_files(str(tmp_path / "d"), NAMES)
    assert pa.parquet.read_table(kept.path)["id"].to_pylist() == ["2"], "files that left the table are no rows of it"
    with pytest.raises(DataError, match="names none; correct the path"):
        find_files(str(tmp_path / "missing*"), NAMES)
    with pytest.raises(DataError, match=r"add --format"):
        find_files(str(tmp_path / "notes.txt"), NAMES)


def test_columns_stand_in_the_names_of_folders_where_the_source_has_them(tmp_path: Path) -> None:
    rows = pa.table({"id": ["1", "2"], "city": ["a b", None], "x": [1, 1]})
    write_deltalake(str(tmp_path), rows, partition_by=["city", "x"])
    files = find_files(str(tmp_path), NAMES)
    assert {file.constants for file in files} == {(("city", "a b"),), (("city", None),)}
    found = [next(read_chunks(TRIPS, file, {}, 0)).columns for file in files]
    assert sorted((c["id"][0].as_py(), c["city"]) for c in found) == [("1", ["a b"]), ("2", [None])]


def test_a_file_is_known_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    files = [touch(tmp_path / name, text) for name, text in (("a.csv", "1"), ("b.csv", "1"), ("c.csv", "2"))]
    digests = [list(fingerprint(ImportFile(str(path), "csv")))[-1] for path in files]
    assert digests[0] == digests[1] != digests[2]
    moved = ImportFile(str(files[0]), "csv", (("city", "a"),))
    assert list(fingerprint(moved))[-1] != digests[0]


def as_csv(path: Path, bad: tuple[int, ...]) -> ImportFile:
    rows = ["id,km,ts,note", *(f'"{n}",{n},2024-05-01T00:00:00Z,"two\nlines"' for n in range(50))]
    for at in bad:
        rows.insert(at + 1, "only,two")
    path.write_text("\n".join(rows) + "\n")
    return ImportFile(str(path), "csv")


def as_ndjson(path: Path, bad: tuple[int, ...]) -> ImportFile:
    rows = [LINE.format(n) for n in range(50)]
    for at in bad:
        rows.insert(at, "{broken")
    path.write_text("\ufeff" + "\n\n".join(rows))
    return ImportFile(str(path), "ndjson")


def as_zipped(path: Path, bad: tuple[int, ...]) -> ImportFile:
    plain = as_ndjson(path, bad)
    Path(f"{path}.gz").write_bytes(gzip.compress(Path(plain.path).read_bytes()))
    return ImportFile(f"{path}.gz", "ndjson")


def as_parquet(path: Path, bad: tuple[int, ...]) -> ImportFile:
    ids = [str(n) for n in range(50)]
    for at in bad:
        ids.insert(at, "bad")
    pa.parquet.write_table(pa.table({"id": pa.array(ids).dictionary_encode()}), path, row_group_size=8)
    return ImportFile(str(path), "parquet")


@pytest.mark.parametrize("bad", [(), (0,), (52,), (3, 4, 30, 51)])
@pytest.mark.parametrize("write", [as_csv, as_ndjson, as_zipped, as_parquet])
def test_every_row_comes_once_wherever_reading_stops_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, bad: tuple[int, ...]
) -> None:
    monkeypatch.setattr(import_rows, "BLOCK_BYTES", 200)
    bad = tuple(min(at, 50 + i) for i, at in enumerate(bad))
    file = write(tmp_path / "rows", bad)
    whole = list(read_chunks(TRIPS, file, {}, 0, 7))
    assert len(whole) > 3 and whole[-1].end == 50 + len(bad)
    for skip in [0, *(chunk.end for chunk in whole), 1, 31]:
        found: dict[int, str | None] = {}
        for chunk in read_chunks(TRIPS, file, {}, skip, 9):
            ids = [str(value) for value in chunk.columns["id"]]
            rows = [*zip(chunk.number.tolist(), ids, strict=True), *((row.number, None) for row in chunk.bad)]
            assert all(number < chunk.end for number, _ in rows) and not found.keys() & dict(rows).keys()
            found |= dict(rows)
        expected: list[str | None] = [str(n) for n in range(50)]
        for at in bad:
            expected.insert(at, "bad" if write is as_parquet else None)
        assert found == {number: value for number, value in enumerate(expected) if number >= skip}


def test_columns_that_do_not_fit_are_refused_with_the_remedy(tmp_path: Path) -> None:
    def check(name: str, columns: dict[str, Any], **named: Any) -> None:
        path = tmp_path / name
        if name.endswith("parquet"):
            pa.parquet.write_table(pa.table(columns), path)
        else:
            path.write_text(",".join(columns) + "\n")
        check_columns(TRIPS, find_files(str(path), NAMES), named.get("renamed", {}), named.get("absent", ()))

    ts = pa.array([0], pa.timestamp("ms"))
    good = {"id": ["1"], "city": ["a"], "km": pa.array([1], pa.int32()), "ts": ts}
    check("good.parquet", good)  # n was added later: older files lack it
    check("good.csv", good)
    with pytest.raises(DataError, match=r"every column of its source.* no 'km'.*--map km=COLUMN.*--null km"):
        check("no_km.csv", {"id": 0, "city": 0, "ts": 0})
    check("no_km.csv", {"id": 0, "city": 0, "ts": 0}, absent=("km",))
    check("miles.csv", {"id": 0, "city": 0, "miles": 0, "ts": 0}, renamed={"km": "miles"})
    with pytest.raises(DataError, match=r"event time.* no 'ts' among id, city, km; .*--map ts=COLUMN\.$"):
        check("no_ts.csv", {"id": 0, "city": 0, "km": 0}, absent=("ts",))
    with pytest.raises(DataError, match=r"Column 'km' .* must be float64, got string; convert the column"):
        check("text.parquet", {**good, "km": ["far"]})
    with pytest.raises(DataError, match=r"'speed' is none; it has: id, city"):
        check("good.csv", good, absent=("speed",))
    touch(tmp_path / "x.ndjson", LINE.format(1).replace("ts", "at"))
    with pytest.raises(DataError, match="must have its event time"):
        check_columns(TRIPS, find_files(str(tmp_path / "x.ndjson"), NAMES), {}, ())
    touch(tmp_path / "broken.parquet", "no parquet")
    with pytest.raises(DataError, match=r"cannot be read as parquet"):
        file_columns(ImportFile(str(tmp_path / "broken.parquet"), "parquet"))
