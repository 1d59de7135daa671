from __future__ import annotations

from pathlib import Path

import redis

from benchmarks import materialize
from benchmarks.machine import open_server


def test_ours_is_measured_on_what_is_then_in_the_store(tmp_path: Path) -> None:
    materialize.write_files(tmp_path, materialize.Size(3_000, 20, 3_000, 10))
    assert {path.name for path in tmp_path.glob("*.parquet")} == {
        f"{name}-{n}.parquet" for name in ("first", "again") for n in (3_000, 20, 10)
    }
    with open_server(tmp_path / "server", "everysec") as server, redis.Redis(port=server.port) as client:
        found = materialize._ours(server, tmp_path, 3_000, 1)
        assert found["rows"] == 3_000 and min(found.values()) > 0
        keys = client.keys("headrace:bench:driver:*")
        assert isinstance(keys, list) and len(keys) == 3_000 and client.pttl(keys[0]) > 0
