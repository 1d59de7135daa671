from __future__ import annotations

import random
from collections import Counter

import numpy as np
from scenario import BY_WHO, PARTS, SECOND_US, catalog, ndjson, random_rows

from headrace.read.values import FEW_ROWS, step_values
from headrace.settings import Settings
from headrace.stores.connection import open_store
from headrace.stores.keys import layout_field
from headrace.stores.offline import OfflineStore
from headrace.stores.online import OnlineStore
from headrace.stores.stream import EventStream
from materialize.worker import Worker


def test_rows_read_one_by_one_equal_rows_read_as_arrays(settings: Settings) -> None:
    store, definitions = open_store(settings), catalog(project="reader")
    worker = Worker(store, OfflineStore(settings.data_dir), definitions)
    worker.start()
    for seed in range(5):
        rows = random_rows(random.Random(seed), 100, (1_000_000 + 50 * seed) * SECOND_US)
        EventStream(store, "reader").append(PARTS.name, "ndjson", ndjson(rows), len(rows))
    worker.step()
    keys = sorted(store.scan_iter("headrace:reader:who:*"))
    blobs = [*OnlineStore(store).read(keys, layout_field(BY_WHO)), None]
    assert len(blobs) > FEW_ROWS
    for later_s in (1_000_300, 1_000_301, 1_010_000):
        t_us = np.full(len(blobs), later_s * SECOND_US)
        many = step_values(BY_WHO, blobs, t_us)
        beyond: Counter[str] = Counter()
        for row, blob in enumerate(blobs):
            one = step_values(BY_WHO, [blob], t_us[:1])
            for feature in BY_WHO.features:
                assert one.columns[feature.name][0] == many.columns[feature.name][row], feature
                assert one.columns[feature.name].type == many.columns[feature.name].type
            beyond.update(one.out_of_range)
        assert beyond == many.out_of_range
        assert "count_distinct_2_whole_600" in beyond or later_s == 1_010_000
