"""Where the topics of Kafka sources end, asked of their brokers in a thread: their client blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from headrace.catalog.definitions import Catalog
from headrace.errors import SettingsError
from headrace.settings import Settings
from headrace.stores.kafka_log import KafkaLogs
from headrace.stores.stream import EntryHead
from headrace.telemetry import get_logger

__all__ = ["TopicHeads"]

Place = tuple[str, int]

log = get_logger()


class TopicHeads:
    """The topics of one server's catalog; none is opened before somebody asks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._topics: KafkaLogs | None = None

    async def read(self, catalog: Catalog, places: Sequence[Place]) -> dict[Place, EntryHead | None]:
        """The newest entry of every place; those of a topic that cannot be reached are left out."""
        return await asyncio.to_thread(self._read, catalog, places) if places else {}

    def _read(self, catalog: Catalog, places: Sequence[Place]) -> dict[Place, EntryHead | None]:
        with self._lock:
            try:
                self._topics = self._topics or KafkaLogs(catalog, self._settings)
                self._topics.use(catalog)
                return self._topics.heads(places)
            except SettingsError as error:
                log.warning("topics cannot be asked where they end", problem=str(error))
                return {}

    def close(self) -> None:
        with self._lock:
            if self._topics is not None:
                self._topics.close()
            self._topics = None
