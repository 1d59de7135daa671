"""What every training set is built from: the plan of its features, how far the log is read, and the rows at once."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.catalog.definitions import Catalog, Source
from headrace.errors import RequestError
from headrace.read.history import Past, sources_of
from headrace.read.joins.join import OnProgress, iter_training_rows
from headrace.read.label_files import open_labels
from headrace.read.plans import LookupPlan, plan_features, plan_service
from headrace.stores.offline import OfflineStore

__all__ = ["DEFAULT_MEMORY", "build_dataset", "parse_bytes", "plan_of", "read_positions", "sources_behind"]

DEFAULT_MEMORY = "2GB"
LEAST_MEMORY_BYTES = 64_000_000

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


def build_dataset(
    catalog: Catalog,
    wanted: str | Sequence[str],
    labels: Any,
    history: Past,
    *,
    full_feature_names: bool = False,
    as_known: bool = False,
    memory: str | int = DEFAULT_MEMORY,
    on_progress: OnProgress = lambda what, done, total: None,
) -> pa.Table:
    """The rows of `headrace.training_set` as one table, from a given catalog and history; with `history.up_to` (see
    `read_positions`) it gives the same rows again, whatever has been archived since (batch files aside)."""
    plan = plan_of(catalog, wanted, full_feature_names)
    memory_bytes = parse_bytes(memory)
    rows = open_labels(labels, plan, memory_bytes)
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        tables = iter_training_rows(
            catalog,
            plan,
            rows,
            history,
            memory_bytes=memory_bytes,
            as_known=as_known,
            spill_dir=Path(folder),
            on_progress=on_progress,
        )
        return pa.concat_tables(tables)


def plan_of(catalog: Catalog, wanted: str | Sequence[str], full_feature_names: bool = False) -> LookupPlan:
    """The plan of a service by its name, or of references `view:feature`."""
    if isinstance(wanted, str):
        return plan_service(catalog, wanted, full_feature_names)
    return plan_features(catalog, wanted, full_feature_names)


def sources_behind(catalog: Catalog, plan: LookupPlan) -> list[Source]:
    """Every archived source that the plan's views read, each once."""
    found = {source.name: source for step in plan.steps for source in sources_of(catalog, step.view)}
    return list(found.values())


def read_positions(catalog: Catalog, wanted: str | Sequence[str], offline: OfflineStore) -> dict[str, dict[int, int]]:
    """Archived offset by partition of every source behind the features: what to hand `History` for the same rows
    again."""
    plan = plan_of(catalog, wanted, full_feature_names=True)
    return {source.name: offline.positions(source) for source in sources_behind(catalog, plan)}


def parse_bytes(size: str | int) -> int:
    """Bytes of a size such as `2GB`, `512MiB` or a number. Raises RequestError for another text and below 64 MB."""
    match = _SIZE.fullmatch(str(size).strip().lower())
    if match is None or match[2] not in _UNITS:
        raise RequestError(f"A size is a number and one of KB, MB, GB, TB, MiB, GiB, got {size!r}; write it like 2GB.")
    found = int(float(match[1]) * _UNITS[match[2]])
    if found < LEAST_MEMORY_BYTES:
        raise RequestError(f"A training set is built in at least 64 MB, got {size!r}; allow more (--memory 2GB).")
    return found
