"""What the handlers share: settings, the store, the catalog in force, plans, models and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import threading
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import redis
import redis.asyncio
from fastapi import FastAPI, Request

from headrace.catalog.definitions import Catalog, catalog_from_json
from headrace.errors import HeadraceError, SettingsError, UnavailableError
from headrace.read.lookup import LookupPlan, fetch
from headrace.read.online.degraded import Degraded
from headrace.read.online.kept import KeptValues
from headrace.read.online.reads import Asked
from headrace.settings import Settings
from headrace.stores.catalogs import find_project, load_catalog
from headrace.stores.connection import open_store, open_store_async
from headrace.stores.keys import catalog_key
from headrace.stores.models import Champions
from headrace.stores.multiplexed import OnDone, SharedConnection
from headrace.telemetry import get_logger
from serving.feature_log import FeatureLog
from serving.guards.access import Access
from serving.guards.admission import Admission
from serving.guards.breaker import FAILURES, Breaker
from serving.guards.counts import GuardCounts
from serving.guards.deadlines import Deadlines
from serving.metrics import Metrics
from serving.plans import Plans
from serving.topic_heads import TopicHeads

__all__ = ["ServerState", "open_catalog", "open_state", "state_of"]

CATALOG_POLL_S = 1.0
CONFIRM_S = 300.0

log = get_logger()


class ServerState:
    """One server's state; only the event loop touches it."""

    def __init__(self, settings: Settings, store: redis.asyncio.Redis, catalog: Catalog) -> None:
        self.settings = settings
        self.store = store
        self.reads = shared_reads(store)
        self.catalog = catalog
        self.plans = Plans(catalog)
        self.problem: str | None = None
        self.metrics = Metrics()
        self.guards = GuardCounts(self.metrics.registry)
        self.feature_log = FeatureLog(settings.feature_log_rows, self.metrics.registry)
        self.access = Access(settings)
        self.admission = Admission(settings.max_under_way, settings.shed_lag_ms / 1e3)
        self.deadlines, self.deadline_s = Deadlines(), settings.deadline_ms / 1e3
        # one shard of a cluster that fails must not keep requests from the others
        failures = FAILURES if isinstance(self.reads, SharedConnection) else math.inf
        self.breaker = Breaker(lambda is_open: self.guards.breaker.labels("0").set(is_open), failures)
        self.degraded = Degraded(KeptValues(settings.kept_keys), int(settings.max_staleness * 1e6))
        self.champions = Champions(settings.data_dir)
        self.topic_heads = TopicHeads(settings)
        self._confirmed_s = time.monotonic()
        self.stopping = asyncio.Event()
        self._asking: set[asyncio.Task[None]] = set()

    def use(self, catalog: Catalog, plans: Plans) -> None:
        """Answer from `catalog` from now on, by its `plans`; requests under way keep the one they began with."""
        self.problem = clock_problem(self.settings, catalog)
        if self.problem is None:
            self.catalog, self.plans = catalog, plans

    def ask(self, plan: LookupPlan, asked: Asked, packed: bytes, replies: int, on_done: OnDone) -> None:
        """Sends what `plan.reads.pack(asked)` gave; `on_done` gets the replies, or an exception."""
        if isinstance(self.reads, SharedConnection):
            self.reads.submit(packed, replies, on_done)
        else:
            task = asyncio.get_running_loop().create_task(fetch_into(self.reads, plan, asked, on_done))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def follow_catalog(self) -> None:
        """Take every catalog that apply writes, until `stop_following`."""
        key, seen = catalog_key(self.catalog.project), b""
        while not self.stopping.is_set():
            asked_s = time.monotonic()
            self.access.reload()
            try:
                raw = await self.store.get(key)
                if raw is not None and raw != seen:
                    await self._take(catalog_from_json(raw))
                    seen = raw
                if raw is not None:
                    self._confirmed_s = asked_s
            except (redis.RedisError, HeadraceError, ValueError) as error:
                log.warning("the catalog could not be read", error=str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), CATALOG_POLL_S)

    def unconfirmed(self) -> str | None:
        """Why this server must not answer by its catalog any more, None while it may: what a later catalog no longer
        names is swept some time after."""
        ago_s = time.monotonic() - self._confirmed_s
        if ago_s <= CONFIRM_S:
            return None
        return (
            f"A server answers by a catalog that it has confirmed within {CONFIRM_S:g} s, and it last could "
            f"{ago_s:.0f} s ago; see that the online store answers and holds the catalog (headrace doctor)."
        )

    def refuse_unconfirmed(self) -> None:
        """Raises UnavailableError if `unconfirmed`. To be called after a lookup, which may have slept."""
        problem = self.unconfirmed()
        if problem is not None:
            raise UnavailableError(problem)

    async def stop_following(self, following: asyncio.Task[None]) -> None:
        """End the task that follows the catalog. Cancelling alone may not: the Redis client can take a cancellation
        that meets a failing connection for a failure of that, and the task would go on for ever."""
        self.stopping.set()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    async def _take(self, catalog: Catalog) -> None:
        if catalog == self.catalog:
            return
        self.use(catalog, await asyncio.to_thread(Plans, catalog))
        log.info("catalog changed", version=catalog.version, problem=self.problem)


