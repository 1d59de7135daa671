"""The long-running processes, each alone (`worker`, `archive`, `serve`, `schedule`) or all together (`up`)."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import click

from headrace.cli.common import with_settings
from headrace.settings import Settings

__all__ = ["archive_command", "schedule_command", "serve_command", "up_command", "worker_command"]

NICENESS = 5
"""Of the archiver: somebody waits for worker and server."""

supervised_option = click.option(
    "--supervised", is_flag=True, hidden=True, help="Stop when standard input ends: the parent is gone."
)
host_option = click.option("--host", help="Address to listen on [HEADRACE_HOST].")
port_option = click.option("--port", type=click.IntRange(0, 65535), help="Port, 0 takes any [HEADRACE_PORT].")


@click.command("worker")
@supervised_option
@with_settings
def worker_command(settings: Settings, supervised: bool) -> None:
    """Compute features from the stream into the online store, until stopped."""
    from materialize.run_worker import run_worker

    _run("worker", run_worker, settings, supervised)


@click.command("archive")
@supervised_option
@with_settings
def archive_command(settings: Settings, supervised: bool) -> None:
    """Append the stream's events to the offline store, until stopped."""
    from materialize.archiver import run_archiver

    _run("archiver", partial(run_archiver, niceness=NICENESS), settings, supervised)


@click.command("schedule")
@supervised_option
@with_settings
def schedule_command(settings: Settings, supervised: bool) -> None:
    """Run the scheduled jobs, each on its cron, until stopped."""
    from training.jobs import run_scheduler

    _run("scheduler", run_scheduler, settings, supervised)


@click.command("serve")
@host_option
@port_option
@click.option("--workers", type=click.IntRange(1, 256), help="Processes that serve, on one address [HEADRACE_WORKERS].")
@click.option("--uds", type=click.Path(path_type=Path), help="Unix socket to listen on too [HEADRACE_UDS].")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate chain, PEM [HEADRACE_TLS_CERT].")
@click.option("--tls-key", type=click.Path(path_type=Path), help="The certificate's key, PEM [HEADRACE_TLS_KEY].")
@click.option("--fast-lane/--no-fast-lane", default=None, help="Answer lookups before ASGI [HEADRACE_FAST_LANE].")
@click.option("--handed", hidden=True, help="Sockets that the parent of this worker opened.")
@supervised_option
@with_settings
def serve_command(settings: Settings, supervised: bool, handed: str | None, **given: Any) -> None:
    """Answer lookups, pushes and predictions over HTTP, until stopped."""
    from headrace.cli.server_file import forget_server, record_server
    from headrace.telemetry import configure_logging

    stop = stop_on_signals(supervised)  # before the imports that take long: uvicorn takes the signals over later
    from serving.run import run_server, serve_handed

    configure_logging("server")
    if handed is not None:
        serve_handed(settings, handed, stop)
        return

    def on_listening(url: str) -> None:
        record_server(settings, url)
        announce(url)

    try:
        run_server(with_given(settings, **given), on_listening, stop)
    finally:
        forget_server(settings)


@click.command("up")
@host_option
@port_option
@with_settings
def up_command(settings: Settings, host: str | None, port: int | None) -> None:
    """Run store, worker, archiver, server and scheduler in this terminal; Ctrl-C stops them cleanly."""
    from headrace.cli.supervisor import run_all

    sys.exit(run_all(with_given(settings, host=host, port=port), stop_on_signals(False)))


def with_given(settings: Settings, **given: Any) -> Settings:
    """The settings with those that the command line gives."""
    return settings.model_copy(update={name: value for name, value in given.items() if value is not None})


def announce(url: str) -> None:
    """The one line that says that the server listens, and where."""
    click.echo(f"Headrace listens on {url} (API at {url}/docs)")


def _run(
    process: str, function: Callable[[Settings, threading.Event], Any], settings: Settings, supervised: bool
) -> None:
    from headrace.telemetry import configure_logging

    configure_logging(process)
    function(settings, stop_on_signals(supervised))


def stop_on_signals(supervised: bool) -> threading.Event:
    """An event that the first SIGINT or SIGTERM sets; a second one ends the process at once."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and not supervised:
            os._exit(128 + number)
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    if supervised:
        threading.Thread(target=_follow_parent, daemon=True).start()
    return stop


def _follow_parent() -> None:
    """Stop this process once its parent is gone, however that ended: then the pipe to standard input ends."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
