"""Jobs: every run leaves a record, the scheduler stops when told."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import UTC, datetime

import pytest

from headrace.errors import DataError, UnavailableError
from headrace.settings import Settings
from training import jobs
from training.config import Job
from training.runs import RunRecords

JOB = Job("nightly", "compact", "45 3 * * *")


@pytest.fixture
def settings(tmp_path):
    return Settings(repo=tmp_path / "repo", data_dir=tmp_path / "data")


def kind(monkeypatch, function):
    monkeypatch.setitem(jobs._KINDS, "compact", function)


def test_a_run_that_ends_well_is_recorded(settings, monkeypatch):
    kind(monkeypatch, lambda settings, job: "3 files")
    assert jobs.run_job(settings, JOB) == "3 files"
    (run,) = RunRecords(settings.data_dir).last("nightly")
    assert (run.outcome, run.message) == ("done", "3 files")
    assert run.started_us <= run.ended_us


def test_a_failure_is_recorded_and_raised(settings, monkeypatch):
    def fail(settings, job):
        raise DataError("no such table")

    kind(monkeypatch, fail)
    with pytest.raises(DataError):
        jobs.run_job(settings, JOB)
    (run,) = RunRecords(settings.data_dir).last("nightly")
    assert (run.outcome, run.message) == ("failed", "DataError: no such table")


def test_a_job_runs_once_at_a_time(settings, monkeypatch):
    def again(settings, job):
        with pytest.raises(UnavailableError, match="One run of a job"):
            jobs.run_job(settings, job)
        return "alone"

    kind(monkeypatch, again)
    assert jobs.run_job(settings, JOB) == "alone"


def test_a_run_whose_process_is_gone_is_lost_and_blocks_nothing(settings):
    records = RunRecords(settings.data_dir)
    code = "import sys; from training.runs import RunRecords; RunRecords(sys.argv[1]).begin('nightly')"
    subprocess.run([sys.executable, "-c", code, str(settings.data_dir)], check=True)
    assert records.last("nightly")[0].outcome == "lost"
    records.end(records.begin("nightly"), "done", "")
    assert [run.outcome for run in records.last("nightly", 5)] == ["done", "lost"]


def test_sigterm_stops_a_job_and_is_recorded(settings, tmp_path):
    code = textwrap.dedent(
        """
        import sys, time
        from headrace.settings import Settings
        from training import jobs
        from training.config import Job
        jobs._KINDS["compact"] = lambda settings, job: print("ready", flush=True) or time.sleep(60)
        jobs.run_job(Settings(data_dir=sys.argv[1]), Job("nightly", "compact", "45 3 * * *"))
        """
    )
    with subprocess.Popen([sys.executable, "-c", code, str(settings.data_dir)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    assert RunRecords(settings.data_dir).last("nightly")[0].outcome == "stopped"


def test_the_next_run_follows_the_cron_in_utc():
    now = datetime(2013, 6, 1, 12, tzinfo=UTC)  # a Saturday
    assert jobs.next_run(JOB, now) == datetime(2013, 6, 2, 3, 45, tzinfo=UTC)
    monday = Job("weekly", "retrain", "30 4 * * mon", "m")
    assert jobs.next_run(monday, now) == datetime(2013, 6, 3, 4, 30, tzinfo=UTC)


def test_the_scheduler_runs_due_jobs_in_processes_and_stops_them_when_it_stops(settings, monkeypatch):
    from apscheduler.triggers.date import DateTrigger

    settings.repo.mkdir()
    (settings.repo / "headrace.toml").write_text('[jobs.nightly]\nkind = "compact"\ncron = "45 3 * * *"\n')
    started = settings.data_dir / "started"
    code = f"import os, pathlib, time; pathlib.Path({str(started)!r}).write_text(str(os.getpid())); time.sleep(60)"
    settings.data_dir.mkdir()
    monkeypatch.setattr(jobs, "_command", lambda job: [sys.executable, "-c", code])
    monkeypatch.setattr(jobs, "_trigger", lambda job: DateTrigger(datetime.now(UTC)))
    stop = threading.Event()
    scheduler = threading.Thread(target=jobs.run_scheduler, args=(settings, stop))
    scheduler.start()
    deadline = time.monotonic() + 20
    while not started.exists() or not started.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    stop.set()
    scheduler.join(20)
    assert not scheduler.is_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_a_scheduler_without_jobs_waits_for_its_stop(settings):
    stop = threading.Event()
    stop.set()
    jobs.run_scheduler(settings, stop)
