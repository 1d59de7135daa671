"""What the server counts, for Prometheus. Every label has few values: routes, statuses, sources of the catalog."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.values import ValueClass
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.read.lookup import LookupResult
from headrace.stores.counters import Counted

__all__ = ["Metrics", "MetricsMiddleware"]

disable_created_metrics()  # type: ignore[no-untyped-call]  # one series instead of two per counter

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """The instruments of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("headrace_requests", "Requests answered.", ("route", "status"), registry=self.registry)
        self.latency = Histogram(
            "headrace_request_seconds",
            "Time from a request's head to the end of its reply.",
            ("route",),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.rows = Counter("headrace_lookup_rows", "Rows looked up.", registry=self.registry)
        self.out_of_range = Counter(
            "headrace_out_of_range_values",
            "Values answered as null because their type, or the bound of a distinct count, cannot hold them.",
            ("view", "feature"),
            registry=self.registry,
        )
        self.predictions = Counter("headrace_predictions", "Rows scored.", ("model",), registry=self.registry)
        self.pushed = Counter(
            "headrace_pushed_events", "Events taken into the stream.", ("source",), registry=self.registry
        )

        self._answered: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def render(self, worker: Mapping[Counted, int]) -> bytes:
        """All of them, of all server processes of one address, and what the worker has counted, in Prometheus' text
        format."""
        theirs = CollectorRegistry()
        theirs.register(_WorkerCounts(worker))
        return generate_latest(self._shared()) + generate_latest(theirs)

    def _shared(self) -> CollectorRegistry:
        """What all processes count that share a folder of counts (see workers.py), else what this one does."""
        if not ValueClass._multiprocess:
            return self.registry
        shared = CollectorRegistry()
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return shared

    def observe(self, route: str, status: int, seconds: float) -> None:
        found = self._answered.get((route, status))
        if found is None:
            found = self.requests.labels(route, str(status)), self.latency.labels(route)
            self._answered[route, status] = found
        requests, latency = found
        requests.inc()
        latency.observe(seconds)

    def looked_up(self, result: LookupResult) -> None:
        """Count the rows of one lookup and what of them is out of range."""
        self.rows.inc(result.request.rows)
        for labels, n in result.out_of_range.items():
            self.out_of_range.labels(*labels).inc(n)


class _WorkerCounts(Collector):
    """The worker's counters: events by source, and by view, with their outcome."""

    def __init__(self, counts: Mapping[Counted, int]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily]:
        for kind in ("source", "view"):
            family = CounterMetricFamily(
                f"headrace_{kind}_events", f"Events by {kind} and outcome.", labels=(kind, "outcome", "column", "rule")
            )
            for (counted, *labels), n in sorted(self._counts.items()):
                if counted == kind:
                    family.add_metric(labels, n)
            yield family


class MetricsMiddleware:
    """Counts and times every request by its route; a path that matches none counts as `other`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = time.perf_counter()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.observe(route, status, time.perf_counter() - started)
