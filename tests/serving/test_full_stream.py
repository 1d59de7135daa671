"""A stream whose budget is used up: pushes are refused in time, reads stay right, and everything arrives afterwards."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from click.testing import CliRunner
from shop import PAYMENTS, Live, now, shop

from headrace.cli import group
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.offline import OfflineStore
from headrace.stores.stream import EventStream
from materialize.archiver import run_archiver
from materialize.run_worker import run_worker
from serving.run import Server, bind, make_config, url_of

BUDGET = 20_000
SOURCE = replace(PAYMENTS, dedup_horizon_us=200_000)


@contextlib.contextmanager
def thread(function: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """A process of the project, in a thread, until the block ends."""
    stop = threading.Event()
    running = threading.Thread(target=function, args=(*arguments, stop))
    running.start()
    try:
        yield
    finally:
        stop.set()
        running.join(30)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    """Server and worker, and no archiver."""
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data", port=0, stream_budget=BUDGET, stream_keep=0)
    catalog = shop()
    with open_store(settings) as store:
        save_catalog(store, settings, replace(catalog, sources=(SOURCE, *catalog.sources[1:])))
    listener, listening = bind(settings), threading.Event()
    server = Server(make_config(settings), listening.set)
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    serving.start()
    assert listening.wait(20)
    client = Live(url_of(listener), settings)
    with thread(run_worker, settings):
        while client.http.get("/ready").status_code != 200:
            time.sleep(0.02)
        yield client
    client.http.close()
    server.should_exit = True
    serving.join(30)
    listener.close()
    detach(settings.data_dir)


def rows(first: int, n: int) -> list[dict[str, Any]]:
    return [{"id": str(i), "card_id": f"c{i % 7}", "amount": 1, "ts": now(-5)} for i in range(first, first + n)]


def push(live: Live, some: list[dict[str, Any]]) -> httpx.Response:
    headers = {"content-type": "application/x-ndjson"}
    body = b"\n".join(map(orjson.dumps, some))
    return live.http.post("/push", params={"source": "payments"}, content=body, headers=headers)


def fill(live: Live) -> tuple[int, httpx.Response]:
    """Pushes until it is refused; how many events were accepted, and the refusal."""
    accepted = 0
    while (reply := push(live, rows(accepted, 20))).status_code == 200:
        accepted += 20
        assert accepted < 10_000
    return accepted, reply


def counts(live: Live) -> dict[str, int]:
    cards = [f"c{i}" for i in range(7)]
    return dict(zip(cards, live.look_up(cards)["count_1h"], strict=True))


def test_while_the_archiver_is_down_pushes_are_refused_and_afterwards_everything_arrives(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("materialize.archiver.TRIM_EVERY_S", 0.1)
    accepted, refusal = fill(live)
    assert refusal.headers["retry-after"] == "5"
    detail = orjson.loads(refusal.json())
    assert detail["class"] == "FeastError" and f"budget of {BUDGET:,} bytes" in detail["message"]
    with open_store(live.settings) as store:
        head, oldest = (getattr(EventStream(store, "shop"), name)("payments", 0) for name in ("head", "oldest"))
    assert head.total == accepted and BUDGET - 4_000 < head.bytes - oldest.bytes <= BUDGET
    live.wait_until_applied()
    assert counts(live) == Counter(f"c{i % 7}" for i in range(accepted))

    pushed, refused = accepted, 0
    with thread(run_archiver, live.settings):
        deadline = time.monotonic() + 60
        while pushed < 3 * accepted:
            assert time.monotonic() < deadline
            if push(live, rows(pushed, 20)).status_code == 200:
                pushed += 20
            else:
                refused += 1
                time.sleep(0.05)
        live.wait_until_applied()
        live.wait_until_applied("archived")
    assert refused > 0
    assert counts(live) == Counter(f"c{i % 7}" for i in range(pushed))
    archived = OfflineStore(live.settings.data_dir).read_events(SOURCE, ["id"], repeats=True)["id"].to_pylist()
    assert archived == [str(i) for i in range(pushed)]


def test_a_direct_write_is_refused_by_its_own_budget(live: Live) -> None:
    row = {"card_id": "w", "limit": 1, "city": "x" * 3_000, "vip": True, "since": None, "created": None}
    df = {name: [value] for name, value in (row | {"event_timestamp": now(-5)[:-1]}).items()}
    body = {"feature_view_name": "profile", "df": df}
    statuses = [live.http.post("/write-to-online-store", json=body).status_code for _ in range(9)]
    assert statuses[0] == 200 and statuses[-1] == 503
    assert live.http.post("/write-to-online-store", json=body).headers["retry-after"] == "5"


def test_a_push_of_which_a_part_was_accepted_says_so_and_one_too_large_is_refused_for_good(live: Live) -> None:
    some = {"push_source_name": "clicks", "df": {"id": list(range(60)), "ts": [now(-5)] * 60}}
    placed = live.post("/push", some)["position"]
    with open_store(live.settings) as store:
        stream = EventStream(store, "shop")
        stream.append("clicks", "ndjson", b"x" * BUDGET, 1, int(list(placed)[-1]))
        before = stream.heads([("clicks", n) for n in range(3)])
        reply = live.http.post("/push", json=some)
        after = stream.heads(list(before))
    grown = sum(head.total for head in after.values() if head) - sum(head.total for head in before.values() if head)
    assert reply.status_code == 503
    assert f"{grown} events of this push were accepted: their ids mark them as repeats" in reply.text and grown > 0
    many = {"id": list(range(3_000)), "ts": [now(-5)] * 3_000}
    reply = live.http.post("/push", json={"push_source_name": "clicks", "df": many})
    assert reply.status_code == 422 and "smaller batches" in reply.text


def test_push_from_a_file_waits_and_goes_on(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted, _ = fill(live)
    file = tmp_path / "more.ndjson"
    file.write_bytes(b"\n".join(map(orjson.dumps, rows(accepted, 30))))
    monkeypatch.setenv("HEADRACE_STREAM_BUDGET", str(BUDGET))

    def make_room() -> None:
        with open_store(live.settings) as store:
            stream = EventStream(store, "shop")
            head = stream.head("payments", 0)
            assert head is not None
            stream.trim("payments", 0, head.offset - 1)

    timer = threading.Timer(1.0, make_room)
    timer.start()
    where = ["--repo", str(live.settings.repo), "--data-dir", str(live.settings.data_dir)]
    done = CliRunner().invoke(group, ["push", "payments", str(file), *where])
    timer.join()
    assert done.exit_code == 0, done.output
    assert "Waiting after 0 events" in done.output and "Pushed 30 events" in done.output
    with open_store(live.settings) as store:
        head = EventStream(store, "shop").head("payments", 0)
    assert head is not None and head.total == accepted + 30
