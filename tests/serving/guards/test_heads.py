from __future__ import annotations

import pytest

from headrace.errors import RequestError
from serving.guards.heads import Priority, RequestHead, parse_head


@pytest.mark.parametrize(
    "headers, head",
    [
        ({}, RequestHead()),
        ({b"x-deadline-ms": b"12.5"}, RequestHead(deadline_s=0.0125)),
        ({b"x-priority": b"Critical"}, RequestHead(priority=Priority.critical)),
        ({b"x-request-id": b"a-1"}, RequestHead(request_id="a-1")),
        ({b"x-api-key": b"k", b"authorization": b"Bearer other"}, RequestHead(key=b"k")),
        ({b"authorization": b"bearer k"}, RequestHead(key=b"k")),
        ({b"authorization": b"Basic k"}, RequestHead()),
    ],
)
def test_what_a_head_says(headers: dict[bytes, bytes], head: RequestHead) -> None:
    assert parse_head(headers) == head


@pytest.mark.parametrize(
    "name, value",
    [
        ("x-deadline-ms", "0"),
        ("x-deadline-ms", "nan"),
        ("x-deadline-ms", "1e9"),
        ("x-deadline-ms", ""),
        ("x-priority", "urgent"),
        ("x-request-id", ""),
        ("x-request-id", "a" * 129),
        ("x-request-id", "a\x1b[0m"),
    ],
)
def test_a_value_that_means_nothing_is_told(name: str, value: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_head({name.encode(): value.encode()})
    assert name in str(refused.value).lower()
