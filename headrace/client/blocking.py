"""The client for programs without an event loop, and for threads."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar

from headrace.client.arguments import Entities, Rows
from headrace.client.asynchronous import CONNECTIONS, DEADLINE_S, RETRIES, AsyncFeatureClient
from headrace.client.vectors import FeatureVectors, Predictions, Pushed

if TYPE_CHECKING:
    from headrace.settings import Settings

__all__ = ["FeatureClient"]

Answer = TypeVar("Answer")
Make = Callable[[], AsyncFeatureClient]


class _Runner:
    """An async client on a loop of its own, in a thread of its own, of one process."""

    def __init__(self, make: Make) -> None:
        self.pid = os.getpid()
        self.client = make()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="headrace client", daemon=True)
        self._thread.start()

    def run(self, call: Coroutine[Any, Any, Answer]) -> Answer:
        answer = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return answer.result()
        except BaseException:
            answer.cancel()
            raise

    def close(self) -> None:
        self.run(self.client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class FeatureClient:
    """Lookups, predictions and pushes. Threads may share one, and so may a process that forks with its children."""

    def __init__(
        self,
        url: str = "http://localhost:6566",
        *,
        deadline_s: float = DEADLINE_S,
        retries: int = RETRIES,
        headers: Mapping[str, str] | None = None,
        verify: bool | str = True,
        connections: int = CONNECTIONS,
        api_key: str | None = None,
        priority: str = "normal",
        strict: bool = False,
    ) -> None:
        """A client of the server at `url`; the arguments are those of `AsyncFeatureClient`."""
        options: dict[str, Any] = {"deadline_s": deadline_s, "retries": retries, "headers": headers}
        options |= {"api_key": api_key, "priority": priority, "strict": strict}
        self._open(lambda: AsyncFeatureClient(url, **options, verify=verify, connections=connections))

    @classmethod
    def from_store(
        cls, settings: Settings | None = None, *, deadline_s: float = DEADLINE_S, retries: int = RETRIES
    ) -> Self:
        """A client that reads the online store itself; as `AsyncFeatureClient.from_store`."""
        made = cls.__new__(cls)
        made._open(lambda: AsyncFeatureClient.from_store(settings, deadline_s=deadline_s, retries=retries))
        return made

    def _open(self, make: Make) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._runner: _Runner | None = _Runner(make)
        self._closed = False

    def get(
        self,
        features: str | Sequence[str],
        entities: Entities,
        *,
        as_of: datetime | str | None = None,
        full_feature_names: bool = False,
        metadata: str = "plain",
        deadline_s: float | None = None,
    ) -> FeatureVectors:
        """The feature vectors of a service or of references `view:feature`; as `AsyncFeatureClient.get`."""
        options: dict[str, Any] = {"as_of": as_of, "full_feature_names": full_feature_names, "metadata": metadata}
        runner = self._running()
        return runner.run(runner.client.get(features, entities, **options, deadline_s=deadline_s))

    def predict(
        self,
        entities: Entities,
        *,
        model: str | None = None,
        service: str | None = None,
        as_of: datetime | str | None = None,
        deadline_s: float | None = None,
    ) -> Predictions:
        """A model's scores; as `AsyncFeatureClient.predict`."""
        options: dict[str, Any] = {"model": model, "service": service, "as_of": as_of, "deadline_s": deadline_s}
        runner = self._running()
        return runner.run(runner.client.predict(entities, **options))

    def push(self, source: str, rows: Rows, *, deadline_s: float | None = None) -> Pushed:
        """Appends events; as `AsyncFeatureClient.push`."""
        runner = self._running()
        return runner.run(runner.client.push(source, rows, deadline_s=deadline_s))

    def close(self) -> None:
        """Closes the connections; a call after it raises RuntimeError."""
        with self._lock:
            runner, self._runner, self._closed = self._runner, None, True
        if runner is not None and runner.pid == os.getpid():
            runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running(self) -> _Runner:
        """This process's runner: a fork takes neither threads nor connections with it."""
        with self._lock:
            if self._closed:
                raise RuntimeError("A client that was closed answers no more; make another.")
            if self._runner is None or self._runner.pid != os.getpid():
                self._runner = _Runner(self._make)
            return self._runner
