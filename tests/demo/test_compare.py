"""The comparison finds what differs, and nothing else."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from demo.compare import Comparison, ServedVectors, agree, count_by_hand

TIME = datetime(2013, 3, 10, 7, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("online", "offline", "equal"),
    [
        (None, None, True),
        (None, 0, False),
        (0.0, None, False),
        (3, 3, True),
        (3, 4, False),
        (0.1 + 0.2, 0.3, True),
        (1.0, 1.00001, False),
        (0, 0.0, True),  # JSON has one kind of zero
        ("BOS", "BOS", True),
        ("BOS", "BOX", False),
        ("2013-03-10T07:30:00Z", TIME, True),
        ("2013-03-10T07:30:00.000001Z", TIME, False),
        (True, 1, False),
    ],
)
def test_values_agree(online, offline, equal):
    assert agree(online, offline) is equal


def served():
    vectors = ServedVectors()
    vectors.add({"origin": ["JFK"], "event_timestamp": ["t1"]}, {"v__count": [3], "v__mean": [1.5]})
    vectors.add({"origin": ["EWR"], "event_timestamp": ["t2"]}, {"v__count": [0], "v__mean": [None]})
    return vectors


def test_equal_vectors_have_no_differences():
    found = Comparison.of(served(), pa.table({"v__count": [3, 0], "v__mean": [1.5, None]}))
    assert (found.compared, found.present, found.differences) == (4, 3, [])


def test_a_difference_names_the_feature_both_values_and_the_row():
    found = Comparison.of(served(), pa.table({"v__count": [3, 1], "v__mean": [1.5, None]}))
    (difference,) = found.differences
    assert difference.startswith("v__count: served 0, training set 1") and "EWR" in difference


def test_a_feature_that_the_training_set_lacks_differs():
    assert len(Comparison.of(served(), pa.table({"v__count": [3, 0]})).differences) == 2


def test_the_count_by_hand_begins_at_the_hop_and_ends_before_the_moment():
    hour_us = 3_600_000_000
    at_us = 100 * hour_us + 20 * 60_000_000
    times_us = [76 * hour_us - 1, 76 * hour_us, 90 * hour_us, at_us - 1, at_us]
    times = pa.array(times_us).cast(pa.timestamp("us", "UTC"))
    events = pa.table({"departed_at": times, "origin": ["JFK", "JFK", "EWR", "JFK", "JFK"]})
    assert count_by_hand(events, "JFK", at_us) == 2
