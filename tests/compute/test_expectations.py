from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from scenario import SECOND_US, moment, ndjson

from headrace.catalog.definitions import Column, DType, Source
from headrace.catalog.expectations import expectations_of_tag, parse_expectations, render_expectations
from headrace.compute.events import EventBatch, parse_entries
from headrace.errors import DefinitionError
from headrace.stores.stream import Entry

COLUMNS = (
    Column("whole", DType.INT64),
    Column("short", DType.INT32),
    Column("real", DType.FLOAT64),
    Column("word", DType.STRING),
    Column("flag", DType.BOOL),
    Column("ts", DType.TIMESTAMP),
)
EVENTS = Source("events", COLUMNS, "ts")


def source(**rules: list[str]) -> Source:
    return replace(EVENTS, expectations=parse_expectations(rules, COLUMNS, "ts", "source 'events'"))


def parsed(
    made: Source, rows: list[dict[str, Any]], watermark_us: int | None = None, clock: str = "event"
) -> EventBatch:
    return parse_entries(made, 0, [Entry(2**60, "ndjson", len(rows), 0, ndjson(rows))], clock, watermark_us)


PASSING: dict[str, tuple[str, str, list[Any], list[bool]]] = {
    "not_null": ("real", "not_null", [1.0, None, 0.0], [True, False, True]),
    "not_null()": ("word", "not_null()", ["", None], [True, False]),
    "between": ("real", "between(0, 1e6)", [0.0, 1e6, -0.1, 1e6 + 1, None], [True, True, False, False, True]),
    "between of integers": ("whole", "between(-3, 8)", [-3, 8, -4, 9], [True, True, False, False]),
    "between halves": ("whole", "between(-2.5, 2.5)", [-2, 2, -3, 3, -(2**63)], [True, True, False, False, False]),
    "between of int32": ("short", "between(0, 1e300)", [2**31 - 1, -1], [True, False]),
    "is_in of large floats": ("real", f"is_in([{2**60 + 1}])", [2.0**60, 1.0], [True, False]),
    "between beyond int64": ("whole", f"between(0, {2**70})", [2**62, -1], [True, False]),
    "is_in": ("word", "is_in(['a', 'b'])", ["a", "c", None], [True, False, True]),
    "is_in of values": ("short", "is_in(1, 2)", [1, 3], [True, False]),
    "is_in of one": ("flag", "is_in([True])", [True, False, None], [True, False, True]),
    "is_in of floats": ("real", "is_in([1, 2.5])", [1.0, 2.5, 2.0], [True, True, False]),
    "matches": ("word", "matches('[A-Z]{3}')", ["JFK", "JFKX", "jfk", "", None], [True, False, False, False, True]),
    "matches with a bracket": ("word", r"matches('a\\)|b')", ["a)", "b", "a"], [True, True, False]),
    "min_length": ("word", "min_length(2)", ["ü", "üü", None], [False, True, True]),
    "max_length": ("word", "max_length(1)", ["ü", "üü", ""], [True, False, True]),
}  # fmt: skip


@pytest.mark.parametrize(("column", "rule", "values", "holds"), PASSING.values(), ids=PASSING)
def test_what_passes_a_rule(column: str, rule: str, values: list[Any], holds: list[bool]) -> None:
    rows = [{column: value, "ts": moment(i * SECOND_US)} for i, value in enumerate(values)]
    for action, outcome in (("", "quarantined"), (": quarantine", "quarantined"), (": drop", "dropped")):
        batch = parsed(source(**{column: [rule + action]}), rows)
        assert batch.index.tolist() == [i for i, good in enumerate(holds) if good]
        assert [letter.index for letter in batch.dead] == (
            [i for i, good in enumerate(holds) if not good] if outcome == "quarantined" else []
        )
        ((key, n),) = batch.unexpected.items()
        assert (key, n) == ((outcome, column, rule), holds.count(False))
    kept = parsed(source(**{column: [rule + " : warn"]}), rows)
    assert len(kept) == len(rows)
    assert not kept.dead
    assert kept.unexpected == {("warned", column, rule): holds.count(False)}


def test_a_dead_letter_names_rule_column_and_value() -> None:
    batch = parsed(
        source(real=["between(0, 1)"], word=["not_null"]), [{"real": 1.5, "ts": moment(0)}, {"ts": moment(0)}]
    )
    assert [letter.reason for letter in batch.dead] == [
        "expected between(0, 1) of real, got 1.5",
        "expected not_null of word, got null",
    ]
    assert batch.dead[0].payload == b'{"real":1.5,"ts":"1970-01-01T00:00:00+00:00"}'


def test_an_event_leaves_at_the_first_rule_that_it_breaks() -> None:
    made = source(real=["between(0, 1): warn", "between(0, 2): drop", "between(0, 3)"])
    batch = parsed(made, [{"real": value, "ts": moment(0)} for value in (0.5, 1.5, 2.5, 3.5)])
    assert batch.index.tolist() == [0, 1]
    assert list(batch.unexpected.values()) == [3, 2]
    assert not batch.dead


