from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shop import now, shop

from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach, is_running

HEADRACE = [sys.executable, "-P", "-m", "headrace"]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A folder with an applied catalog in `the data`, nothing running."""
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "the data")
    with open_store(settings) as store:
        save_catalog(store, settings, shop())
    detach(settings.data_dir)
    yield tmp_path
    deadline = time.monotonic() + 10
    while is_running(settings.data_dir):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start(project: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "HEADRACE_DATA_DIR": str(project / "the data"), "HEADRACE_REPO": str(project)}
    return subprocess.Popen(
        [*HEADRACE, *arguments],
        cwd=project,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(project: Path, *arguments: str, code: int = 0) -> str:
    process = start(project, *arguments)
    output, errors = process.communicate(timeout=90)
    assert process.returncode == code, errors
    return output if code == 0 else errors


def wait_for(process: subprocess.Popen[str], pattern: str) -> str:
    """The first group of the first line of output that matches."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(pattern, line):
            return found.group(1)
    raise AssertionError(process.communicate())


def streams(project: Path) -> dict[str, Any]:
    held: dict[str, Any] = orjson.loads(run(project, "streams", "--json"))
    return held


def test_up_runs_everything_and_ctrl_c_stops_it_with_nothing_lost(project: Path) -> None:
    up = start(project, "up", "--port", "0")
    url = wait_for(up, r"ready: (\S+)")
    rows = [orjson.dumps({"id": str(i), "card_id": "a", "amount": 1, "ts": now(-5)}) for i in range(500)]
    headers = {"content-type": "application/x-ndjson"}
    request = urllib.request.Request(f"{url}/push?source=payments", b"\n".join(rows), headers)
    with urllib.request.urlopen(request) as reply:
        assert orjson.loads(reply.read())["accepted"] == 500
    os.killpg(up.pid, signal.SIGINT)
    output, _ = up.communicate(timeout=60)
    assert up.returncode == 0, output
    assert "nothing is left running" in output
    assert "Traceback" not in output
    assert streams(project)["payments"]["head"] != {}


def test_up_stops_everything_when_one_process_dies(project: Path) -> None:
    up = start(project, "up", "--port", "0")
    wait_for(up, r"ready: (\S+)")
    children = subprocess.run(["pgrep", "-P", str(up.pid), "-f", "headrace worker"], capture_output=True, check=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    output, _ = up.communicate(timeout=60)
    assert up.returncode == 1
    assert "worker ended by itself with code -9" in output


def test_children_end_when_up_is_killed(project: Path) -> None:
    up = start(project, "up", "--port", "0")
    url = wait_for(up, r"ready: (\S+)")
    up.kill()
    deadline = time.monotonic() + 20
    while is_running(project / "the data"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=2)
    up.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_alone_prints_one_line_and_ends_well(project: Path, number: signal.Signals) -> None:
    server = start(project, "serve", "--port", "0")
    url = wait_for(server, r"listens on (\S+)")
    with urllib.request.urlopen(f"{url}/health") as reply:
        assert reply.status == 200
    server.send_signal(number)
    output, errors = server.communicate(timeout=30)
    assert (server.returncode, output) == (0, "")
    assert errors.count("\n") == 1 and "no API keys" in errors  # said, whoever reaches it may read and write


def test_a_taken_port_is_one_line_and_exit_code_1(project: Path) -> None:
    server = start(project, "serve", "--port", "0")
    port = wait_for(server, r"listens on http://127.0.0.1:(\d+)")
    errors = run(project, "serve", "--port", port, code=1)
    assert re.fullmatch(rf"Error: .*127\.0\.0\.1:{port} cannot be had.*\n", errors)
    server.terminate()
    server.communicate(timeout=30)


def test_files_of_every_kind_are_pushed_and_bad_cells_go_on_as_they_are(project: Path) -> None:
    moment = now(-5)
    (project / "a.ndjson").write_text(f'{{"id":"1","card_id":"a","amount":1,"ts":"{moment}"}}\n\nnonsense\n')
    (project / "b.csv").write_text(f"id,card_id,shop_id,amount,ts,more\n2,007,1,2.5,{moment},x\n3,,x,inf,{moment},\n")
    table = pa.table({"id": ["4"], "card_id": ["a"], "shop_id": [1.0], "amount": [None], "other": [1]})
    table = table.append_column("ts", pa.array([1], pa.timestamp("ns")))
    pq.write_table(table, project / "c.parquet")
    for name, count in [("a.ndjson", 2), ("b.csv", 2), ("c.parquet", 1)]:
        assert f"Pushed {count} event" in run(project, "push", "payments", name)
    with open_store(Settings(data_dir=project / "the data")) as store:
        entries = store.xrange("headrace.stream:shop:payments:0")
    detach(project / "the data")
    payloads = [fields[b"payload"] for _, fields in entries]
    assert payloads[0].endswith(b"nonsense")
    assert orjson.loads(payloads[1]) == {
        "id": ["2", "3"],
        "card_id": ["007", None],
        "shop_id": [1, "x"],
        "amount": [2.5, "inf"],
        "ts": [moment, moment],
    }
    assert orjson.loads(payloads[2])["ts"] == ["1970-01-01 00:00:00.000000Z"]


def test_a_push_that_cannot_work_is_one_line(project: Path) -> None:
    (project / "x.csv").write_text("id\n1\n")
    (project / "x.txt").write_text("")
    (project / "x.parquet").write_text("no")
    assert "event time in 'ts'" in run(project, "push", "payments", "x.csv", code=1)
    assert "add --format" in run(project, "push", "payments", "x.txt", code=1)
    assert "cannot be read as parquet" in run(project, "push", "payments", "x.parquet", code=1)
    assert "no source 'nope'" in run(project, "push", "nope", "x.csv", code=1)
