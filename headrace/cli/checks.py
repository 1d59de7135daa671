"""The checks of `headrace doctor`, one function per part; each finding says what is and what to mend."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from headrace.cli.common import counted
from headrace.errors import HeadraceError
from headrace.settings import Settings

if TYPE_CHECKING:
    import redis

    from headrace.catalog.definitions import Catalog, Source
    from headrace.stores.logs import Logs
    from headrace.stores.markers import Markers

__all__ = ["Finding", "run_checks"]

Level = Literal["ok", "warn", "fail"]
_SMALL_DISK_BYTES = 1 << 30
_APPLY = "run headrace apply"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: `part` names what was looked at, `text` says what is and what to do."""

    level: Level
    part: str
    text: str

    def as_plain(self) -> dict[str, str]:
        return asdict(self)


def run_checks(settings: Settings, url: str | None = None) -> list[Finding]:
    """All findings, of the server at `url` (unset: the one that runs over the data directory, else the configured
    address); a check that another's failure makes impossible is left out. Starts no store for a folder of no project.
    """
    from headrace.stores.catalogs import find_project, load_catalog

    found = [*_guard("definitions", lambda: _definitions(settings)), *_guard("data directory", lambda: _disk(settings))]
    try:
        project = find_project(settings)
    except HeadraceError:
        return found
    if settings.redis_url is None and not (settings.data_dir / "store").is_dir():
        return [*found, Finding("fail", "catalog", f"nothing was applied yet in {settings.data_dir}; {_APPLY}.")]
    try:
        from headrace.stores.connection import open_store

        store = open_store(settings)
    except HeadraceError as error:
        return [*found, Finding("fail", "online store", str(error))]
    found += _guard("online store", lambda: _store(store, settings))
    try:
        catalog = load_catalog(store, project)
    except HeadraceError as error:
        return [*found, Finding("fail", "catalog", str(error))]
    found += _guard("catalog", lambda: _catalog(catalog, settings))
    found += _guard("views", lambda: _views(store, catalog))
    found += _guard("worker", lambda: _worker(store, catalog))
    found += _guard("streams", lambda: _streams(store, catalog, settings))
    found += _guard("dead letters", lambda: _dead_letters(settings, catalog))
    found += _guard("models", lambda: _models(settings, catalog))
    return [*found, *_guard("server", lambda: _server(settings, url))]


