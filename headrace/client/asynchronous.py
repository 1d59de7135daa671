"""The client for programs on an event loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from headrace.client.arguments import (
    Entities,
    Rows,
    entity_columns,
    guard_headers,
    lookup_body,
    moment_text,
    pushed_body,
)
from headrace.client.over_http import HttpBackend
from headrace.client.retries import Patience, patiently
from headrace.client.vectors import FeatureVectors, Predictions, Pushed

if TYPE_CHECKING:
    from headrace.client.over_store import StoreBackend
    from headrace.settings import Settings

__all__ = ["DEADLINE_S", "RETRIES", "AsyncFeatureClient"]

DEADLINE_S = 5.0
RETRIES = 3
CONNECTIONS = 100


class AsyncFeatureClient:
    """Lookups, predictions and pushes, as coroutines of one event loop."""

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
        """A client of the server at `url`, which may be `unix:/path/of/its/socket`.

        A call takes at most `deadline_s` seconds, and a read that failed for a moment is repeated up to `retries`
        times within them. `headers` go with every request; `verify` is False for any certificate, or the path of a
        CA's; at most `connections` are open at once. `api_key` is by default HEADRACE_API_KEY; `priority` (critical,
        normal, batch) says who is refused first when the server has too much to do; with `strict` a lookup fails where
        it would else be answered without the store.
        """
        own = guard_headers(api_key, priority)
        self._backend: HttpBackend | StoreBackend = HttpBackend(
            url, headers={**own, **(headers or {})}, verify=verify, connections=connections, strict=strict
        )
        self._patience = Patience(deadline_s, retries)

    @classmethod
    def from_store(
        cls, settings: Settings | None = None, *, deadline_s: float = DEADLINE_S, retries: int = RETRIES
    ) -> Self:
        """A client without a server: it reads the online store of `settings` (default: of the environment) itself.

        Connects at once, which blocks. Raises SettingsError for a set-up that cannot work, UnavailableError before
        the first apply.
        """
        from headrace.client.over_store import StoreBackend
        from headrace.settings import load_settings

        made = cls.__new__(cls)
        made._backend = StoreBackend(settings or load_settings())
        made._patience = Patience(deadline_s, retries)
        return made

    async def get(
        self,
        features: str | Sequence[str],
        entities: Entities,
        *,
        as_of: datetime | str | None = None,
        full_feature_names: bool = False,
        metadata: str = "plain",
        deadline_s: float | None = None,
    ) -> FeatureVectors:
        """The feature vectors of a service (by its name) or of references `view:feature`, one per row of `entities`.

        `entities` holds join keys and the request data of on-demand views, as columns or as one mapping per row.
        `metadata="full"` fills `FeatureVectors.metadata`. Raises UnknownNameError, AsOfError or RequestError for what
        the caller must change; DeadlineError, and UnavailableError when every attempt failed.
        """
        body = lookup_body(features, entities, as_of, full_feature_names)
        return await patiently(lambda: self._backend.get(body, metadata == "full"), self._within(deadline_s))

    async def predict(
        self,
        entities: Entities,
        *,
        model: str | None = None,
        service: str | None = None,
        as_of: datetime | str | None = None,
        deadline_s: float | None = None,
    ) -> Predictions:
        """The champion's probability that its label is true, one per row. Raises as `get` does."""
        chosen = {"model": model, "feature_service": service, "as_of": None if as_of is None else moment_text(as_of)}
        given = {name: value for name, value in chosen.items() if value is not None}
        body: dict[str, Any] = {"entities": entity_columns(entities), **given}
        return await patiently(lambda: self._backend.predict(body), self._within(deadline_s))

    async def push(self, source: str, rows: Rows, *, deadline_s: float | None = None) -> Pushed:
        """Appends events to a source's stream: columns, one mapping per event, an Arrow table or a frame.

        Is not repeated when it fails, for it may have arrived: with an event id in the source, push it again; without
        one it might count twice. Raises StreamFullError with `retry_after_s` while the stream's budget is used up.
        """
        kind, body = pushed_body(rows)
        once = Patience(self._patience.deadline_s if deadline_s is None else deadline_s, 0)
        return await patiently(lambda: self._backend.push(source, kind, body), once)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._backend.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _within(self, deadline_s: float | None) -> Patience:
        return self._patience if deadline_s is None else Patience(deadline_s, self._patience.retries)
