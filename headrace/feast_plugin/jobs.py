"""What Feast gets for a question to the offline store: it is answered when asked for, and may be stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata

from headrace.errors import DataError

__all__ = ["HeadraceRetrievalJob"]


class HeadraceRetrievalJob(RetrievalJob):  # type: ignore[misc]
    """`evaluate` gives the rows; on-demand features are added by Feast itself."""

    def __init__(
        self,
        evaluate: Callable[[], pa.Table],
        repo: Path,
        *,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[Any] = (),
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._repo = repo
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[Any]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._evaluate()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._evaluate().to_pandas()
        return frame

    def persist(self, storage: Any, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the rows as Parquet: a file if the path ends in .parquet, else into a folder.

        Raises Feast's SavedDatasetLocationAlreadyExists, DataError for a storage that is no local file.
        """
        if not isinstance(storage, SavedDatasetFileStorage) or "://" in storage.file_options.uri:
            raise DataError("A dataset is saved to local files; use SavedDatasetFileStorage(path=...).")
        path = self._repo / storage.file_options.uri
        if not allow_overwrite and path.exists():
            raise SavedDatasetLocationAlreadyExists(location=storage.file_options.uri)
        if path.suffix != ".parquet":
            path.mkdir(parents=True, exist_ok=True)
            for old in path.glob("*.parquet"):
                old.unlink()
            path /= "rows.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.to_arrow(timeout=timeout), path)
