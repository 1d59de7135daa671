"""What is said while a consumer has stopped at a gap, and who is at work."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner
from shop import Live

from headrace.cli import group
from headrace.stores.connection import open_store
from headrace.stores.gaps import Stops

WHY = "The stream of 'payments', partition 0, no longer has the 3 events after 7-0 and before 9; run headrace recover."


def call(live: Live, *arguments: str) -> str:
    where = ["--repo", str(live.settings.repo), "--data-dir", str(live.settings.data_dir)]
    return CliRunner().invoke(group, [*arguments, *where]).stdout


def findings(live: Live) -> Any:
    lines = call(live, "doctor", "--url", live.url, "--json").splitlines()
    return json.loads("\n".join(lines[lines.index("[") :]))


def test_a_stopped_worker_makes_its_views_unready_and_is_named_everywhere(live: Live) -> None:
    live.push([{"id": "stopped", "card_id": "s", "amount": 1, "ts": "2026-01-01T00:00:00Z"}])
    live.wait_until_applied()
    assert {"level": "ok", "part": "worker"}.items() <= next(f for f in findings(live) if f["part"] == "worker").items()
    with open_store(live.settings) as store:
        stops = Stops(store, "shop", "worker")
        stops.set({("payments", 0): WHY})
        ready = live.http.get("/ready")
        assert (ready.status_code, ready.json()["stopped"], ready.json()["missing"]) == (503, {"card_spend": WHY}, [])
        assert live.http.get("/streams").json()["payments"]["stopped"] == {"worker": WHY}
        assert any(f["level"] == "fail" and WHY in f["text"] for f in findings(live))
        assert f"The worker has stopped: {WHY}" in call(live, "streams", "--over", "0.1")
        assert live.look_up(["s"])["count_1h"] is not None  # what it has stays right as of its position
        Stops(store, "shop", "worker").set({})
    assert live.http.get("/ready").status_code == 200
    assert live.http.get("/streams").json()["payments"]["stopped"] == {}