async def fetch_into(store: redis.asyncio.Redis, plan: LookupPlan, asked: Asked, on_done: OnDone) -> None:
    """As `fetch`, for whoever waits with a callback: it is told whatever became of it."""
    try:
        replies = await fetch(store, plan, asked)
    except OSError as error:
        on_done(redis.ConnectionError(str(error)))
    except Exception as error:
        on_done(error)
    else:
        on_done(replies)


def shared_reads(store: Any) -> redis.asyncio.Redis | SharedConnection:
    """What lookups ask: one connection that they share; of a cluster its client, which has one to every node."""
    if isinstance(store, redis.asyncio.RedisCluster):
        return cast(redis.asyncio.Redis, store)
    return SharedConnection(store)


def clock_problem(settings: Settings, catalog: Catalog) -> str | None:
    """Why this process cannot serve `catalog`, None when it can."""
    if settings.clock is None or settings.clock == catalog.clock:
        return None
    return (
        f"HEADRACE_CLOCK must be the catalog's, got {settings.clock!r} where the catalog has {catalog.clock!r}; "
        "unset it, or run headrace apply with the clock you want."
    )


def open_state(settings: Settings) -> ServerState:
    """Reads the catalog and checks the set-up. Raises SettingsError or UnavailableError with the remedy."""
    with contextlib.closing(open_store(settings)) as store:
        catalog = open_catalog(settings, store)
    return ServerState(settings, open_store_async(settings), catalog)


def open_catalog(settings: Settings, store: redis.Redis) -> Catalog:
    """The catalog to serve. Raises SettingsError or UnavailableError with the remedy."""
    catalog = load_catalog(store, find_project(settings))
    problem = clock_problem(settings, catalog)
    if problem:
        raise SettingsError(problem)
    return catalog


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Follow the catalog and warm the models up while the app runs."""
    state: ServerState = app.state.headrace
    following = asyncio.create_task(state.follow_catalog())
    logging = asyncio.create_task(state.feature_log.run(state.store, state.catalog.project, state.stopping))
    threading.Thread(target=warm_up, daemon=True).start()  # a daemon: stopping does not wait for imports
    try:
        yield
    finally:
        await state.stop_following(following)
        await asyncio.gather(logging, return_exceptions=True)
        state.topic_heads.close()
        if isinstance(state.reads, SharedConnection):
            await state.reads.aclose()
        await state.store.aclose()


def warm_up() -> None:
    """Import what the first prediction needs; it costs seconds."""
    started = time.perf_counter()
    import pandas  # noqa: F401
    import sklearn.linear_model
    import sklearn.pipeline  # noqa: F401
    import skops.io

    log.debug("models can be loaded", seconds=round(time.perf_counter() - started, 2), skops=bool(skops.io))
    gc.freeze()  # modules live as long as the process: going through all of them again would hold up requests


def state_of(request: Request) -> ServerState:
    state: ServerState = request.app.state.headrace
    return state


def now_us() -> int:
    """The wall clock in microseconds."""
    return time.time_ns() // 1_000
