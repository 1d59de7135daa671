from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.errors import SettingsError
from headrace.settings import Settings
from headrace.stores.connection import open_store, store_url
from headrace.stores.embedded import attach, detach, is_running
from headrace.stores.keeper import StoreFiles, find_server

HOLD = (
    "import sys, time; from headrace.settings import Settings; from headrace.stores.connection import open_store\n"
    "store = open_store(Settings(data_dir=sys.argv[1])); print(store.incr('seen'), flush=True); time.sleep(60)"
)


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A folder with a space in its name, longer than a socket's path may be."""
    folder = tmp_path / "a folder" / ("long " * 30) / "data"
    yield folder
    detach(folder)
    assert eventually(lambda: not is_running(folder))


@pytest.fixture
def holders() -> Iterator[list[subprocess.Popen[str]]]:
    held: list[subprocess.Popen[str]] = []
    yield held
    for process in held:
        process.kill()
        process.communicate()


def hold(data_dir: Path, held: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """A process that stays attached; its first line is how many came before it, and itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(data_dir)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    held.append(process)
    return process


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_first_attach_starts_a_durable_store_that_never_evicts(data_dir: Path) -> None:
    with open_store(Settings(data_dir=data_dir)) as store:
        wanted = {"appendonly": "yes", "appendfsync": "always", "save": "", "maxmemory-policy": "noeviction"}
        wanted |= {"hash-max-listpack-value": "512", "port": "0"}
        assert {name: store.config_get(name)[name] for name in wanted} == wanted


def test_what_was_written_is_there_after_the_last_one_left_and_somebody_came_back(data_dir: Path) -> None:
    for round_number in range(3):
        with open_store(Settings(data_dir=data_dir)) as store:
            assert store.incr("rounds") == round_number + 1
        detach(data_dir)


def test_many_processes_at_once_share_one_server(data_dir: Path, holders: list[subprocess.Popen[str]]) -> None:
    processes = [hold(data_dir, holders) for _ in range(4)]
    assert sorted(map(first_line, processes)) == ["1", "2", "3", "4"]


def test_the_server_stops_by_itself_when_all_its_users_were_killed(
    data_dir: Path, holders: list[subprocess.Popen[str]]
) -> None:
    processes = [hold(data_dir, holders) for _ in range(2)]
    assert sorted(map(first_line, processes)) == ["1", "2"]
    processes[0].kill()
    processes[0].wait()
    time.sleep(0.3)
    assert is_running(data_dir)
    processes[1].kill()
    assert eventually(lambda: not is_running(data_dir))


def test_a_server_that_dies_is_started_again_with_its_data(data_dir: Path) -> None:
    with open_store(Settings(data_dir=data_dir)) as store:
        store.set("kept", b"yes")
        os.kill(store.info("server")["process_id"], signal.SIGKILL)
    assert eventually(lambda: not is_running(data_dir))
    assert eventually(lambda: is_running(data_dir))
    with open_store(Settings(data_dir=data_dir)) as store:
        assert store.get("kept") == b"yes"


def test_a_server_whose_keeper_was_killed_finds_a_new_keeper(
    data_dir: Path, holders: list[subprocess.Popen[str]]
) -> None:
    with open_store(Settings(data_dir=data_dir)) as store:
        server = store.info("server")["process_id"]
    keeper = int((StoreFiles(data_dir).folder / "keeper.lock").read_text())
    os.kill(keeper, signal.SIGKILL)
    assert eventually(lambda: not StoreFiles(data_dir).keeper_lives())
    other = hold(data_dir, holders)
    assert first_line(other) == "1"
    with open_store(Settings(data_dir=data_dir)) as store:
        assert store.info("server")["process_id"] == server
    detach(data_dir)
    other.kill()
    assert eventually(lambda: not is_running(data_dir))


def test_another_temporary_directory_finds_the_same_server(data_dir: Path, tmp_path: Path) -> None:
    attach(data_dir)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    code = "import sys; from headrace.stores.embedded import attach; print(attach(sys.argv[1]))"
    found = subprocess.run(
        [sys.executable, "-c", code, str(data_dir)], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(attach(data_dir))


def test_a_server_that_cannot_start_says_why(data_dir: Path) -> None:
    broken = StoreFiles(data_dir).folder / "appendonlydir" / "appendonly.aof.manifest"
    broken.parent.mkdir(parents=True)
    broken.write_text("nonsense\n")
    with pytest.raises(SettingsError, match=r"could not be started: .*server\.log"):
        attach(data_dir)


def test_a_data_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="must be a folder that can be written"):
        attach(tmp_path / "file")


def test_a_new_enough_server_on_the_path_comes_first_and_an_old_one_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = find_server()
    fake = tmp_path / "redis-server"
    for version, found in [("7.0.15", str(fake)), ("6.2.1", own)]:
        fake.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        assert find_server() == found


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://user:secret@127.0.0.1:1/0", r"must be reachable, but redis://\*\*\*@127.0.0.1:1/0 does not answer"),
        (
            "http://user:secret@127.0.0.1:1",
            r"must be a redis://, rediss://, unix:// or redis\+cluster:// URL, got 'http://\*\*\*@",
        ),
        ("unix:///nowhere.sock?password=secret", "must be reachable, but unix:///nowhere.sock does not answer"),
    ],
)
def test_a_store_that_cannot_be_had_is_one_clear_line_without_its_password(url: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        open_store(Settings(redis_url=url))
    assert "secret" not in str(refused.value)


def test_a_store_that_evicts_is_refused(data_dir: Path) -> None:
    settings = Settings(redis_url=f"unix://{attach(data_dir)}")
    assert store_url(settings) == settings.redis_url
    with open_store(settings) as store:
        store.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(SettingsError, match="maxmemory-policy is 'allkeys-lru'"):
        open_store(settings)
