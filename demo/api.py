"""The server's HTTP interface, as far as the demo uses it."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pyarrow as pa

from demo.running import DemoError

__all__ = ["Api", "moment", "time_us"]

ARROW = "application/vnd.apache.arrow.stream"
CAUGHT_UP_S = 120.0


def moment(time_us: int) -> str:
    """RFC 3339 text of microseconds UTC."""
    text: str = pa.scalar(time_us, pa.int64()).cast(pa.timestamp("us", "UTC")).as_py().isoformat()
    return text.replace("+00:00", "Z")


def time_us(text: str) -> int:
    """The inverse of `moment`."""
    moment_us: int = pa.scalar(text).cast(pa.timestamp("us", "UTC")).cast(pa.int64()).as_py()
    return moment_us


class Api:
    """A client of one server. Every method raises DemoError for an answer that is not 200."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=60.0)

    def close(self) -> None:
        self._http.close()

    def push(self, source: str, events: pa.Table) -> None:
        """Append `events` to the stream of `source`, as an Arrow IPC stream; all of them must be accepted."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, events.schema) as writer:
            writer.write_table(events)
        reply = self._post(
            "/push", params={"source": source}, content=sink.getvalue().to_pybytes(), headers={"Content-Type": ARROW}
        )
        if reply["accepted"] != events.num_rows:
            raise DemoError(f"{events.num_rows} events were pushed to {source}, {reply['accepted']} were accepted.")

    def wait_until(self, state: str) -> None:
        """Wait until every source is `applied` or `archived` up to its head."""
        deadline = time.monotonic() + CAUGHT_UP_S
        while time.monotonic() < deadline:
            streams = self._answer(self._http.get("/streams"))
            if all(source[state] == source["head"] for source in streams.values()):
                return
            time.sleep(0.01)
        raise DemoError(f"The stream is not {state} after {CAUGHT_UP_S:.0f} s: {streams}")

    def lookup(self, service: str, entities: dict[str, list[Any]], as_of_us: int) -> dict[str, list[Any]]:
        """Feature values by full name, as of a moment; nulls are None."""
        reply = self._post(
            "/get-online-features",
            json={
                "feature_service": service,
                "entities": entities,
                "full_feature_names": True,
                "as_of": moment(as_of_us),
            },
        )
        columns = zip(reply["metadata"]["feature_names"], reply["results"], strict=True)
        return {name: column["values"] for name, column in columns if name not in entities}

    def predict(self, model: str, entities: dict[str, list[Any]]) -> dict[str, Any]:
        """Scores of the champion called `model`, as of now."""
        return self._post("/predict", json={"model": model, "entities": entities})

    def _post(self, path: str, **request: Any) -> dict[str, Any]:
        return self._answer(self._http.post(path, **request))

    def _answer(self, reply: httpx.Response) -> dict[str, Any]:
        if reply.status_code != 200:
            raise DemoError(f"{reply.request.url.path} answered {reply.status_code}: {reply.text[:2_000]}")
        answer: dict[str, Any] = reply.json()
        return answer
