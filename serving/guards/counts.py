"""What the guards count, for Prometheus."""

from __future__ import annotations

from collections import Counter as Counting

from prometheus_client import CollectorRegistry, Counter, Gauge

from headrace.read.online.results import LookupResult

__all__ = ["GuardCounts"]


class GuardCounts:
    """The instruments of one server's guards."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.degraded = Counter(
            "headrace_degraded_values",
            "Values that did not come from the store.",
            ("view", "tier"),
            registry=registry,
        )
        self.late = Counter(
            "headrace_deadline_exceeded",
            "Requests answered at their deadline, without the store.",
            ("route",),
            registry=registry,
        )
        self.shed = Counter(
            "headrace_shed_requests", "Requests refused under overload.", ("priority", "reason"), registry=registry
        )
        self.refused = Counter(
            "headrace_refused_requests", "Requests refused for who asked.", ("reason",), registry=registry
        )
        self.breaker = Gauge(
            "headrace_breaker_open",
            "1 while nothing is asked of a shard of the store.",
            ("shard",),
            registry=registry,
            multiprocess_mode="livemax",
        )

    def count_degraded(self, result: LookupResult) -> None:
        """The values of a degraded answer that did not come from the store."""
        for number, step in enumerate(result.plan.steps):
            for tier, rows in Counting(row[number].name for row in result.tiers).items():
                if tier != "store":
                    self.degraded.labels(step.view.name, tier).inc(rows * len(step.view.features))
