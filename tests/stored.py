"""What a store holds, compared with the oracle."""

from __future__ import annotations

import numpy as np
import redis
from naive import NaiveEvent, is_out_of_range
from scenario import assert_equals_oracle, plain_value, with_key

from headrace.catalog.definitions import Catalog
from headrace.read.online.values import step_values
from headrace.stores.codec.header import build_of
from headrace.stores.keys import entity_key, entity_prefix, layout_field
from headrace.stores.markers import Markers
from headrace.stores.online import OnlineStore


def assert_store_equals_oracle(store: redis.Redis, definitions: Catalog, history: list[NaiveEvent], t_us: int) -> None:
    """Every key's values of every view of `scenario.catalog` at `t_us`."""
    for view, parts in zip(definitions.views, [(0,), (0, 1), (1,)], strict=True):
        build = Markers(store, definitions.project).begin_build(view)
        events = with_key(history, parts)
        for key in {event.key for event in events}:
            ordered = [key[parts.index(p)] for p in sorted(parts, key=lambda p: ("who", "site")[p])]
            redis_key = entity_key(entity_prefix(definitions.project, view.entities), ordered)
            (blob,) = OnlineStore(store).read([redis_key], layout_field(view))
            assert blob is not None and build_of(blob) == build
            shown = step_values(view, [blob], np.array([t_us]))
            got = {name: plain_value(column[0].as_py()) for name, column in shown.columns.items()}
            assert_equals_oracle(view, got, events, key, t_us)
            beyond = {agg.feature for agg in view.aggregations if is_out_of_range(agg, events, key, t_us)}
            assert shown.out_of_range == dict.fromkeys(beyond, 1), (view.name, key, t_us)
