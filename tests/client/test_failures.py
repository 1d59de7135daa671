"""What the client makes of a server that fails, is slow, or is none."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from faulty_proxy import Proxy
from shop import Live, now

from headrace.client import AsyncFeatureClient, FeatureClient
from headrace.errors import DeadlineError, RequestError, ServerError, StreamFullError, UnavailableError

CARDS = {"card_id": ["a"]}


def reply(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    "fault",
    [reply(503, b"busy", "retry-after: 0"), reply(429), reply(502, b"<html>"), "close", "cut"],
    ids=["503", "429", "a proxy", "lost before the reply", "lost in the reply"],
)
def test_a_read_that_failed_for_a_moment_is_repeated(proxy: Proxy, proxy_url: str, fault: bytes | str) -> None:
    proxy.faults = [fault, fault]
    with FeatureClient(proxy_url) as client:
        assert client.get("card_v1", CARDS).to_dict()["card_id"] == ["a"]
    assert proxy.requests == 3


def test_no_more_often_than_was_said(proxy: Proxy, proxy_url: str) -> None:
    proxy.faults = [reply(503, b"busy")] * 9
    with FeatureClient(proxy_url, retries=2) as client, pytest.raises(UnavailableError, match="answered 503"):
        client.get("card_v1", CARDS)
    assert proxy.requests == 3


def test_a_wait_beyond_the_deadline_is_not_begun(proxy: Proxy, proxy_url: str) -> None:
    proxy.faults = [reply(503, b"", "retry-after: 60")]
    with FeatureClient(proxy_url, deadline_s=30) as client, pytest.raises(UnavailableError, match="answered 503"):
        client.get("card_v1", CARDS)
    assert proxy.requests == 1


def test_what_comes_too_late_is_a_deadline_error_and_the_next_call_gets_its_own_answer(
    proxy: Proxy, proxy_url: str
) -> None:
    proxy.faults = ["hang"]
    with FeatureClient(proxy_url) as client:
        with pytest.raises(DeadlineError, match=r"within 0\.2 s"):
            client.get("card_v1", CARDS, deadline_s=0.2)
        assert client.get("card_v1", {"card_id": ["b"]}).to_dict()["card_id"] == ["b"]


def test_a_push_is_never_repeated(live: Live, proxy: Proxy, proxy_url: str) -> None:
    event = {"id": "once", "card_id": "once", "amount": 1, "ts": now(-5)}
    proxy.faults = ["cut", reply(503)]
    with FeatureClient(proxy_url) as client:
        for _ in range(2):
            with pytest.raises(UnavailableError):
                client.push("payments", [event])
        assert proxy.requests == 2
        live.wait_until_applied()
        assert client.get("card_v1", {"card_id": ["once"]}).to_dict()["count_1h"] == [1]


def test_a_full_stream_says_when_to_push_again(proxy: Proxy, proxy_url: str) -> None:
    detail = b'"{\\"message\\": \\"the budget\\", \\"error\\": \\"StreamFullError\\"}"'
    proxy.faults = [reply(503, detail, "retry-after: 7")]
    with FeatureClient(proxy_url) as client, pytest.raises(StreamFullError, match="the budget") as full:
        client.push("payments", [{"id": "1"}])
    assert full.value.retry_after_s == 7


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (reply(500, b"oops"), "answered 500"),
        (reply(302, b"", "location: /x"), "answered 302"),
        (reply(200, b"{}", "content-type: application/json"), "no Headrace server"),
        (b"SSH-2.0-OpenSSH_9\r\n", "must answer in HTTP"),
    ],
    ids=["500", "a redirect", "another service", "no HTTP"],
)
def test_a_server_that_fails_or_is_another_is_not_asked_again(
    proxy: Proxy, proxy_url: str, fault: bytes, message: str
) -> None:
    proxy.faults = [fault]
    with FeatureClient(proxy_url) as client, pytest.raises(ServerError, match=message):
        client.get("card_v1", CARDS)
    assert proxy.requests == 1


def test_other_refusals_are_the_caller_s_to_change(proxy: Proxy, proxy_url: str) -> None:
    proxy.faults = [reply(401, b"who are you")]
    with FeatureClient(proxy_url) as client, pytest.raises(RequestError, match="who are you"):
        client.get("card_v1", CARDS)


def test_nobody_there(free_port: int) -> None:
    with FeatureClient(f"http://127.0.0.1:{free_port}") as client, pytest.raises(UnavailableError, match="see that it"):
        client.get("card_v1", CARDS)


def test_connections_are_kept_until_the_server_ends_them(proxy: Proxy, proxy_url: str) -> None:
    with FeatureClient(proxy_url) as client:
        for _ in range(5):
            client.get("card_v1", CARDS)
        assert (proxy.connections, proxy.requests) == (1, 5)
        proxy.faults = ["last"]
        for _ in range(3):
            assert client.get("card_v1", CARDS).to_dict()["card_id"] == ["a"]
        assert proxy.connections == 2


def test_no_more_connections_than_was_said_even_if_calls_are_cancelled(proxy: Proxy, proxy_url: str) -> None:
    async def ask() -> list[str]:
        async with AsyncFeatureClient(proxy_url, connections=2) as client:
            calls = [asyncio.create_task(client.get("card_v1", {"card_id": [str(i)]})) for i in range(40)]
            await asyncio.sleep(0.02)
            for call in calls[::2]:
                call.cancel()
            found = await asyncio.gather(*calls, return_exceptions=True)
            return [row.to_dict()["card_id"][0] for row in found if not isinstance(row, BaseException)]

    found = asyncio.run(ask())
    assert set(found) >= {str(i) for i in range(1, 40, 2)}


def test_a_socket_of_the_file_system_serves_as_url(live: Live, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    proxy = Proxy(live.url, listener)
    try:
        with FeatureClient(f"unix:{path}") as client:
            assert client.get("card_v1", CARDS).to_dict()["card_id"] == ["a"]
    finally:
        proxy.close()


@pytest.mark.parametrize("url", ["localhost:6566", "redis://localhost", "http://", "http:///x"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="A server's URL is like"):
        FeatureClient(url)


def test_a_header_is_one_line(live: Live) -> None:
    with pytest.raises(RequestError, match="one line"):
        FeatureClient(live.url, headers={"x-key": "a\r\nx-other: b"})
    with FeatureClient(live.url, headers={"authorization": "Bearer x"}) as client:
        assert len(client.get("card_v1", CARDS)) == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_is_checked_unless_the_caller_says_otherwise(live: Live, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    plain = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(live.url, context.wrap_socket(plain, server_side=True))
    url = f"https://localhost:{proxy.listener.getsockname()[1]}"
    try:
        for verify in (str(certificate), False):
            with FeatureClient(url, verify=verify) as client:
                assert client.get("card_v1", CARDS).to_dict()["card_id"] == ["a"]
        with FeatureClient(url, retries=0) as client, pytest.raises(UnavailableError, match="certificate"):
            client.get("card_v1", CARDS)
    finally:
        proxy.close()