def test_lateness_is_judged_by_the_accepted_events_before() -> None:
    made = source(ts=["max_lateness('10s')"], real=["not_null"])
    at = [100, 95, 90, 89, 200, 189, 190, 195]
    rows = [{"real": None if second == 200 else 1.0, "ts": moment(second * SECOND_US)} for second in at]
    batch = parsed(made, rows)
    assert {letter.index: letter.reason for letter in batch.dead} == {
        3: "expected max_lateness('10s') of ts, got 11 s behind the watermark",
        4: "expected not_null of real, got null",
    }
    assert batch.watermark_us == 195 * SECOND_US
    later = parsed(made, rows[:3], watermark_us=105 * SECOND_US)
    assert later.index.tolist() == [0, 1]


def test_what_is_refused_for_the_future_does_not_make_others_late() -> None:
    now_us = (2**60 >> 20) * 1_000
    rows = [{"ts": moment(now_us + ahead * SECOND_US)} for ahead in (0, 3_600, -5)]
    batch = parsed(source(ts=["max_lateness('10s')"]), rows, clock="wall")
    assert [letter.index for letter in batch.dead] == [1]


@pytest.mark.parametrize("seed", range(5))
def test_batches_do_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    made = source(ts=["max_lateness('5s'): drop"], real=["between(-1, 1)"])
    rows = [
        {"real": rng.choice([0.0, 2.0, None]), "ts": moment(rng.randrange(40) * SECOND_US)} for _ in range(60)
    ]  # fmt: skip
    whole = parsed(made, rows)
    alone, watermark_us = [], None
    for i, row in enumerate(rows):
        batch = parsed(made, [row], watermark_us)
        watermark_us = batch.watermark_us
        alone += [i] * len(batch)
    assert whole.index.tolist() == alone
    assert whole.watermark_us == watermark_us


def test_the_tag_holds_what_was_written() -> None:
    rules = {"real": ["not_null", "between(0, 1e6): drop"], "word": ['matches("[a-z\\\\d]+")']}
    tagged = expectations_of_tag({"expect": render_expectations(rules)}, COLUMNS, "ts", "it")
    assert tagged == parse_expectations(rules, COLUMNS, "ts", "it")
    assert expectations_of_tag({}, COLUMNS, "ts", "it") == ()


REFUSED: dict[str, tuple[Any, str]] = {
    "column": ({"reel": ["not_null"]}, "names column 'reel', which has: whole"),
    "no list": ({"real": "not_null"}, r"'real' has 'not_null'; write \['not_null'\]"),
    "rule": ({"real": ["positive"]}, "'positive', which is no rule; use one of not_null, between"),
    "not written as a rule": ({"real": ["> 0"]}, "'> 0', which is no rule; write it like"),
    "no text": ({"real": [3]}, "expects 3, which is no rule"),
    "action": ({"real": ["not_null: ignore"]}, "'ignore' is no action; use one of quarantine, drop, warn"),
    "arguments": ({"real": ["between(0, x)"]}, "its arguments are literals"),
    "too many": ({"real": ["not_null(1)"]}, "takes no arguments"),
    "between of text": ({"word": ["between(0, 1)"]}, "needs a number, the column is string"),
    "between text": ({"real": ["between('a', 'b')"]}, "two numbers"),
    "between one": ({"real": ["between(1)"]}, "two numbers"),
    "between swapped": ({"real": ["between(2, 1)"]}, "the smaller one first"),
    "is_in of another type": ({"whole": ["is_in(['a'])"]}, "values of type int64"),
    "is_in of nothing": ({"whole": ["is_in([])"]}, "values of type int64"),
    "is_in too large": ({"short": [f"is_in([{2**31}])"]}, "no int32 can have"),
    "is_in of times": ({"ts": ["is_in([1])"]}, "the column is timestamp"),
    "matches a number": ({"real": ["matches('a')"]}, "needs a text"),
    "bad pattern": ({"word": ["matches('(')"]}, "no regular expression"),
    "length": ({"word": ["min_length(-1)"]}, "whole number of characters"),
    "lateness of a column": ({"real": ["max_lateness('1m')"]}, "write it for column 'ts'"),
    "lateness": ({"ts": ["max_lateness(10)"]}, "takes a duration"),
    "lateness unit": ({"ts": ["max_lateness('10y')"]}, "10y"),
}


@pytest.mark.parametrize(("rules", "words"), REFUSED.values(), ids=REFUSED)
def test_a_rule_that_cannot_work_is_refused(rules: Any, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        parse_expectations(rules, COLUMNS, "ts", "source 'events'")


@pytest.mark.parametrize("text", ["not_null", "[1]", '{"real": 1}'])
def test_a_tag_that_is_no_object_of_lists_is_refused(text: str) -> None:
    with pytest.raises(DefinitionError, match="expect of it"):
        expectations_of_tag({"expect": text}, COLUMNS, "ts", "it")
