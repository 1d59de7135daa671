from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from shop import shop

from headrace.cli.ingest import ingest_command
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.import_log import ImportLog
from headrace.stores.offline import OfflineStore
from headrace.stores.orders import waiting_orders

HEADRACE = [sys.executable, "-P", "-m", "headrace"]
PAYMENTS = shop().source("payments")
START_US = 1_700_000_000_000_000


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A folder with an applied catalog, nothing running but its store."""
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data")
    store = open_store(settings)
    save_catalog(store, settings, shop())
    yield tmp_path
    store.close()
    detach(settings.data_dir)


def start(project: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "HEADRACE_DATA_DIR": str(project / "data"), "HEADRACE_REPO": str(project)}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [*HEADRACE, *arguments],
        cwd=project,
        env=environment,
        text=True,
        start_new_session=True,
        **pipes,  # type: ignore[arg-type]
    )


def run(project: Path, *arguments: str) -> str:
    process = start(project, *arguments)
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    return output


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate(timeout=60)


def write_payments(path: Path, n: int, days: int = 1) -> Path:
    numbers = np.arange(n)
    times = START_US + numbers * (days * 86_400_000_000 // n)
    columns = {
        "id": pa.array(numbers).cast(pa.string()),
        "card_id": pa.array((numbers % 7).astype(str)),
        "shop_id": pa.array(numbers % 3),
        "amount": pa.array(numbers % 5 * 1.0),
        "ts": pa.array(times).cast(pa.timestamp("us")),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table(columns), path)
    return path


def test_an_import_runs_an_archiver_of_its_own_and_a_worker_takes_it_up(project: Path) -> None:
    write_payments(project / "past" / "a.parquet", 1_000)
    (project / "past" / "b.ndjson").write_text('{"id": "x", "ts": "2023-01-01T00:00:00", "amount": 1}\n{"id": 5}\n')
    told = run(project, "ingest", "payments", "--from", "past")
    assert re.search(r"Imported 1,001 events to payments from 2 files, in", told)
    assert re.search(
        r"1 row became dead letters \(headrace dead-letters --source payments\):\n +1  id must be string, got 5", told
    )
    assert "take them up when a worker runs" in told
    worker = start(project, "worker")
    told = run(project, "ingest", "payments", "--from", "past/*")
    stop(worker)
    assert "Imported 0 events to payments from 2 files, 2 of them in before" in told
    assert "The views of payments hold them: " in told
    row = orjson.loads(run(project, "streams", "--json", "--over", "0"))["payments"]
    assert row["head"] == row["applied"] == row["archived"] == {"-1": "2-1"} and row["lag"] == 0


def test_an_import_killed_with_its_archiver_goes_on_where_it_was(project: Path) -> None:
    write_payments(project / "past.parquet", 500_000, days=3)
    offline = OfflineStore(project / "data")
    first = start(project, "ingest", "payments", "--from", "past.parquet", "--no-wait")
    deadline = time.monotonic() + 60
    while not ImportLog(offline, "payments").end().total:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    found = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, check=True, text=True)
    for pid in [int(line) for line in found.stdout.split()]:
        os.kill(pid, signal.SIGKILL)
    first.kill()
    first.communicate()
    before = ImportLog(offline, "payments").end().total
    told = run(project, "ingest", "payments", "--from", "past.parquet", "--no-wait")
    assert "to payments from 1 file" in told
    ids = offline.read_events(PAYMENTS, ["id"], repeats=True)["id"].to_pylist()
    assert len(ids) == len(set(ids)) == 500_000 > before > 0
    assert ImportLog(offline, "payments").end().total == 500_000


def test_an_import_goes_to_the_archiver_that_runs(project: Path) -> None:
    write_payments(project / "past.parquet", 10)
    archiver = start(project, "archive")
    while not (project / "data" / "offline" / "archiver.lock").is_file():
        time.sleep(0.02)
    told = run(project, "ingest", "payments", "--from", "past.parquet", "--no-wait")
    assert archiver.poll() is None and "Imported 10 events" in told
    stop(archiver)


def refusal(project: Path, *arguments: str) -> str:
    """What the command raises before it gives an order."""
    options = ["--repo", str(project), "--data-dir", str(project / "data")]
    return str(CliRunner().invoke(ingest_command, [*arguments, *options]).exception)


def test_what_cannot_be_imported_is_refused_before_anybody_is_asked(project: Path) -> None:
    table = pa.parquet.read_table(write_payments(project / "past.parquet", 10))
    less, wrong = str(project / "less.parquet"), str(project / "wrong.parquet")
    pa.parquet.write_table(table.drop_columns(["amount"]), less)
    pa.parquet.write_table(table.set_column(4, "ts", pa.array(["yesterday"] * 10)), wrong)
    said = refusal(project, "payments", "--from", less)
    assert re.fullmatch(r".*no 'amount' among .*--map amount=COLUMN, or take it as null by --null amount\.", said)
    said = refusal(project, "payments", "--from", wrong)
    assert re.fullmatch(r".*of the first 10 .*ts must be timestamp, got 'yesterday'.*; correct .*", said)
    assert "names none" in refusal(project, "payments", "--from", str(project / "past"))
    assert "NAME=COLUMN" in refusal(project, "payments", "--from", wrong, "--map", "ts")
    assert "There is no source" in refusal(project, "nothing", "--from", wrong)
    with contextlib.closing(open_store(Settings(repo=project, data_dir=project / "data"))) as store:
        assert waiting_orders(store, "shop") == []
