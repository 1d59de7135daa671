"""The jobs of `headrace.toml`: run one now, or all of them on their crons.

The scheduler runs every job in a process of its own (`headrace jobs run NAME`), so that a training neither holds the
scheduler's memory nor its stop, and a job does the same by hand and by cron.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from headrace.settings import Settings
from headrace.telemetry import get_logger
from training.config import Job, load_config
from training.runs import RunRecords

__all__ = ["next_run", "run_job", "run_scheduler"]

MISFIRE_GRACE_S = 3_600
STOP_S = 10.0

log = get_logger()


def run_job(settings: Settings, job: Job) -> str:
    """Run `job` here and record it; returns what it did. What it raises is recorded and raised again.

    Raises UnavailableError while another process runs the same job. SIGTERM stops it, which is recorded too.
    """
    records = RunRecords(settings.data_dir)
    run = records.begin(job.name)
    try:
        with _sigterm_as_exit():
            message = _KINDS[job.kind](settings, job)
    except (SystemExit, KeyboardInterrupt):
        records.end(run, "stopped", "stopped by a signal")
        raise
    except Exception as error:
        records.end(run, "failed", f"{type(error).__name__}: {error}")
        raise
    records.end(run, "done", message)
    return message


def next_run(job: Job, now: datetime) -> datetime | None:
    """When the cron of `job` fires next after `now` (both UTC)."""
    fires: datetime | None = _trigger(job).get_next_fire_time(None, now)
    return fires


def run_scheduler(settings: Settings, stop: threading.Event | None = None) -> None:
    """Run the repo's jobs on their crons until `stop` is set (without one: until SIGTERM or SIGINT), then stop them.

    A firing missed by up to an hour (a busy or sleeping machine) is made up once. Raises DefinitionError for a
    headrace.toml that cannot work.
    """
    from apscheduler.executors.pool import ThreadPoolExecutor
    from apscheduler.schedulers.background import BackgroundScheduler

    jobs = load_config(settings.repo).jobs
    stop = stop or _stopped_by_signals()
    children = _Children(settings)
    defaults = {"coalesce": True, "max_instances": 1, "misfire_grace_time": MISFIRE_GRACE_S}
    executors = {"default": ThreadPoolExecutor(max(1, len(jobs)))}
    scheduler = BackgroundScheduler(timezone=UTC, job_defaults=defaults, executors=executors)
    for job in jobs.values():
        scheduler.add_job(children.run, _trigger(job), args=[job], id=job.name)
        log.info("job scheduled", job=job.name, cron=job.cron, next=str(next_run(job, datetime.now(UTC))))
    scheduler.start()
    try:
        stop.wait()
    finally:
        scheduler.pause()
        children.stop()
        scheduler.shutdown(wait=True)


class _Children:
    """The processes of the jobs that run now; stopped together."""

    def __init__(self, settings: Settings) -> None:
        self._environment = {**os.environ, **_as_environment(settings)}
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopping = False

    def run(self, job: Job) -> None:
        """Run a job's process to its end; what it did stands in the run records, a failure in the log too."""
        with self._lock:
            if self._stopping:
                return
            # A session of its own: Ctrl-C in the terminal reaches the scheduler alone, which stops its children.
            child = subprocess.Popen(
                _command(job),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._running.add(child)
        _, errors = child.communicate()
        with self._lock:
            self._running.discard(child)
        if child.returncode == 0:
            log.info("job done", job=job.name)
        elif not self._stopping:
            log.error("job failed", job=job.name, exit=child.returncode, error=errors.decode(errors="replace")[-2_000:])

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL to those that have not ended after STOP_S."""
        with self._lock:
            self._stopping = True
            running = list(self._running)
        for child in running:
            child.terminate()
        for child in running:
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()


def _command(job: Job) -> list[str]:
    return [sys.executable, "-P", "-m", "headrace", "jobs", "run", job.name]


def _materialize(settings: Settings, job: Job) -> str:
    from materialize.batch import materialize_view

    keys = materialize_view(settings, str(job.target), None, None)
    return f"{job.target}: {keys:,} keys"


def _compact(settings: Settings, job: Job) -> str:
    from headrace.stores.catalogs import find_project, load_catalog
    from headrace.stores.connection import open_store
    from headrace.stores.orders import order_compaction

    project = find_project(settings)
    store = open_store(settings)
    try:
        sources = load_catalog(store, project).sources
        return "; ".join(f"{source.name}: {order_compaction(store, project, source.name)}" for source in sources)
    finally:
        store.close()


def _retrain(settings: Settings, job: Job) -> str:
    from training.fit import beats_chance, train

    manifest = train(settings, load_config(settings.repo).model(str(job.target)))
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in manifest.metrics.items())
    kept = "" if beats_chance(manifest) else ", not promoted: no better than chance"
    return f"{manifest.name} version {manifest.version}{kept}: {metrics}"


_KINDS = {"materialize": _materialize, "compact": _compact, "retrain": _retrain}


def _trigger(job: Job) -> Any:
    from apscheduler.triggers.cron import CronTrigger

    return CronTrigger.from_crontab(job.cron, timezone=UTC)


def _as_environment(settings: Settings) -> dict[str, str]:
    """The settings as variables, so that a child has the ones this process was given."""
    values = settings.model_dump()
    paths = {name: str(value.resolve()) for name, value in values.items() if name in ("repo", "data_dir")}
    given = {name: str(value) for name, value in values.items() if value is not None}
    return {f"HEADRACE_{name.upper()}": value for name, value in (given | paths).items()}


def _stopped_by_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """SIGTERM raises SystemExit inside the block, where signals can be caught (the main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
