"""What the jobs did: one row per run in `DATA_DIR/jobs.db` (SQLite), kept across restarts."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headrace.errors import UnavailableError

__all__ = ["Outcome", "Run", "RunRecords"]

Outcome = Literal["running", "done", "failed", "stopped", "lost"]

_TABLE = """
create table if not exists runs (
  id integer primary key,
  job text not null,
  started_us integer not null,
  ended_us integer,
  outcome text not null,
  message text not null,
  pid integer not null
)
"""
_COLUMNS = "id, job, started_us, ended_us, outcome, message, pid"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a job. Outcome: running, done, failed, stopped (by a signal), lost (its process ended without a word).

    Times are microseconds UTC; `ended_us` is None while it runs and when it was lost.
    """

    id: int
    job: str
    started_us: int
    ended_us: int | None
    outcome: Outcome
    message: str
    pid: int


class RunRecords:
    """The records of one data directory; any number of processes may read and write them."""

    def __init__(self, data_dir: Path) -> None:
        self.path = Path(data_dir) / "jobs.db"

    def begin(self, job: str) -> int:
        """Record that this process starts `job`; raises UnavailableError while another one runs it."""
        with self._open() as db:
            db.execute("begin immediate")
            _mark_lost(db)
            busy = db.execute("select pid from runs where job = ? and outcome = 'running'", (job,)).fetchone()
            if busy:
                raise UnavailableError(f"One run of a job at a time: process {busy[0]} runs {job!r}; wait for its end.")
            row = (job, _now_us(), os.getpid())
            added = db.execute(
                "insert into runs (job, started_us, outcome, message, pid) values (?, ?, 'running', '', ?)", row
            )
            return int(added.lastrowid or 0)

    def end(self, run: int, outcome: Outcome, message: str) -> None:
        """Record how a run ended."""
        with self._open() as db:
            values = (_now_us(), outcome, message, run)
            db.execute("update runs set ended_us = ?, outcome = ?, message = ? where id = ?", values)

    def last(self, job: str, count: int = 1) -> list[Run]:
        """The newest runs of `job`, newest first."""
        if not self.path.exists():
            return []
        with self._open() as db:
            _mark_lost(db)
            query = f"select {_COLUMNS} from runs where job = ? order by id desc limit ?"
            return [Run(*row) for row in db.execute(query, (job, count))]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self.path, timeout=10.0)
        try:
            with db:
                db.execute(_TABLE)
                yield db
        finally:
            db.close()


def _mark_lost(db: sqlite3.Connection) -> None:
    """Runs whose process is gone ended without a word."""
    for run, pid in db.execute("select id, pid from runs where outcome = 'running'").fetchall():
        if not _is_alive(pid):
            message = f"process {pid} ended without a record"
            db.execute("update runs set outcome = 'lost', message = ? where id = ?", (message, run))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _now_us() -> int:
    return time.time_ns() // 1_000
