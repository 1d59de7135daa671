"""The plans of one catalog: those of its services made beforehand, those of references when first asked for."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.catalog.definitions import Catalog
from headrace.errors import RequestError
from headrace.read.lookup import LookupPlan, LookupResult, plan_features, plan_service
from serving.json_replies import ReplyWriter
from serving.replies import Timestamps

__all__ = ["Plans", "ServedPlan"]

MOST_REFERENCES = 1_000
"""Plans of references that are kept; beyond, the oldest goes."""

Key = tuple[str | None, tuple[str, ...], bool]


class ServedPlan:
    """A plan, what writes its replies, and, of a service, its name and the share of its answers that are logged."""

    def __init__(self, plan: LookupPlan, service: str = "") -> None:
        self.plan, self.service = plan, service
        self.log_rate = plan.catalog.service(service).log_rate if service else 0.0
        self._writers: dict[Timestamps, ReplyWriter] = {"seconds": ReplyWriter(plan)}

    def write(self, result: LookupResult, full: bool = False, times: Timestamps = "seconds") -> bytes:
        """The reply as JSON; see ReplyWriter."""
        writer = self._writers.get(times)
        if writer is None:
            writer = self._writers[times] = ReplyWriter(self.plan, times)
        return writer.write(result, full)


class Plans:
    """The plans of `catalog`; whoever has one may go on using it when the catalog is no longer in force."""

    def __init__(self, catalog: Catalog) -> None:
        """Compiles every service. It may take a while: user functions are loaded."""
        self._catalog = catalog
        self._services: dict[Key, ServedPlan] = {}
        self._references: dict[Key, ServedPlan] = {}
        for service in catalog.services:
            for full in (False, True):
                self._compile(service.name, full)

    def _compile(self, service: str, full: bool) -> None:
        try:
            plan = plan_service(self._catalog, service, full)
        except RequestError:
            return  # short names collide: who asks is told
        plan.prepare()
        self._services[service, (), full] = ServedPlan(plan, service)

    def of(self, service: str | None, features: Sequence[str], full_names: bool) -> ServedPlan:
        """The plan of a request that names a service, or features if `service` is None. Raises UnknownNameError,
        RequestError."""
        key: Key = (service, tuple(features), full_names)
        found = self._services.get(key) or self._references.get(key)
        if found is None:
            if service is not None:
                return ServedPlan(plan_service(self._catalog, service, full_names), service)
            found = ServedPlan(plan_features(self._catalog, features, full_names))
            if len(self._references) >= MOST_REFERENCES:
                del self._references[next(iter(self._references))]
            self._references[key] = found
        return found
