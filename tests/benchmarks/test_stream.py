from __future__ import annotations

import numpy as np
import orjson
import pytest

from benchmarks import report
from benchmarks.machine import open_server
from benchmarks.report import Result, higher, lower, missing, print_results, write_results
from benchmarks.stream_events import KEYS, Events
from benchmarks.stream_freshness import freshness
from benchmarks.stream_sizes import bytes_per_entity, row_times
from benchmarks.stream_worker import Drained, pipeline


def test_a_ratio_says_how_many_times_better_ours_is() -> None:
    assert higher("w", "events/s", 300, 100, "Feast").ratio == 3
    assert lower("w", "ms", 10, 50, "Feast").ratio == 5
    assert missing("w", "ms", 10, "bytewax is not installed").ratio is None


def test_results_are_written_as_a_list_of_lines(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    lines = [higher("1 row", "rows/s", 2, 1, "Feast"), missing("1 row", "us", 3, "ours")]
    print_results("title", lines)
    written = orjson.loads(write_results("name", lines).read_bytes())
    assert [Result(**line) for line in written] == lines


def test_events_are_a_hundred_bytes_of_json_with_new_ids_and_skewed_keys() -> None:
    events = Events()
    lines = [orjson.loads(line) for line in events.lines(np.arange(2_000) * 1_000_000).split(b"\n")]
    assert len({line["id"] for line in lines}) == 2_000 == events.made
    assert 100 <= len(orjson.dumps(lines[0])) <= 110
    cards = [line["card"] for line in lines]
    assert len(set(cards)) < 1_500 and max(map(cards.count, set(cards))) > 100
    assert set(events.keys(1_000).tolist()) <= set(range(KEYS))


def test_rates_are_taken_between_samples() -> None:
    drained = Drained([(0.0, 0.0, 100), (1.0, 0.5, 200), (2.0, 1.5, 400)], 600)
    assert drained.events == 300 and drained.per_wall() == 150 and drained.per_core() == 200
    assert drained.per_core(upto=200) == 200 and drained.per_core(after=200) == 200


@pytest.mark.timeout(90)
def test_a_small_run_measures_everything(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with open_server(tmp_path / "server", "everysec") as server, pipeline(server) as running:
        running.history(2_000)
        drained = running.peak(150_000)
        assert drained.per_core() > 0 and drained.written_bytes > drained.events
        assert running.applied() == 162_000
        fresh = freshness(running, 2_000, 0.5)
        assert 0 < fresh.p50_ms <= fresh.p99_ms <= fresh.worst_ms
        assert bytes_per_entity(running.store, 1) < bytes_per_entity(running.store, 10)
        times = row_times(running.store, 2, repeats=2)
        assert 0 < times.decode < times.columns