def _guard(part: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except (HeadraceError, OSError) as error:
        return [Finding("fail", part, str(error))]


def _definitions(settings: Settings) -> Iterator[Finding]:
    from headrace.catalog.project import CONFIG_FILE, read_config

    config = read_config(settings.repo)
    yield Finding("ok", "definitions", f"project {config['project']} in {settings.repo / CONFIG_FILE}")


def _disk(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK):
        yield Finding("fail", "data directory", f"{there} cannot be written; choose another HEADRACE_DATA_DIR.")
        return
    free = shutil.disk_usage(there).free
    level: Level = "ok" if free >= _SMALL_DISK_BYTES else "warn"
    yield Finding(level, "data directory", f"{folder}, {free / 1e9:.1f} GB free")


def _store(store: redis.Redis, settings: Settings) -> Iterator[Finding]:
    import redis as client

    from headrace.stores.connection import store_url

    info: dict[str, object] = store.info()  # type: ignore[assignment]
    name = f"{store_url(settings)}, version {info.get('redis_version')}, {info.get('used_memory_human')} used"
    yield Finding("ok", "online store", name)
    try:
        held: dict[str, str] = store.config_get("append*")  # type: ignore[assignment]
    except client.ResponseError:
        yield Finding("warn", "durability", "the store hides its settings; see that appendonly is yes.")
        return
    plain = {_text(key): _text(value) for key, value in held.items()}
    if plain.get("appendonly") != "yes":
        yield Finding("warn", "durability", "appendonly is off: a restart of the store loses acknowledged events.")
    else:
        yield Finding("ok", "durability", f"appendonly yes, appendfsync {plain.get('appendfsync')}")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _catalog(catalog: Catalog, settings: Settings) -> Iterator[Finding]:
    if settings.clock is not None and settings.clock != catalog.clock:
        yield Finding(
            "fail",
            "catalog",
            f"HEADRACE_CLOCK is {settings.clock!r}, the catalog was applied with {catalog.clock!r}; unset one.",
        )
    parts = ((catalog.sources, "source"), (catalog.views, "view"), (catalog.services, "service"))
    counts = ", ".join(counted(len(items), word) for items, word in parts)
    yield Finding("ok", "catalog", f"project {catalog.project}, version {catalog.version}: {counts}")


def _views(store: redis.Redis, catalog: Catalog) -> Iterator[Finding]:
    from headrace.stores.markers import Markers

    markers = Markers(store, catalog.project)
    missing = [view.name for view in catalog.views if markers.ready(view) is None]
    if missing:
        yield Finding("warn", "views", f"not ready: {', '.join(missing)}; see that a worker runs (headrace up).")
    else:
        yield Finding("ok", "views", f"all {len(catalog.views)} ready")
    yield from _layouts(store, catalog)


def _layouts(store: redis.Redis, catalog: Catalog) -> Iterator[Finding]:
    from headrace.cli.layouts_shown import layouts_beside
    from materialize.changing import changed_by

    by = changed_by(store, catalog.project)
    for layout in layouts_beside(catalog):
        what = f"layout of {layout.view}"
        if layout.state == "retiring":
            yield Finding("ok", what, f"{layout} by a worker")
        elif by is not None:
            yield Finding("ok", what, f"{layout} is being built by {by}")
        else:
            again = f"nobody builds it; go on with headrace rebuild {layout.view} (or headrace apply --rebuild)."
            yield Finding("warn", what, f"{layout} was begun, and {again}")


def _streams(store: redis.Redis, catalog: Catalog, settings: Settings) -> Iterator[Finding]:
    from headrace.stores.logs import Logs
    from headrace.stores.markers import Markers, import_places, places
    from headrace.stores.stream import EventStream

    names = [(source.name, partition) for source, partition in places(catalog)]
    stream, markers = EventStream(store, catalog.project), Markers(store, catalog.project)
    applied, archived = markers.applied("source", names), markers.applied("archived", names)
    with closing(Logs(stream, catalog, settings)) as logs:
        heads = logs.heads(names)
        for source in catalog.sources:
            yield from _topic(logs, source, (source.name, 0) in heads)
    yield from _imports(markers, [(source.name, partition) for source, partition in import_places(catalog)])
    for place in names:
        yield from _stopped(store, catalog, place)
        if place not in heads:
            continue
        head = heads[place]
        oldest = stream.oldest(*place) if head and head.arrived_us is None else None
        if head and oldest and head.bytes - oldest.bytes > 0.8 * settings.stream_budget:
            used = f"{head.bytes - oldest.bytes:,} of {settings.stream_budget:,} bytes of its budget are used"
            text = f"{used}; past it pushes are refused: see that worker and archiver keep up"
            yield Finding("warn", f"stream {place[0]}", f"{text}, or raise HEADRACE_STREAM_BUDGET.")
        total = head.total if head else 0
        behind = {
            who: total - (mark.total if mark else 0)
            for who, mark in (("worker", applied[place]), ("archiver", archived[place]))
        }
        late = {who: lag for who, lag in behind.items() if lag > 0}
        if late:
            text = ", ".join(f"{who} {counted(lag, 'event')} behind" for who, lag in late.items())
            yield Finding("warn", f"stream {place[0]}", f"{text}; see that both run.")
        elif head:
            yield Finding("ok", f"stream {place[0]}", f"{counted(total, 'event')}, all applied and archived")


def _topic(logs: Logs, source: Source, answers: bool) -> Iterator[Finding]:
    """What is wrong with the topic of a source, if it has one."""
    if source.kafka is None:
        return
    if not answers:
        what = f"the topic {source.kafka.topic!r} at {source.kafka.servers} does not answer"
        yield Finding("warn", f"stream {source.name}", f"{what}; start its broker or correct HEADRACE_KAFKA_*.")
        return
    unread = logs.topics.unread(source.name)
    if unread:
        yield Finding("fail", f"stream {source.name}", unread)


def _imports(markers: Markers, places: list[tuple[str, int]]) -> Iterator[Finding]:
    """Imports that the views do not hold yet."""
    applied, archived = markers.applied("source", places), markers.applied("archived", places)
    for place, mark in archived.items():
        done = applied[place]
        if mark is not None and (done is None or done.offset < mark.offset):
            lag = max(mark.total - (done.total if done else 0), 0)
            text = f"worker {counted(lag, 'imported event')} behind; see that it runs."
            yield Finding("warn", f"stream {place[0]}", text)


def _stopped(store: redis.Redis, catalog: Catalog, place: tuple[str, int]) -> Iterator[Finding]:
    """What worker and archiver say that they stopped at."""
    from headrace.stores.gaps import ROLES, gap_field
    from headrace.stores.keys import markers_key

    texts: list[bytes | None] = store.hmget(  # type: ignore[assignment]
        markers_key(catalog.project), [gap_field(role, *place) for role in ROLES]
    )
    for role, text in zip(ROLES, texts, strict=True):
        if text is not None:
            yield Finding("fail", f"stream {place[0]}", f"the {role} has stopped: {text.decode()}")


def _worker(store: redis.Redis, catalog: Catalog) -> Iterator[Finding]:
    from materialize.lease import holder

    found = holder(store, catalog.project, "worker")
    if found is None:
        yield Finding("warn", "worker", "none is at work; start one (headrace up, headrace worker).")
    else:
        yield Finding("ok", "worker", f"{found} is at work")


def _dead_letters(settings: Settings, catalog: Catalog) -> Iterator[Finding]:
    from headrace.stores.keys import layout_field
    from headrace.stores.offline import OfflineStore

    layouts = {layout_field(view): view.name for view in catalog.views}
    for (source, layout), count in OfflineStore(settings.data_dir).dead_letter_counts().items():
        if layout is None or layout in layouts:
            where = "in no view" if layout is None else f"left out by view {layouts[layout]}"
            text = f"{counted(count, 'event')} {where}; see why: headrace dead-letters --source {source}"
            yield Finding("warn", f"dead letters of {source}", text)


def _models(settings: Settings, catalog: Catalog) -> Iterator[Finding]:
    from headrace.read.model_fit import misfits
    from headrace.stores.models import champion_manifests

    broken = misfits(settings.data_dir, catalog)
    for manifest in champion_manifests(settings.data_dir):
        if manifest.name in broken:
            yield Finding("warn", "model", f"{broken[manifest.name]}. Until then /predict answers 503.")
        else:
            yield Finding("ok", "model", f"{manifest.name} version {manifest.version}, of {manifest.service}")


def _server(settings: Settings, url: str | None) -> Iterator[Finding]:
    from headrace.cli.server_file import running_server, trusting

    url = url or running_server(settings) or f"http://{settings.host}:{settings.port}"
    url = f"{url.rstrip('/')}/ready"
    try:
        with urllib.request.urlopen(url, timeout=2, context=trusting(settings)) as reply:
            yield Finding("ok", "server", f"{url} answers {reply.status}")
    except urllib.error.HTTPError as error:
        yield Finding("warn", "server", f"{url} answers {error.code}: {error.read(500).decode(errors='replace')}")
    except (OSError, ValueError):
        yield Finding(
            "warn", "server", f"nobody listens at {url}; start it (headrace up, headrace serve), or name it by --url."
        )
