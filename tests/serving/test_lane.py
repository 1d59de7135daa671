"""The fast lane on the wire: whatever the shape of the bytes, replies are those of the ASGI route, in order."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from shop import Live, now

import serving.lane
from serving.lane import LaneProtocol

PATH = b"/get-online-features"
HEAD = re.compile(rb"HTTP/1\.1 (\d+) [^\r]*\r\n(.*?)\r\n\r\n", re.DOTALL)


def body_of(cards: list[Any], service: str = "card_v1", **more: Any) -> bytes:
    return orjson.dumps({"feature_service": service, "entities": {"card_id": cards}, **more})


def post(body: bytes, *headers: bytes, path: bytes = PATH, version: bytes = b"1.1") -> bytes:
    lines = [b"host: x", b"content-type: application/json", b"content-length: %d" % len(body), *headers]
    return b"POST %b HTTP/%b\r\n%b\r\n\r\n%b" % (path, version, b"\r\n".join(lines), body)


GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


class Caller:
    """A connection that reads replies one by one."""

    def __init__(self, live: Live) -> None:
        host, port = live.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self._unread = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> tuple[int, dict[bytes, bytes], bytes]:
        """Status, headers and body of the next reply; EOFError when there is none."""
        while (found := HEAD.match(self._unread)) is None:
            self._read()
        headers = dict(line.split(b": ", 1) for line in found[2].split(b"\r\n"))
        end = found.end() + int(headers[b"content-length"])
        while len(self._unread) < end:
            self._read()
        body, self._unread = self._unread[found.end() : end], self._unread[end:]
        return int(found[1]), headers, body

    def is_ended(self) -> bool:
        try:
            self._read()
        except (EOFError, ConnectionError):
            return not self._unread
        return False

    def _read(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise EOFError
        self._unread += data

    def vanish(self) -> None:
        """Ends with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@pytest.fixture
def caller(live: Live) -> Iterator[Caller]:
    made = Caller(live)
    yield made
    made.socket.close()


