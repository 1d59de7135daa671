"""The embedded online store: one Valkey or Redis server that belongs to a data directory.

The first process that attaches starts a keeper (see keeper.py), which starts the server; later processes attach
to the same server, whatever directory or environment they run in; when the last one is gone, however it ended,
the keeper stops the server. Everything lies in `DATA_DIR/store`:

    start.lock    held while a process attaches, so that one keeper is started
    users.lock    held shared by every attached process; the keeper waits for it exclusively
    keeper.lock   held by the keeper for its life; holds its process id
    socket        path of the server's socket, which is short whatever the data directory's is
    server.log, keeper.log, appendonlydir/
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from headrace.errors import SettingsError
from headrace.stores.keeper import StoreFiles, answers

__all__ = ["attach", "detach", "is_running"]

ATTACH_TIMEOUT_S = 120.0

_held: dict[Path, int] = {}
_held_lock = threading.Lock()


def attach(data_dir: Path) -> Path:
    """Path of the socket of `data_dir`'s server, started if need be and kept running for this process's life.

    Raises SettingsError when the server cannot be started, with what it said.
    """
    files = StoreFiles(data_dir)
    with _held_lock:
        if files.folder not in _held:
            _held[files.folder] = _attach(files)
    return files.read_socket()


def detach(data_dir: Path) -> None:
    """Let go of `data_dir`'s server before this process ends; does nothing when it is not attached."""
    with _held_lock:
        handle = _held.pop(StoreFiles(data_dir).folder, None)
    if handle is not None:
        os.close(handle)


def is_running(data_dir: Path) -> bool:
    """Whether `data_dir`'s server answers now; starts nothing."""
    files = StoreFiles(data_dir)
    return files.socket.exists() and answers(files.read_socket())


def _attach(files: StoreFiles) -> int:
    """Take a share of users.lock with a server behind it; returns the open file that holds it."""
    _make_folder(files)
    start = files.open_lock("start.lock")
    users = files.open_lock("users.lock")
    try:
        fcntl.flock(start, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)  # waits for a keeper that is stopping its server
        _ensure_server(files)
    except BaseException:
        os.close(users)
        raise
    finally:
        os.close(start)
    return users


def _make_folder(files: StoreFiles) -> None:
    try:
        files.folder.mkdir(parents=True, exist_ok=True)
        os.close(files.open_lock("start.lock"))
    except OSError as error:
        raise SettingsError(
            f"The data directory must be a folder that can be written, got {files.folder.parent}: {error.strerror}; "
            "choose another with HEADRACE_DATA_DIR or --data-dir."
        ) from None


def _ensure_server(files: StoreFiles) -> None:
    """Start a keeper if there is none; wait for one that is starting its server again."""
    deadline = time.monotonic() + ATTACH_TIMEOUT_S
    while files.keeper_lives():
        if answers(files.read_socket()):
            return
        if time.monotonic() > deadline:
            raise SettingsError(f"The embedded store in {files.folder} does not answer; see {files.server_log}.")
        time.sleep(0.02)
    _start_keeper(files)


def _start_keeper(files: StoreFiles) -> None:
    """Run the keeper's launcher, which returns when the server answers or could not be started."""
    command = [sys.executable, "-P", "-m", "headrace.stores.keeper", str(files.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        reason = done.stderr.strip() or f"the keeper ended with code {done.returncode}"
        raise SettingsError(f"The embedded store in {files.folder} could not be started: {reason}")
