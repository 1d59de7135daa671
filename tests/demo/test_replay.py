"""The replay: in the order of time, cut right at the moments."""

import numpy as np
import pyarrow as pa
import pytest

from demo.replay import HOUR_US, SLICE_US, EventLog, choose_moments, replay


def log(source, times_us):
    return EventLog(source, pa.table({"at": times_us}), np.array(times_us, np.int64))


def test_at_a_moment_windows_have_what_is_before_it_and_last_values_what_is_at_it():
    logs = [log("departures", [1, 5, 5, 9]), log("weather", [5, 6])]
    pushed = {"departures": [], "weather": []}
    stops = replay(logs, [5], lambda source, events: pushed[source].extend(events["at"].to_pylist()))
    assert next(stops) == 5
    assert pushed == {"departures": [1], "weather": [5]}
    assert list(stops) == [None]
    assert pushed == {"departures": [1, 5, 5, 9], "weather": [5, 6]}


def test_every_event_is_pushed_once_and_no_slice_runs_ahead_of_another():
    generator = np.random.default_rng(5)
    times = {name: np.sort(generator.integers(0, 20 * SLICE_US, 500)) for name in ("departures", "arrivals", "weather")}
    pushed = []
    moments = sorted(generator.integers(0, 20 * SLICE_US, 10).tolist())
    logs = [log(name, values.tolist()) for name, values in times.items()]
    stops = replay(logs, moments, lambda source, events: pushed.extend((source, t) for t in events["at"].to_pylist()))
    assert list(stops) == [*moments, None]
    for name, values in times.items():
        assert [t for source, t in pushed if source == name] == values.tolist()
    highest = np.maximum.accumulate([t for _, t in pushed])
    assert (highest - [t for _, t in pushed]).max() <= SLICE_US


@pytest.mark.parametrize("count", [1, 7, 60])
def test_moments_are_departures_spread_over_the_year_some_on_full_hours(count):
    departures_us = np.arange(0, 365 * 24) * HOUR_US + np.tile([0, 7 * 60_000_000], 365 * 12)
    moments = choose_moments(departures_us, count)
    assert len(moments) == count and moments == sorted(set(moments)) and set(moments) <= set(departures_us.tolist())
    assert sum(at % HOUR_US == 0 for at in moments) >= count // 2
    assert np.diff([0, *moments]).max() <= 2 * departures_us[-1] / count
    assert moments == choose_moments(departures_us, count)
