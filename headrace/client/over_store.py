"""Requests answered in this process, by the lookup that the server runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import orjson
import pyarrow as pa
import redis
import redis.asyncio

from headrace.catalog.definitions import Catalog, Source, catalog_from_json
from headrace.client.arguments import ARROW, NDJSON
from headrace.client.retries import Again
from headrace.client.vectors import FeatureVectors, Predictions, Pushed
from headrace.compute.columns import parse_moment
from headrace.errors import RequestError, SettingsError, StreamFullError, UnavailableError
from headrace.read.lookup import LookupPlan, LookupResult, lookup, parse_request, plan_features, plan_service
from headrace.read.online.full_metadata import full_metadata
from headrace.read.online.vector_batches import METADATA, vector_batch
from headrace.read.served_models import find_model
from headrace.settings import Settings
from headrace.stores.appends import append_batches
from headrace.stores.catalogs import find_project, load_catalog
from headrace.stores.connection import open_store, open_store_async
from headrace.stores.keys import catalog_key
from headrace.stores.models import Champions
from headrace.stores.multiplexed import SharedConnection
from headrace.stores.payloads import Batch, arrow_batches, ndjson_batches, refuse_topic

__all__ = ["StoreBackend"]

CATALOG_S = 1.0
"""How long a catalog is used before the store is asked again: what it names is kept up to date ten minutes longer."""
MOST_PLANS = 1_000
_SPLIT: dict[str, Callable[[Source, bytes], list[Batch]]] = {ARROW: arrow_batches, NDJSON: ndjson_batches}

Answer = TypeVar("Answer")


class StoreBackend:
    """The online store and the catalog of one project, for one event loop. Errors that may pass are raised as Again."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for a set-up that cannot work, UnavailableError before the first apply."""
        with contextlib.closing(open_store(settings)) as store:
            self._catalog: Catalog = load_catalog(store, find_project(settings))
        if settings.clock not in (None, self._catalog.clock):
            raise SettingsError(
                f"HEADRACE_CLOCK must be the catalog's, got {settings.clock!r} where the catalog has "
                f"{self._catalog.clock!r}; unset it."
            )
        self._settings = settings
        self._store = open_store_async(settings)
        opened: Any = self._store
        is_cluster = isinstance(opened, redis.asyncio.RedisCluster)
        self._reads: redis.asyncio.Redis | SharedConnection = opened if is_cluster else SharedConnection(opened)
        self._champions = Champions(settings.data_dir)
        self._plans: dict[tuple[Any, ...], LookupPlan] = {}
        self._asked_s = time.monotonic()

    async def get(self, body: Mapping[str, Any], full: bool) -> FeatureVectors:
        """A lookup's answer."""
        result = await self._look_up(body.get("feature_service"), body)
        batch = vector_batch(result)
        if full:
            described = {**batch.schema.metadata, METADATA: orjson.dumps(full_metadata(result))}
            batch = batch.replace_schema_metadata(described)
        return FeatureVectors(batch)

    async def predict(self, body: Mapping[str, Any]) -> Predictions:
        """Scores of a model."""
        await self._refresh()
        asked = (
            self._champions,
            self._settings.data_dir,
            self._catalog,
            body.get("model"),
            body.get("feature_service"),
        )
        model = await _passing(asyncio.to_thread(find_model, *asked))
        result = await self._look_up(model.manifest.service, {**body, "full_feature_names": True})
        columns = dict(zip(result.names, result.columns, strict=True))
        scores = await asyncio.to_thread(model.predict_proba, columns)
        moments = pa.array(result.t_us).cast(pa.timestamp("us", "UTC")).to_pylist()
        return Predictions(model.manifest.name, model.manifest.version, scores, moments)

    async def push(self, source: str, kind: str, body: bytes) -> Pushed:
        """Appends events."""
        await self._refresh()
        target = self._catalog.source(source)
        refuse_topic(target)
        batches = _SPLIT[kind](target, body)
        budget = self._settings.stream_budget
        ends = await _passing(append_batches(self._store, self._catalog, target, batches, budget))
        return Pushed(sum(batch.count for batch in batches), ends)

    async def aclose(self) -> None:
        if isinstance(self._reads, SharedConnection):
            await self._reads.aclose()
        await self._store.aclose()

    async def _look_up(self, service: str | None, body: Mapping[str, Any]) -> LookupResult:
        await self._refresh()
        plan = self._plan(service, body.get("features", []), body.get("full_feature_names", False))
        request = parse_request(plan, body["entities"], self._settings.max_rows)
        as_of_us, now_us = parse_moment(body.get("as_of")), time.time_ns() // 1_000
        result: LookupResult = await _passing(lookup(self._reads, plan, request, as_of_us, now_us))
        return result

    def _plan(self, service: str | None, features: list[str], full_names: bool) -> LookupPlan:
        key = (service, tuple(features), full_names)
        plan = self._plans.get(key)
        if plan is None:
            make: Callable[..., LookupPlan] = plan_features if service is None else plan_service
            plan = make(self._catalog, features if service is None else service, full_names)
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    async def _refresh(self) -> None:
        """Takes what apply has written meanwhile: nothing is answered by a catalog that is older than a second."""
        asked_s = time.monotonic()
        if asked_s - self._asked_s <= CATALOG_S:
            return
        raw = await _passing(self._store.get(catalog_key(self._catalog.project)))
        if raw is None:
            raise Again(UnavailableError(f"The online store holds no catalog of {self._catalog.project!r} any more."))
        catalog = catalog_from_json(raw)
        if catalog != self._catalog:
            self._catalog, self._plans = catalog, {}
        self._asked_s = asked_s


async def _passing(call: Any) -> Any:
    """What `call` gives; what may be over in a moment is raised as Again."""
    try:
        return await call
    except StreamFullError as error:
        raise Again(error, error.retry_after_s) from error
    except UnavailableError as error:
        raise Again(error) from error
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        raise Again(UnavailableError(f"The online store does not answer ({error}); see that it runs.")) from error
    except redis.RedisError as error:
        raise RequestError(f"The online store refuses the request: {error}.") from error