@pytest.fixture
def lane(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bodies that the lane was asked, from now on."""
    seen: list[bytes] = []
    ask = LaneProtocol._ask

    def noted(self: LaneProtocol, cycle: Any) -> None:
        seen.append(cycle.body)
        ask(self, cycle)

    monkeypatch.setattr(LaneProtocol, "_ask", noted)
    return seen


def cards_of(body: bytes) -> Any:
    return orjson.loads(body)["results"][0]["values"]


def test_a_plain_lookup_takes_the_lane_and_anything_else_does_not(caller: Caller, lane: list[bytes]) -> None:
    body = body_of(["a"])
    taken = [
        post(body),
        post(body, path=PATH + b"?metadata=plain"),
        post(body, path=PATH + b"?timestamps=rfc3339"),
        post(body, b"accept: */*", b"x-request-id: 7"),
        post(body, b"accept: application/vnd.apache.arrow.stream"),
    ]
    left = [
        post(body, path=PATH + b"?metadata=full"),
        post(body, path=PATH + b"/"),
        post(body, b"expect: x"),
        post(body, b"accept: */*", b"accept: application/vnd.apache.arrow.stream"),
        post(body).replace(b"application/json", b"text/plain"),
        post(body).replace(b"POST", b"PUT"),
        GET,
    ]
    for n, request in enumerate(taken, 1):
        caller.send(request)
        assert caller.reply()[0] == 200 and len(lane) == n
    for request in left:
        caller.send(request)
        assert caller.reply()[0] in (200, 307, 405) and len(lane) == len(taken)


def test_a_request_in_whatever_pieces_is_answered_once(live: Live, lane: list[bytes]) -> None:
    rng, request = random.Random(5), post(body_of(["ü{x}", None]))
    for step in (1, 2, 7, 50, 100):
        caller = Caller(live)
        caller.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(request), step):
            caller.send(request[start : start + step])
            if rng.random() < 0.05:
                time.sleep(0.001)
        assert cards_of(caller.reply()[2]) == ["ü{x}", None]
        caller.socket.close()
    assert len(lane) == 5


def test_a_head_that_is_known_is_read_with_whatever_part_of_its_body_comes_along(
    caller: Caller, lane: list[bytes]
) -> None:
    rng = random.Random(7)
    caller.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for n in range(100, 200):
        request = post(body_of([f"{n}"]), *[b"x-kind: %d" % rng.randrange(3)])
        start = request.index(b"{")
        cuts = sorted(rng.choice([0, start, start + 1, len(request) - 1, len(request)]) for _ in range(2))
        for part in (request[: cuts[0]], request[cuts[0] : cuts[1]], request[cuts[1] :]):
            caller.send(part)
            time.sleep(0.002)
        assert cards_of(caller.reply()[2]) == [str(n)]
    assert len(lane) == 100


def test_what_looks_like_a_request_within_another_s_head_is_part_of_it(caller: Caller, lane: list[bytes]) -> None:
    known = post(body_of(["known"]))
    caller.send(known)
    caller.reply()
    caller.send(GET[:-2] + b"x-inner: ")
    time.sleep(0.05)
    caller.send(known)
    time.sleep(0.05)
    caller.send(GET)
    assert [caller.reply()[2] for _ in range(2)] == [b'{"status":"ok"}'] * 2
    assert len(lane) == 1


def test_pipelined_requests_of_both_lanes_are_answered_in_their_order(live: Live, lane: list[bytes]) -> None:
    rng = random.Random(11)
    for _ in range(20):
        caller, sent, expected = Caller(live), b"", []
        for n in range(rng.randrange(2, 40)):
            kind = rng.randrange(5)
            if kind == 0:
                sent, expected = sent + GET, [*expected, (200, b'{"status":"ok"}')]
            elif kind == 1:
                sent, expected = sent + post(body_of([n])), [*expected, (422, b"must be string, got %d" % n)]
            elif kind == 2:
                sent += post(body_of([str(n)]), path=PATH + b"?metadata=full")
                expected.append((200, b'"values":["%d"]' % n))
            else:
                sent, expected = sent + post(body_of([str(n)])), [*expected, (200, b'"values":["%d"]' % n)]
        cut = rng.randrange(len(sent))
        caller.send(sent[:cut])
        time.sleep(rng.choice([0, 0.002]))
        caller.send(sent[cut:])
        for status, part in expected:
            found = caller.reply()
            assert found[0] == status and part in found[2]
        caller.socket.close()
    assert lane


def test_thousands_of_bad_requests_at_once_are_each_told_why(caller: Caller) -> None:
    n = 3_000
    sender = threading.Thread(target=caller.send, args=(post(body_of(["first"])) + post(b"{}") * n,))
    sender.start()
    assert caller.reply()[0] == 200
    for _ in range(n):
        assert caller.reply()[0] == 422
    sender.join()


def test_connection_close_is_said_and_done(caller: Caller, lane: list[bytes]) -> None:
    caller.send(post(body_of(["a"])) + post(body_of(["b"]), b"connection: close") + post(body_of(["c"])))
    assert b"connection" not in caller.reply()[1]
    status, headers, body = caller.reply()
    assert (status, headers[b"connection"], cards_of(body)) == (200, b"close", ["b"])
    assert caller.is_ended()


def test_http_1_0_expect_and_chunks_are_left_to_the_application(live: Live, lane: list[bytes]) -> None:
    old = Caller(live)
    old.send(post(body_of(["old"]), version=b"1.0"))
    assert cards_of(old.reply()[2]) == ["old"] and old.is_ended()
    waiting = Caller(live)
    body = body_of(["waited"])
    waiting.send(post(body, b"expect: 100-continue")[: -len(body)])
    assert waiting.socket.recv(100).startswith(b"HTTP/1.1 100 Continue")
    waiting.send(body)
    assert cards_of(waiting.reply()[2]) == ["waited"]
    chunked = (
        b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-type: application/json\r\n\r\n" % PATH
    )
    body = body_of(["chunked"])
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:])) + b"0\r\n\r\n"
    waiting.send(chunked + chunks + post(body_of(["after"])))
    assert [cards_of(waiting.reply()[2]) for _ in range(2)] == [["chunked"], ["after"]]
    assert lane == [body_of(["after"])]
    for caller in (old, waiting):
        caller.socket.close()


INNER = post(body_of(["smuggled"]))
CHUNKED = b"0\r\n\r\n" + INNER
SMUGGLED = {
    "both lengths": (b"content-length: %d" % len(CHUNKED), b"transfer-encoding: chunked"),
    "both, the other way round": (b"transfer-encoding: chunked", b"content-length: 5"),
    "two lengths": (b"content-length: 5", b"content-length: %d" % len(CHUNKED)),
    "two equal lengths": (b"content-length: 5", b"content-length: 5"),
    "a list of lengths": (b"content-length: 5, 5",),
    "a signed length": (b"content-length: +5",),
    "a negative length": (b"content-length: -5",),
    "a length in hexadecimal": (b"content-length: 0x5",),
    "a length that overflows": (b"content-length: 18446744073709551621",),
    "a space before the colon": (b"content-length : 5",),
    "a folded line": (b"content-length:\r\n 5",),
    "a line without a colon": (b"content-length: 5", b"transfer-encoding"),
    "an encoding that is none": (b"transfer-encoding: xchunked",),
    "chunked not last": (b"transfer-encoding: chunked, identity",),
    "a bare line feed": (b"content-length: 5\ntransfer-encoding: chunked",),
    "a zero byte": (b"content-length: 5\x00",),
}


@pytest.mark.parametrize("first", [b"", post(body_of(["first"]))], ids=["alone", "pipelined"])
@pytest.mark.parametrize("headers", SMUGGLED.values(), ids=SMUGGLED)
def test_a_request_of_two_meanings_is_refused_and_what_follows_is_not_answered(
    caller: Caller, lane: list[bytes], headers: tuple[bytes, ...], first: bytes
) -> None:
    lines = (b"POST %b HTTP/1.1" % PATH, b"host: x", b"content-type: application/json", *headers)
    caller.send(first + b"\r\n".join(lines) + b"\r\n\r\n" + CHUNKED)
    if first:
        assert cards_of(caller.reply()[2]) == ["first"]
    status, _, body = caller.reply()
    assert status == 400 and b"smuggled" not in body
    assert caller.is_ended()
    assert body_of(["smuggled"]) not in lane


def test_a_caller_who_does_not_read_is_not_read_from_and_gets_all_replies(caller: Caller, live: Live) -> None:
    request, n = post(body_of(["slow" * 1_000] * 10)), 1_000  # more than all buffers hold
    sender = threading.Thread(target=caller.send, args=(request * n,))
    sender.start()
    sender.join(3)
    assert sender.is_alive()
    assert live.look_up(["other"])["count_1h"] == [0]
    for _ in range(n):
        status, _, body = caller.reply()
        assert status == 200 and len(cards_of(body)) == 10
    sender.join()


def count(live: Live, status: int) -> float:
    text = live.http.get("/metrics").text
    found = re.search(rf'headrace_requests_total{{route="/get-online-features",status="{status}"}} (\S+)', text)
    return float(found[1]) if found else 0.0


def test_thousands_of_callers_vanish_amid_replies_and_nobody_else_notices(live: Live, lane: list[bytes]) -> None:
    live.push([{"id": f"v{n}", "card_id": f"vanish{n}", "amount": n + 1, "ts": now(-5)} for n in range(8)])
    live.wait_until_applied()
    rng, stop, wrong = random.Random(17), threading.Event(), []

    def ask(n: int) -> None:
        with contextlib.closing(Caller(live).socket) as held:
            caller = Caller.__new__(Caller)
            caller.socket, caller._unread = held, b""
            while not stop.is_set():
                caller.send(post(body_of([f"vanish{n}", f"nobody{n}"])))
                status, _, body = caller.reply()
                results = orjson.loads(body)["results"] if status == 200 else []
                if status != 200 or results[2]["values"] != [n + 1.0, None]:
                    wrong.append((n, status, body))

    others = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in others:
        thread.start()
    whole = post(body_of([f"vanish{n}" for n in range(8)] * 6))
    for _ in range(2_000):
        caller = Caller(live)
        caller.send(whole * rng.randrange(1, 4) + whole[: rng.randrange(len(whole))])
        if rng.random() < 0.3:
            caller.socket.recv(rng.randrange(1, 2_000))
        caller.vanish() if rng.random() < 0.7 else caller.socket.close()
    stop.set()
    for thread in others:
        thread.join()
    assert not wrong, wrong[:3]
    assert count(live, 500) == 0 and count(live, 503) == 0 and len(lane) > 2_000


def test_both_lanes_are_counted_alike(live: Live, caller: Caller, lane: list[bytes]) -> None:
    wrong, slow = post(body_of([5])), post(body_of(["a"] * 51))
    before = [count(live, status) for status in (200, 422)]
    for path in (PATH, PATH + b"?metadata=full"):
        for request in (post(body_of(["a", "b"])), wrong, slow):
            caller.send(request.replace(PATH, path))
            caller.reply()
    assert len(lane) == 3
    assert [count(live, status) for status in (200, 422)] == [before[0] + 2, before[1] + 4]


def test_a_caller_who_leaves_before_its_body_has_come_is_counted_as_gone(live: Live) -> None:
    before = count(live, 499)
    caller = Caller(live)
    caller.send(post(body_of(["a"]))[:-3])
    time.sleep(0.1)
    caller.vanish()
    deadline = time.monotonic() + 10
    while count(live, 499) != before + 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_defect_in_the_lane_is_a_500_and_the_connection_goes_on(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(serving.lane, "LookupCall", lambda *_: 1 / 0)
        caller.send(post(body_of(["a"])))
        assert caller.reply()[0] == 500
    caller.send(post(body_of(["a"])))
    assert caller.reply()[0] == 200


def test_a_connection_is_kept_while_it_asks_and_closed_when_it_has_been_idle(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle_s, made = 1.0, LaneProtocol.connection_made

    def shorter(self: LaneProtocol, transport: Any) -> None:
        self.timeout_keep_alive = idle_s  # type: ignore[assignment]
        made(self, transport)

    monkeypatch.setattr(serving.lane, "_TIMER_S", 0.05)
    monkeypatch.setattr(LaneProtocol, "connection_made", shorter)
    caller = Caller(live)
    asked_s, begun_s = time.monotonic(), time.monotonic()
    while asked_s < begun_s + 2 * idle_s:
        caller.send(post(body_of(["kept"])))
        assert caller.reply()[0] == 200 or time.monotonic() > asked_s + idle_s
        asked_s = time.monotonic()
        time.sleep(0.1)
    assert caller.is_ended()
    caller.socket.close()
