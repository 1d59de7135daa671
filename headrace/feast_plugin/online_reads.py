"""A read of Feast's SDK, split: one lookup for what the catalog knows, and what is kept as Feast's values beside."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import redis
from feast import utils as feast_utils
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse

from headrace.catalog.definitions import Catalog, FeatureView, ViewReference
from headrace.errors import RequestError
from headrace.feast_plugin.shared import Shared
from headrace.feast_plugin.values import datetimes_of, messages_of, plain_values, timestamps_of
from headrace.read.lookup import LookupPlan, LookupRequest, answer, parse_request
from headrace.read.online.results import LookupResult
from headrace.read.online.vectors import NOT_FOUND

__all__ = ["Answer", "KeptRead", "Known", "ReadSplit", "look_up", "reference_of", "rows_of"]

Tables = Sequence[tuple[Any, list[str]]]
"""Feature views, each with the features asked of it."""
Keys = Mapping[str, Sequence[Any]]
"""Values of join keys, by the names that the request gives them."""
Answer = tuple[datetime | None, dict[str, Any] | None]
"""Event time and values by feature; (None, None) where there is no row."""

FIRST_STATUS = 1
"""Feast counts a field's statuses from here (PRESENT), we from 0, in the same order."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is asked of the catalog's views."""

    plan: LookupPlan
    request: LookupRequest

    @classmethod
    def of(cls, shared: Shared, catalog: Catalog, references: Sequence[ViewReference], keys: Keys) -> Known:
        """Raises RequestError for a join key that is missing or of another type."""
        plan = shared.plan(catalog, references)
        given = {name: plain_values(keys[name]) for name in plan.needed if name in keys}
        return cls(plan, parse_request(plan, given, max_rows=sys.maxsize))


@dataclass(frozen=True, slots=True)
class KeptRead:
    """What is asked of a view that is kept as Feast's values: distinct keys, and the rows that have each."""

    table: Any
    wanted: list[str]
    keys: list[Any]
    rows: Sequence[list[int]]


class ReadSplit:
    """One request of Feast's SDK; `known` and `kept` are what must be read, `fill` puts the answers together."""

    def __init__(self, shared: Shared, catalog: Catalog, tables: Tables, keys: Keys, join_keys: dict[str, str]) -> None:
        self._tables = tables
        self._rows = len(next(iter(keys.values()), ()))
        self._is_known = [catalog.has_view(table.name) for table, _ in tables]
        ours = [pair for pair, is_known in zip(tables, self._is_known, strict=True) if is_known]
        references = [reference_of(catalog.view(table.name), table, wanted) for table, wanted in ours]
        self.known = Known.of(shared, catalog, references, keys) if references else None
        others = [pair for pair, is_known in zip(tables, self._is_known, strict=True) if not is_known]
        self.kept = [_kept_read(table, wanted, keys, join_keys) for table, wanted in others]

    def fill(
        self,
        response: GetOnlineFeaturesResponse,
        full_names: bool,
        with_versions: bool,
        found: LookupResult | None,
        kept: Sequence[list[Answer]],
    ) -> None:
        """Append every feature to `response`, view by view in the order asked."""
        columns = self._columns(found)
        rest = iter(zip(self.kept, kept, strict=True))
        for (table, wanted), is_known in zip(self._tables, self._is_known, strict=True):
            if not is_known:
                read, rows = next(rest)
                feast_utils._populate_response_from_feature_data(
                    wanted, rows, read.rows, response, full_names, table, self._rows, with_versions
                )
                continue
            name = table.projection.name_to_use()
            response.metadata.feature_names.val.extend(f"{name}__{f}" if full_names else f for f in wanted)
            if with_versions:
                _add_version(response, table)
            response.results.extend(next(columns) for _ in wanted)

    def _columns(self, found: LookupResult | None) -> Iterator[Any]:
        """The features that the lookup answered, in its order."""
        if found is None or self.known is None:
            return
        times: dict[str, list[Any]] = {}
        keys = len(self.known.request.names)
        for i, output in enumerate(self.known.plan.outputs, keys):
            if output.step not in times:
                times[output.step] = timestamps_of(found.timestamps_us[i])
            yield GetOnlineFeaturesResponse.FeatureVector(
                values=messages_of(found.columns[i], output.feature.dtype),
                statuses=(found.statuses[i] + FIRST_STATUS).tolist(),
                event_timestamps=times[output.step],
            )


def reference_of(view: FeatureView, table: Any, wanted: Sequence[str]) -> ViewReference:
    """The features `wanted` of a view under the name and the join keys of Feast's projection.

    Raises RequestError for a feature that the catalog does not have.
    """
    known = [feature.name for feature in view.features]
    missing = [name for name in wanted if name not in known]
    if missing:
        raise RequestError(
            f"View {view.name!r} was applied with the features {', '.join(known)}, not with {missing[0]!r}; "
            "run feast apply."
        )
    projection = table.projection
    return ViewReference(
        view.name, projection.name_to_use(), tuple(wanted), tuple(sorted(projection.join_key_map.items()))
    )


def _kept_read(table: Any, wanted: list[str], keys: Keys, join_keys: dict[str, str]) -> KeptRead:
    distinct, rows, _ = feast_utils._get_unique_entities(table, keys, join_keys)
    return KeptRead(table, wanted, feast_utils._get_entity_key_protos(distinct), rows)


def _add_version(response: GetOnlineFeaturesResponse, table: Any) -> None:
    name = table.projection.name_alias or table.projection.name
    if all(view.name != name for view in response.metadata.feature_view_metadata):
        response.metadata.feature_view_metadata.add(name=name, version=table.current_version_number or 0)


def look_up(shared: Shared, known: Known) -> LookupResult:
    """The lookup, as of the catalog's clock, in one round trip; in two of a cluster, whose markers have copies."""
    asked = known.plan.reads.ask(known.request)
    commands = list(known.plan.reads.commands(asked))
    store: Any = shared.store
    replies: list[Any] = []
    if isinstance(store, redis.RedisCluster):
        key, fields = commands.pop(0)
        replies.append(store.hmget(key, list(fields)))
    pipe = store.pipeline(transaction=False)
    for key, fields in commands:
        pipe.hmget(key, list(fields))
    replies += pipe.execute()
    return answer(known.plan, known.request, asked, replies, None, time.time_ns() // 1_000)


def rows_of(known: Known, found: LookupResult) -> list[Answer]:
    """A lookup of one view as rows; a key that has none is (None, None)."""
    first = len(known.request.names)
    outputs = known.plan.outputs
    names = [output.feature.name for output in outputs]
    values = [messages_of(found.columns[first + i], output.feature.dtype) for i, output in enumerate(outputs)]
    absent = (found.statuses[first] == NOT_FOUND).tolist()
    times = datetimes_of(found.timestamps_us[first])
    rows = zip(*values, strict=True)
    return [
        (None, None) if gone else (time_at, dict(zip(names, row, strict=True)))
        for row, gone, time_at in zip(rows, absent, times, strict=True)
    ]
