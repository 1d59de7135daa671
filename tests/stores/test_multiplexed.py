"""One connection that many requests share: whatever becomes of one, the others get their own replies."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import uvloop
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from structlog.testing import capture_logs

from headrace.settings import Settings
from headrace.stores.connection import open_store_async
from headrace.stores.keeper import find_server
from headrace.stores.multiplexed import SharedConnection
from headrace.stores.wire import pack_command

USER = ("--user", "me", "on", ">secret", "~*", "&*", "+@all")
ONCE = Retry(NoBackoff(), 0)
Use = Callable[[SharedConnection], Awaitable[None]]


def command(*parts: Any) -> bytes:
    return pack_command([str(part).encode() for part in parts])


def run(use: Use, client: Callable[[], redis.asyncio.Redis], timeout_s: float = 5.0) -> None:
    async def once() -> None:
        store = client()
        shared = SharedConnection(store, timeout_s)
        try:
            await use(shared)
        finally:
            await shared.aclose()
            await store.aclose()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(once())


@pytest.fixture
def client(settings: Settings) -> Callable[[], redis.asyncio.Redis]:
    return lambda: open_store_async(settings)


async def echo(shared: SharedConnection, text: str) -> None:
    assert await shared.request(command("ECHO", text), 1) == [text.encode()]


def test_an_error_in_a_reply_fails_the_request_that_it_answers_and_no_other(client: Any) -> None:
    async def use(shared: SharedConnection) -> None:
        wrong = shared.request(command("ECHO", "a") + command("NOPE") + command("ECHO", "b"), 3)
        before, failed, after = await asyncio.gather(
            shared.request(command("ECHO", "1"), 1),
            wrong,
            shared.request(command("ECHO", "2") + command("ECHO", "3"), 2),
            return_exceptions=True,
        )
        assert (before, after) == ([b"1"], [b"2", b"3"])
        assert isinstance(failed, redis.ResponseError) and "NOPE" in str(failed)

    run(use, client)


def test_what_nobody_waits_for_any_more_moves_no_other_reply(client: Any) -> None:
    async def use(shared: SharedConnection) -> None:
        rng, asked = random.Random(3), []
        for n in range(4_000):
            kind = rng.random()
            if kind < 0.2:
                asked.append((None, asyncio.ensure_future(shared.request(command("NOPE", n), 1))))
            else:
                packed = command("ECHO", n) + command("LRANGE", "none", 0, 1) * (n % 3)
                asked.append(
                    ([str(n).encode(), *[[]] * (n % 3)], asyncio.ensure_future(shared.request(packed, 1 + n % 3)))
                )
            if kind > 0.6:
                rng.choice(asked)[1].cancel()
            if kind > 0.97:
                await asyncio.sleep(0)
        for expected, task in asked:
            try:
                assert await task == expected
            except redis.ResponseError:
                assert expected is None
            except asyncio.CancelledError:
                assert task.cancelled()
        await echo(shared, "end")

    run(use, client)


def test_a_callback_that_fails_fails_alone_and_is_logged(client: Any) -> None:
    async def use(shared: SharedConnection) -> None:
        await echo(shared, "open")
        shared.submit(command("ECHO", "x"), 1, lambda _: 1 / 0)
        await echo(shared, "after")

    with capture_logs() as logs:
        run(use, client)
    assert [type(log["exc_info"]) for log in logs if log["log_level"] == "error"] == [ZeroDivisionError]


def test_a_reply_that_comes_too_late_is_dropped_and_the_next_is_in_its_place(client: Any) -> None:
    async def use(shared: SharedConnection) -> None:
        with pytest.raises(redis.TimeoutError):
            await shared.request(command("BLPOP", "never", 0.8) + command("ECHO", "late"), 2)
        await asyncio.sleep(0.8)
        await echo(shared, "next")

    run(use, client, timeout_s=0.2)


def test_a_lost_connection_fails_what_is_under_way_and_the_next_request_opens_another(client: Any) -> None:
    async def use(shared: SharedConnection) -> None:
        for _ in range(3):
            (number,) = await shared.request(command("CLIENT", "ID"), 1)
            waiting = [asyncio.ensure_future(shared.request(command("BLPOP", "never", 5), 1)) for _ in range(50)]
            await asyncio.sleep(0.02)
            other = client()
            await other.client_kill_filter(_id=str(number))
            await other.aclose()
            for failed in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(failed, redis.ConnectionError)
            await echo(shared, "again")

    run(use, client)


@contextlib.contextmanager
def server(folder: Path, port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    flags = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), *options]
    process = subprocess.Popen([find_server(), *flags], stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def until_answered(shared: SharedConnection) -> None:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(redis.ConnectionError):
                return await echo(shared, "up")
            await asyncio.sleep(0.02)


def test_a_store_that_is_down_is_said_at_once_and_one_that_comes_back_is_found(tmp_path: Path, free_port: int) -> None:
    async def use(shared: SharedConnection) -> None:
        for _ in range(3):
            with pytest.raises(redis.ConnectionError):
                await echo(shared, "down")
        for _ in range(2):
            with server(tmp_path, free_port):
                await until_answered(shared)
            with pytest.raises(redis.ConnectionError):
                while True:
                    await echo(shared, "gone")

    run(use, lambda: redis.asyncio.Redis(port=free_port, retry=ONCE))


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_user_a_database_and_tls_are_those_of_the_url(tmp_path: Path, free_port: int, loop: Any) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made = [*make, "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    @contextlib.asynccontextmanager
    async def tls_in_front() -> AsyncIterator[int]:
        async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            inner = await asyncio.open_connection("127.0.0.1", free_port)
            await asyncio.gather(copy(reader, inner[1]), copy(inner[0], writer))

        async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1 << 16):
                writer.write(data)
            writer.close()

        listening = await asyncio.start_server(join, "localhost", 0, ssl=context)
        yield listening.sockets[0].getsockname()[1]
        listening.close()

    async def both() -> None:
        async with tls_in_front() as tls_port:
            for url in (f"redis://me:secret@localhost:{free_port}/3", f"rediss://me:secret@localhost:{tls_port}/3"):
                options = {"ssl_ca_certs": str(certificate)} if url.startswith("rediss") else {}
                store = redis.asyncio.Redis.from_url(url, retry=ONCE, **options)
                shared = SharedConnection(store)
                await until_answered(shared)
                assert b"user=me" in (await shared.request(command("CLIENT", "INFO"), 1))[0]
                assert b"db=3" in (await shared.request(command("CLIENT", "INFO"), 1))[0]
                big = "x" * 3_000_000
                await asyncio.gather(*[echo(shared, big) for _ in range(3)])
                await shared.aclose()
                await store.aclose()
            wrong = SharedConnection(redis.asyncio.Redis(port=free_port, username="me", password="no", retry=ONCE))
            with pytest.raises(redis.RedisError):
                await echo(wrong, "no")
            await wrong.aclose()

    with server(tmp_path, free_port, *USER), asyncio.Runner(loop_factory=loop) as runner:
        runner.run(both())
