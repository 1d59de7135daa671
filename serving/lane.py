"""The fast lane: lookups answered by callback, before ASGI; everything else is left to the application.

A subclass of uvicorn's protocol. It looks at a request's head. A lookup in JSON whose body has a stated length becomes
a `LaneCycle`, a request under way like uvicorn's own, in the same queue of pipelined requests; of anything else
(another path, chunked bodies, Expect, HTTP/1.0, an upgrade, full metadata) the protocol's own methods are told what
they would have been told at once. Both give the same replies, errors and metrics.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Literal, NamedTuple

from fastapi import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from headrace.errors import RequestError
from headrace.read.online.vector_batches import vector_bytes
from headrace.stores.multiplexed import SharedConnection
from serving.arrow_replies import ARROW, wants_arrow
from serving.bodies import OFF_LOOP_BYTES
from serving.errors import CLIENT_GONE, failure_response
from serving.guards.heads import GUARD_HEADERS, RequestHead, parse_head
from serving.guards.middleware import refusal
from serving.lookups import ROUTE, LookupCall, parse_question
from serving.state import ServerState

__all__ = ["LaneProtocol", "lane_protocol"]

Form = Literal["seconds", "rfc3339", "arrow"]
"""What a reply is: JSON, with features that are timestamps in one form or the other, or Arrow."""

_URLS: dict[bytes, tuple[Form, bool]] = {
    ROUTE.encode(): ("seconds", False),
    ROUTE.encode() + b"?metadata=plain": ("seconds", False),
    ROUTE.encode() + b"?timestamps=rfc3339": ("rfc3339", False),
    ROUTE.encode() + b"?strict=true": ("seconds", True),
}
"""What the URLs of lookups ask for: the form of the reply, and whether it must not be degraded."""
_LEFT = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"content-encoding"))
"""Headers whose requests are left to the application."""
_READ = frozenset((b"content-length", b"content-type", b"accept"))
_KEPT = _READ | GUARD_HEADERS
_MOST_HEADS, _LONGEST_HEAD = 1_000, 2_000
_TIMER_S = 1.0


class _Asks(NamedTuple):
    """What a head asks for."""

    form: Form
    head: RequestHead


class _Unheard:
    """In the place of the event that uvicorn sets for the tasks of its own cycles."""

    def set(self) -> None:
        pass


class LaneCycle:
    """One lookup under way, with the attributes by which uvicorn knows a request."""

    __slots__ = (
        "body",
        "call",
        "disconnected",
        "form",
        "head",
        "is_turn",
        "keep_alive",
        "more_body",
        "response_complete",
        "started_s",
    )

    message_event = _Unheard()

    def __init__(self, asks: _Asks, keep_alive: bool, is_turn: bool, body: bytes = b"") -> None:
        self.form, self.head = asks
        self.keep_alive, self.is_turn, self.body = keep_alive, is_turn, body
        self.more_body, self.response_complete, self.disconnected = True, False, False
        self.call: LookupCall | None = None
        self.started_s = time.perf_counter()


class _KnownHeads:
    """Heads of lookups that the parser has read before, byte by byte the same: how long a body each states, and what
    reply it asks for. They mean the same again."""

    def __init__(self) -> None:
        self._heads: dict[bytes, tuple[int, _Asks]] = {}
        self.get = self._heads.get

    def add(self, head: bytes, length: int, asks: _Asks) -> None:
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        if len(head) <= _LONGEST_HEAD:
            self._heads[head] = (length, asks)


def lane_protocol(state: ServerState) -> Any:
    """The protocol class for uvicorn's `http`. It is uvicorn's own where lookups do not go over one connection."""
    if not isinstance(state.reads, SharedConnection):
        return HttpToolsProtocol
    return partial(LaneProtocol, state, _KnownHeads())


class LaneProtocol(HttpToolsProtocol):
    """One HTTP connection."""

    def __init__(self, state: ServerState, heads: _KnownHeads, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._state, self._heads = state, heads
        self._body_limit = min(state.settings.max_body_bytes, OFF_LOOP_BYTES - 1)
        self._is_between = True
        self._url = b""
        self._lines: list[tuple[bytes, bytes]] = []
        self._unfinished: LaneCycle | None = None
        self._refusal: str | None = None
        self._idle_since_s = 0.0
        self._head: tuple[Any, bytes] = (None, b"")

    def data_received(self, data: bytes) -> None:
        """A whole lookup whose head is known goes straight on; all else through the parser."""
        before: Any = self.cycle
        if not self._is_between or not (before is None or before.response_complete):
            super().data_received(data)
            return
        end = data.find(b"\r\n\r\n") + 4
        known = self._heads.get(data[:end])
        if known is not None and len(data) == end + known[0] and not self.transport.is_closing():
            cycle: Any = LaneCycle(known[1], True, True, data[end:])
            cycle.more_body, self.cycle = False, cycle
            self._ask(cycle)
            return
        super().data_received(data)
        cycle = self.cycle
        if type(cycle) is not LaneCycle or cycle is before or cycle.more_body or not cycle.keep_alive:
            return
        if cycle.body == data[end:]:  # the only one in `data`, and whole
            self._heads.add(data[:end], len(cycle.body), _Asks(cycle.form, cycle.head))

    # what the parser has found

    def on_message_begin(self) -> None:
        self._is_between = False
        self._url, self._lines = b"", []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        asks = self._asks()
        if asks is None:
            self._leave_to_application()
            return
        before: Any = self.cycle
        is_turn = before is None or before.response_complete
        cycle: Any = LaneCycle(asks, self.parser.should_keep_alive(), is_turn)
        self.cycle = cycle
        if not is_turn:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        cycle: Any = self.cycle
        if type(cycle) is LaneCycle:
            cycle.body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_between = True
        cycle: Any = self.cycle
        if type(cycle) is not LaneCycle:
            super().on_message_complete()
            return
        cycle.more_body = False
        if cycle.is_turn:
            self._ask(cycle)

    def _asks(self) -> _Asks | None:
        """What the head of a lookup asks for; None for a request that is left to the application."""
        parser, url = self.parser, _URLS.get(self._url)
        if url is None or parser.get_method() != b"POST" or parser.get_http_version() != "1.1" or self.root_path:
            return None
        form, strict = url
        found: dict[bytes, bytes] = {}
        for name, value in self._lines:
            name = name.lower()
            if name in _LEFT or name in found:
                return None
            if name in _KEPT:
                found[name] = value.lower() if name in _READ else value
        length = found.get(b"content-length", b"")
        if not length.isdigit() or int(length) > self._body_limit:
            return None
        if not found.get(b"content-type", b"").startswith(b"application/json"):
            return None
        try:
            head = parse_head(found, strict)
        except RequestError:
            return None  # the application says what is wrong
        return _Asks("arrow" if wants_arrow(found.get(b"accept", b"").decode("latin-1")) else form, head)

    def _leave_to_application(self) -> None:
        super().on_message_begin()
        self.url = self._url
        for line in self._lines:
            super().on_header(*line)
        super().on_headers_complete()

    # what becomes of a lookup

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """The turn of the next pipelined request has come."""
        if type(cycle) is not LaneCycle:
            super()._start_asgi_task(cycle, app)
            return
        cycle.is_turn = True
        if not cycle.more_body:
            self.loop.call_soon(self._ask, cycle)  # not at once: it may end at once, and call the next

    def _ask(self, cycle: LaneCycle) -> None:
        state = self._state
        refused = refusal(state, cycle.head, ROUTE)
        state.admission.enter()
        if refused is not None:
            self._refuse(cycle, refused)
            return
        try:
            call = cycle.call = LookupCall(state, parse_question(cycle.body), cycle.head)
        except Exception as error:
            self._fail(cycle, error)
            return
        call.start(partial(self._answer, cycle), cycle.started_s)

    def _answer(self, cycle: LaneCycle, result: Any) -> None:
        call, form = cycle.call, cycle.form
        if call is None or isinstance(result, Exception):
            self._fail(cycle, result)
            return
        try:
            body = vector_bytes(result) if form == "arrow" else call.served.write(result, times=form)
        except Exception as error:
            self._fail(cycle, error)
        else:
            self._reply(cycle, 200, self._head_of(200, ARROW) if form == "arrow" else self._json_head(), body)

    def _fail(self, cycle: LaneCycle, error: Exception) -> None:
        self._refuse(cycle, failure_response(error, ROUTE))

    def _refuse(self, cycle: LaneCycle, response: Response) -> None:
        head = self._head_of(response.status_code)
        for name, value in response.headers.items():
            if not name.startswith("content-"):
                head += f"{name}: {value}\r\n".encode()
        self._reply(cycle, response.status_code, head, bytes(response.body))

    def _json_head(self) -> bytes:
        """Kept for as long as uvicorn keeps its default headers: a second."""
        defaults, head = self._head
        if defaults is not self.server_state.default_headers:
            head = self._head_of(200)
            self._head = self.server_state.default_headers, head
        return head

    def _head_of(self, status: int, kind: str = "application/json") -> bytes:
        lines = [b"%b: %b\r\n" % line for line in self.server_state.default_headers]
        return b"".join([STATUS_LINE[status], *lines, f"content-type: {kind}\r\n".encode()])

    def _reply(self, cycle: LaneCycle, status: int, head: bytes, body: bytes) -> None:
        now_s = self._idle_since_s = time.perf_counter()
        self._state.metrics.observe(ROUTE, status, now_s - cycle.started_s)
        self._state.admission.leave()
        if self.transport.is_closing():
            cycle.response_complete = True
            return
        end = b"\r\n\r\n" if cycle.keep_alive else b"\r\nconnection: close\r\n\r\n"
        self.transport.writelines((b"%bcontent-length: %d%b" % (head, len(body), end), body))
        if self.flow.write_paused and cycle.keep_alive:
            self._unfinished = cycle  # the caller does not read: the next waits until it does
            self.flow.pause_reading()
        else:
            self._finish(cycle)

    def _finish(self, cycle: LaneCycle) -> None:
        cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        if self.timeout_keep_alive_task is None or self.pipeline or self._refusal is not None:
            self.on_response_complete()
        else:  # all that is left of it
            self.server_state.total_requests += 1
            self.flow.resume_reading()

    # what becomes of the connection

    def resume_writing(self) -> None:
        super().resume_writing()
        cycle, self._unfinished = self._unfinished, None
        if cycle is not None:
            self._finish(cycle)

    def timeout_keep_alive_handler(self) -> None:
        """Closes a connection that has been idle for so long; a lookup leaves the timer of the one before it."""
        self.timeout_keep_alive_task = None
        left_s = self._idle_since_s + self.timeout_keep_alive - time.perf_counter()
        cycle: Any = self.cycle
        if left_s <= 0 and (cycle is None or cycle.response_complete):
            super().timeout_keep_alive_handler()
        else:
            wait_s = max(left_s, _TIMER_S)
            self.timeout_keep_alive_task = self.loop.call_later(wait_s, self.timeout_keep_alive_handler)

    def on_response_complete(self) -> None:
        is_last = not self.pipeline
        self._idle_since_s = time.perf_counter()
        super().on_response_complete()
        if self._refusal is not None and is_last and not self.transport.is_closing():
            super().send_400_response(self._refusal)

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP, once those that came before it are answered."""
        cycle = self.cycle
        if self.pipeline and cycle.more_body:
            self.pipeline.popleft()  # the request that broke off waits for its turn
        elif cycle is None or cycle.response_complete or cycle.more_body:
            super().send_400_response(msg)
            return
        self._refusal = msg
        self.flow.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        cycle: Any = self.cycle
        if type(cycle) is LaneCycle and cycle.more_body and cycle.is_turn:
            self._state.metrics.observe(ROUTE, CLIENT_GONE, time.perf_counter() - cycle.started_s)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
