"""The other peer of the stream: bytewax's sliding window of one sum, from memory, with no sink.

    python -m benchmarks.bytewax_windows EVENTS KEYS

One hour, sliding by our hop of five minutes; events are tuples already, in order, so nothing is parsed, stored or
late. Its cost grows with the number of keys, so it runs with ours and with few (its best). Prints one line of JSON:
events per second of processor time and of the wall.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from benchmarks.stream_events import Events

START = datetime(2024, 1, 1, tzinfo=UTC)
SPACING = timedelta(microseconds=28)


def _dataflow(items: Iterable[Any]) -> Any:
    import bytewax.operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.operators import windowing
    from bytewax.outputs import DynamicSink, StatelessSinkPartition
    from bytewax.testing import TestingSource

    class Nothing(StatelessSinkPartition[Any]):
        def write_batch(self, items: list[Any]) -> None:
            pass

    class Nowhere(DynamicSink[Any]):
        def build(self, step_id: str, worker_index: int, worker_count: int) -> Nothing:
            return Nothing()

    flow = Dataflow("sums")
    stream = op.input("events", flow, TestingSource(items, batch_size=20_000))
    clock: Any = windowing.EventClock(lambda event: event[0], wait_for_system_duration=timedelta(hours=1))
    windower = windowing.SlidingWindower(timedelta(hours=1), timedelta(minutes=5), START)
    sums = windowing.fold_window(
        "sum",
        stream,
        clock,
        windower,
        float,
        lambda total, event: total + event[1],
        lambda one, other: one + other,
        ordered=False,
    )
    op.output("nowhere", sums.down, Nowhere())
    return flow


def main(n: int, n_keys: int) -> None:
    from bytewax import testing

    keys = (Events().keys(n) % n_keys).tolist()
    items = [(f"c{key:05d}", (START + i * SPACING, float(i))) for i, key in enumerate(keys)]
    flow = _dataflow(items)
    wall, cpu = time.perf_counter(), time.process_time()
    run: Any = testing.run_main
    run(flow)
    found = {"per_core": n / (time.process_time() - cpu), "per_wall": n / (time.perf_counter() - wall)}
    print(orjson.dumps(found).decode())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
