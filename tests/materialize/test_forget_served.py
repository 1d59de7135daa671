from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from shop import now, running, shop

from headrace.read.forgetting import forget_keys
from headrace.settings import Settings
from headrace.stores.connection import open_store
from headrace.stores.offline import OfflineStore
from headrace.stores.served import read_served


def test_forgetting_takes_a_key_out_of_what_was_served_and_what_waits_to_be_logged(tmp_path: Path) -> None:
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data", port=0)
    catalog = shop()
    catalog = replace(catalog, services=tuple(replace(service, log_rate=1.0) for service in catalog.services))
    root = OfflineStore(settings.data_dir).root

    def served() -> list[str]:
        return [keys[0].rpartition(":")[2] for keys in read_served(root, "card_v1")["entity_keys"].to_pylist()]

    with running(settings, catalog) as live:
        live.push([{"id": card, "card_id": card, "shop_id": 1, "amount": 5.0, "ts": now()} for card in ("a", "b")])
        live.wait_until_applied()
        live.look_up(["a", "b", "a"])
        deadline = time.monotonic() + 20
        while len(served()) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        live.look_up(["a", "b"])
        time.sleep(0.6)  # handed over; the archiver may or may not have taken it
        with open_store(settings) as store:
            receipt = forget_keys(store, catalog, ["card"], [["a"]], 0.0)
        assert receipt["archive"]["served"] in (3, 2)
        live.look_up(["a"])  # a new beginning
        while served().count("a") < 1:
            assert time.monotonic() < deadline + 20
            time.sleep(0.05)
        assert sorted(served()) == ["a", "b", "b"]
