"""The audit: are the values that were served those that the definitions give over the log?

A served row states how far the log was read (see served_rows.py), so the archive can say exactly what it had to hold:

    served = what the events at its positions come to, as of its t     else: bug
           = what had arrived before t comes to                        else: lag, the worker was behind
    which  = what all events before t come to, by event time alone     else: late, events came after t
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from headrace.catalog.definitions import Catalog, FeatureView, ViewReference
from headrace.dtypes import DType
from headrace.moments import rfc3339
from headrace.read.history import History
from headrace.read.recompute import Seen, ViewPast
from headrace.stores.served import read_served
from headrace.windows.functions import parse_function

__all__ = ["OUTCOMES", "AuditReport", "Finding", "audit"]

OUTCOMES = ("equal", "lag", "late", "degraded", "definition", "pending", "unaudited", "bug")
"""What may be said of a feature of a served row: equal everywhere; the worker lagged; events came late; it did not
come from the store; its definition is no longer in force; the archive does not hold its events yet; its view has rows
without a position (a batch file), or is computed on demand; or it differs from what the events at its positions come
to."""
CHUNK_ROWS = 200
MOST_SHOWN = 20
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Finding:
    """One value that differs."""

    outcome: str
    feature: str
    request_id: str
    row: int
    served_at: str
    t: str
    served: Any
    at_positions: Any
    as_known: Any
    by_event_time: Any


@dataclass
class AuditReport:
    """Per feature how often each outcome was met; `findings` are the first of each outcome that is a difference. A
    value may both lag and be late: it is counted as both."""

    service: str
    rows: int = 0
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def bugs(self) -> int:
        return sum(counts["bug"] for counts in self.outcomes.values())

    def count(self, feature: str, *outcomes: str) -> None:
        self.outcomes.setdefault(feature, Counter()).update(outcomes)

    def note(self, finding: Finding) -> None:
        if sum(held.outcome == finding.outcome for held in self.findings) < MOST_SHOWN:
            self.findings.append(finding)


def audit(
    catalog: Catalog,
    history: History,
    service: str,
    *,
    since_us: int | None = None,
    until_us: int | None = None,
    sample: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> AuditReport:
    """Recomputes the rows of `service` that were served in [since, until), at most `sample` of them, spread evenly.

    Raises UnknownNameError, and DataError where retention has deleted events that they need.
    """
    references = {reference.name: reference for reference in catalog.service(service).references}
    rows = read_served(history.offline.root, service, since_us, until_us)
    if sample is not None and rows.num_rows > sample:
        rows = rows.take(pa.array(np.linspace(0, rows.num_rows - 1, sample).astype(np.int64)))
    report = AuditReport(service)
    for start in range(0, rows.num_rows, CHUNK_ROWS):
        on_progress(start, rows.num_rows)
        _Chunk(catalog, history, references, rows.slice(start, CHUNK_ROWS).to_pylist(), report).run()
    on_progress(rows.num_rows, rows.num_rows)
    return report


class _Chunk:
    """Some served rows under audit."""

    def __init__(
        self,
        catalog: Catalog,
        history: History,
        references: Mapping[str, ViewReference],
        rows: Sequence[dict[str, Any]],
        report: AuditReport,
    ) -> None:
        self._catalog, self._history, self._references, self._report = catalog, history, references, report
        self._rows = [row | {name: orjson.loads(row[name]) for name in ("keys", "values", "views")} for row in rows]
        self._archived = {source.name: history.offline.positions(source) for source in catalog.sources}

    def run(self) -> None:
        self._report.rows += len(self._rows)
        names = dict.fromkeys(name for row in self._rows for name in row["views"])
        for name in names:
            self._run_view(name)
        for row in self._rows:
            for feature in row["values"]:
                if feature.partition("__")[0] not in row["views"]:
                    self._report.count(feature, "unaudited")

    def _run_view(self, name: str) -> None:
        """One view of all rows, by the name that the service gives it."""
        kept: list[tuple[dict[str, Any], Seen]] = []
        for row in self._rows:
            if name not in row["views"]:
                continue
            reason = self._reason(row["views"][name])
            if reason is not None:
                for feature in self._features(row, name):
                    self._report.count(feature, reason)
                continue
            kept.append((row, self._seen(row, name)))
        if kept:
            self._compare(name, self._catalog.view(kept[0][0]["views"][name]["view"]), kept)

    def _features(self, row: dict[str, Any], name: str) -> Iterator[str]:
        return (feature for feature in row["values"] if feature.partition("__")[0] == name)

    def _reason(self, served: dict[str, Any]) -> str | None:
        """Why a view of a row cannot be recomputed, None if it can."""
        if served["tier"] != "store":
            return "degraded"
        view = self._catalog.view(served["view"]) if self._catalog.has_view(served["view"]) else None
        if view is None or view.fingerprint != served["fingerprint"]:
            return "definition"
        if view.batch is not None or view.source is None:
            return "unaudited"
        for place, position in served["positions"].items():
            source, _, part = place.rpartition("|")
            if source in self._archived and _position(position)[0] > self._archived[source].get(int(part), -1):
                return "pending"
        return None

    def _seen(self, row: dict[str, Any], name: str) -> Seen:
        served = row["views"][name]
        view = self._catalog.view(served["view"])
        renamed = dict(self._references[name].join_key_map) if name in self._references else {}
        keys = [row["keys"][renamed.get(column.name, column.name)] for column in self._catalog.sorted_join_keys(view)]
        positions = {place: _position(text) for place, text in served["positions"].items()}
        return Seen(None if None in keys else tuple(keys), _micros(served["t"]), positions)

    def _compare(self, name: str, view: FeatureView, kept: Sequence[tuple[dict[str, Any], Seen]]) -> None:
        seen = [of for _, of in kept]
        free = [Seen(of.key, of.t_us, None) for of in seen]
        past = ViewPast(self._history, self._catalog, view, seen)
        at_positions, as_known = past.values(seen, False), past.values(free, True)
        by_event_time, scales = past.values(free, False), past.scales(seen)
        columns = {agg.feature: agg.column for agg in view.aggregations if _is_summed(agg.function)}
        for feature in view.features:
            sides = [_plain(side[feature.name], feature.dtype) for side in (at_positions, as_known, by_event_time)]
            scale = scales.get(columns.get(feature.name, ""), [0.0] * len(seen))
            for i, (row, _) in enumerate(kept):
                full = f"{name}__{feature.name}"
                if full in row["values"]:
                    self._judge(full, row, row["views"][name]["t"], [side[i] for side in sides], scale[i])

    def _judge(self, feature: str, row: dict[str, Any], t: str, sides: Sequence[Any], scale: float) -> None:
        served, (exact, known, timed) = row["values"][feature], sides
        if not _same(served, exact, scale):
            found = ["bug"]
        else:
            lags, late = not _same(exact, known, scale), not _same(known, timed, scale)
            found = [*(["lag"] if lags else []), *(["late"] if late else [])] or ["equal"]
        self._report.count(feature, *found)
        for outcome in found:
            if outcome != "equal":
                moment = row["served_at"].isoformat()
                place = (feature, row["request_id"], row["row"], moment, t)
                self._report.note(Finding(outcome, *place, served, exact, known, timed))


def _is_summed(function: str) -> bool:
    return parse_function(function).base in ("sum", "mean", "var", "std")


def _position(text: str) -> tuple[int, int]:
    """`offset-index`; an index of -1 is before the first event of its entry."""
    offset, _, index = text.partition("-")
    return int(offset), int(index)


def _micros(text: str) -> int:
    moment = datetime.fromisoformat(text)
    return int(np.datetime64(moment.replace(tzinfo=None), "us").astype(np.int64))


def _plain(column: pa.Array, dtype: DType) -> list[Any]:
    """Values as the log holds them: moments as RFC 3339 text."""
    if dtype is DType.TIMESTAMP:
        return [None if us is None else rfc3339(us) for us in column.cast(pa.int64()).to_pylist()]
    if dtype is DType.TIMESTAMP_LIST:
        lists = column.cast(pa.list_(pa.int64())).to_pylist()
        return [None if items is None else [None if us is None else rfc3339(us) for us in items] for items in lists]
    return list(column.to_pylist())


def _same(one: Any, other: Any, scale: float) -> bool:
    if type(one) is list and type(other) is list:
        return len(one) == len(other) and all(_same(a, b, scale) for a, b in zip(one, other, strict=True))
    if isinstance(one, float | int) and isinstance(other, float | int) and float in (type(one), type(other)):
        return abs(one - other) <= _TOLERANCE * max(1.0, abs(one), abs(other), scale)
    return bool(one == other)
