from __future__ import annotations

import asyncio
import sys

import orjson
import pytest

from benchmarks.http_load import Load, request_bytes
from benchmarks.machine import Process, free_port
from benchmarks.serving_world import bodies


def test_requests_hold_rows_of_skewed_keys() -> None:
    found = [orjson.loads(body) for body in bodies("plain", 100, 1_000, 50)]
    assert len(found) == 50 and all(body["feature_service"] == "plain" for body in found)
    drivers = [driver for body in found for driver in body["entities"]["driver"]]
    assert len(drivers) == 5_000 and set(drivers) <= set(range(1_000))
    assert max(map(drivers.count, set(drivers))) > 300
    assert orjson.loads(bodies("windowed", 1, 10, 1)[0])["full_feature_names"]


@pytest.mark.parametrize(("kind", "rate"), [("asgi", None), ("protocol", 200.0)])
def test_load_counts_what_a_server_answers(tmp_path, kind: str, rate: float | None) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "reply").write_bytes(b"{}")
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.bare_server", kind, str(port), str(tmp_path / "reply")]
    server = Process(command, tmp_path / "log")
    try:
        asyncio.run(_until_up(port))
        load = Load([request_bytes(b"{}")], rate)
        found = asyncio.run(load.run(port, 1.0, 4))
    finally:
        server.stop()
    assert not found["refused"] and not found["lost"] and not found["unsent"]
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["worst_ms"]
    if rate is None:
        assert found["per_s"] == len(load.latencies_s) > 0
    else:
        assert found["per_s"] == pytest.approx(rate, abs=2)


async def _until_up(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
