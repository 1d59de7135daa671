"""Several server processes on one address, a unix socket, TLS: as a user starts them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from shop import shop

from headrace.errors import SettingsError
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from serving.listeners import listening

BODY = {"features": ["profile:city"], "entities": {"card_id": ["a"]}}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    folder = tmp_path_factory.mktemp("workers")
    made = Settings(repo=folder, data_dir=folder / "data")
    with open_store(made) as store:
        save_catalog(store, made, shop())
        yield made
    detach(made.data_dir)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("certificate")
    cert, key = folder / "cert.pem", folder / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(make, check=True, capture_output=True)
    return cert, key


class Served:
    """`headrace serve` with options, and its worker processes."""

    def __init__(self, settings: Settings, *options: str) -> None:
        where = ["--repo", str(settings.repo), "--data-dir", str(settings.data_dir), "--port", "0"]
        command = [sys.executable, "-P", "-u", "-m", "headrace", "serve", *where, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = re.search(r"listens on (\S+)", self.process.stdout.readline())
        assert found, self.process.wait(10)
        self.url = found[1]

    def workers(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


@contextlib.contextmanager
def serving(settings: Settings, *options: str) -> Iterator[Served]:
    served = Served(settings, *options)
    try:
        yield served
    finally:
        served.process.kill()
        served.process.wait()
        if served.process.stdout is not None:
            served.process.stdout.close()


def ask(http: httpx.Client) -> int:
    reply = http.post("/get-online-features", json=BODY)
    assert reply.status_code == 200 and reply.json()["results"][1]["statuses"] == ["NOT_FOUND"]
    return 1


def wait_until(holds: Callable[[], Any], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


def answered(url: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    return float(re.search(r'headrace_requests_total{route="/get-online-features",status="200"} (\S+)', text)[1])  # type: ignore[index]


def test_a_worker_that_dies_is_replaced_and_what_it_counted_stays(settings: Settings, tmp_path: Path) -> None:
    socket_path = tmp_path / "server.sock"
    with serving(settings, "--workers", "2", "--uds", str(socket_path)) as served:
        first = served.workers()
        assert len(first) == 2
        asked = 0
        for _ in range(60):  # one connection each: some for either worker
            with httpx.Client(base_url=served.url) as http:
                asked += ask(http)
        transport = httpx.HTTPTransport(uds=str(socket_path))
        with httpx.Client(transport=transport, base_url="http://local") as http:
            asked += ask(http)
        assert answered(served.url) == asked
        os.kill(first[0], signal.SIGKILL)
        wait_until(lambda: len(set(served.workers()) - {first[0]}) == 2)
        for _ in range(20):
            with httpx.Client(base_url=served.url) as http:
                asked += ask(http)
        assert answered(served.url) == asked
        workers = served.workers()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(30) == 0
        assert not any(map(is_alive, workers)) and not socket_path.exists()


def test_workers_end_with_a_parent_that_is_killed(settings: Settings) -> None:
    with serving(settings, "--workers", "2") as served:
        workers = served.workers()
        served.process.kill()
        wait_until(lambda: not any(map(is_alive, workers)))


def test_tls_is_spoken_on_the_address_and_not_on_the_unix_socket(
    settings: Settings, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = certificate
    options = ("--tls-cert", str(cert), "--tls-key", str(key), "--uds", str(tmp_path / "s"))
    with serving(settings, *options) as served:
        assert served.url.startswith("https://")
        with httpx.Client(base_url=served.url, verify=ssl.create_default_context(cafile=str(cert))) as http:
            ask(http)
            assert http.get("/health").status_code == 200
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(tmp_path / "s")), base_url="http://local") as http:
            ask(http)


def test_what_cannot_be_listened_on_is_one_clear_line(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, _ = certificate
    taken = tmp_path / "file"
    taken.write_text("not a socket")
    wrong = [
        ({"tls_cert": cert}, "alone; set HEADRACE_TLS_CERT and HEADRACE_TLS_KEY"),
        ({"tls_cert": cert, "tls_key": cert}, "are refused"),
        ({"tls_cert": cert, "tls_key": tmp_path / "none"}, "are refused"),
        ({"uds": taken}, "cannot be had .*--uds"),
        ({"uds": tmp_path / "none" / "s"}, "cannot be had .*--uds"),
        ({"uds": tmp_path / ("long" * 40)}, "cannot be had .*--uds"),
    ]
    for given, message in wrong:
        with pytest.raises(SettingsError, match=message), listening(Settings(port=0, **given)):
            pass
    assert taken.read_text() == "not a socket"
    beside = listening(Settings(port=0, uds=tmp_path / "s"))
    with beside, pytest.raises(SettingsError, match="cannot be had"), listening(Settings(port=0, uds=tmp_path / "s")):
        pass
    assert not (tmp_path / "s").exists()


def test_a_set_up_that_cannot_work_ends_the_parent_with_one_line(settings: Settings, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headrace", "serve", "--workers", "2", "--port", "0"]
    where = ["--repo", str(tmp_path), "--data-dir", str(tmp_path / "data")]
    done = subprocess.run([*command, *where], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("Error: A project is known")
