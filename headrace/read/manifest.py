"""Manifests of training sets: what the rows were built from, so that they can be built again and held against it.

A manifest holds the definitions themselves (the part of the catalog that the features need), not a version's number:
it works whatever is applied later. With them come users' functions; see `refuse_unknown_functions`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from headrace.catalog.definitions import Catalog, catalog_from_json, catalog_to_json
from headrace.errors import DataError, RequestError
from headrace.read.fingerprints import ColumnHash
from headrace.read.plans import LookupPlan
from headrace.stores.tombstones import Tombstones

__all__ = [
    "MANIFEST_FORMAT",
    "ColumnSummary",
    "DatasetManifest",
    "HashedFile",
    "Options",
    "Tally",
    "column_differences",
    "needed_catalog",
    "read_manifest",
    "refuse_unknown_functions",
    "tombstones_sha256",
]

MANIFEST_FORMAT = 1
_KIND = "headrace training set"


@dataclass(frozen=True, slots=True)
class Options:
    """How the rows were asked for."""

    full_feature_names: bool
    as_known: bool
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A batch source's file as it was read; `path` as the definitions write it."""

    source: str
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ColumnSummary:
    """A column of the rows: how many values are null, how many of those were beyond their type or bound, and the hash
    of all in their order."""

    name: str
    type: str
    is_feature: bool
    nulls: int
    beyond: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DatasetManifest:
    """What a training set was built from, and what came out.

    `features` is a service's name or references; `labels` says what they were (see docs/training-sets.md);
    `positions` are the archived offsets by source and partition up to which the log was read; `forgotten` counts the
    keys that had been forgotten, with a hash. `rows` is None and `columns` are empty until rows were built.
    `differences` say what was not as a manifest has it that the rows were built again from.
    """

    project: str
    catalog_version: int
    catalog: Catalog
    features: str | tuple[str, ...]
    options: Options
    labels: Mapping[str, Any]
    positions: Mapping[str, Mapping[int, int]]
    batch_files: tuple[HashedFile, ...]
    forgotten: tuple[int, str]
    created_at: str
    headrace: str
    rows: int | None = None
    columns: tuple[ColumnSummary, ...] = ()
    differences: tuple[str, ...] = ()

    @property
    def null_rates(self) -> dict[str, float]:
        """The share of null values by feature."""
        return {item.name: item.nulls / (self.rows or 1) for item in self.columns if item.is_feature}

    def to_json(self) -> bytes:
        """UTF-8 JSON, indented."""
        plain = {"format": MANIFEST_FORMAT, "kind": _KIND, **asdict(replace(self, catalog=None))}  # type: ignore[arg-type]
        plain["positions"] = {name: {str(p): at for p, at in parts.items()} for name, parts in self.positions.items()}
        plain["columns"] = [asdict(item) | {"null_rate": item.nulls / (self.rows or 1)} for item in self.columns]
        plain["catalog"] = orjson.loads(catalog_to_json(self.catalog))
        return orjson.dumps(plain, option=orjson.OPT_INDENT_2) + b"\n"

    def write(self, path: Path) -> None:
        """Write it to `path`. Raises DataError where that fails."""
        try:
            path.write_bytes(self.to_json())
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error}; choose another file.") from None


def read_manifest(path: Path) -> DatasetManifest:
    """The manifest at `path`. Raises DataError for what is none, or has another format."""
    try:
        raw = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read as a manifest: {error}; name the JSON file beside the rows.") from None
    if not isinstance(raw, dict) or raw.pop("kind", None) != _KIND:
        raise DataError(f"{path} is no manifest of a training set; name the JSON file beside the rows.")
    if raw.pop("format", None) != MANIFEST_FORMAT:
        raise DataError(f"{path} has another format than {MANIFEST_FORMAT}, which this Headrace reads; build it anew.")
    try:
        return _from_plain(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is no whole manifest of a training set ({error!r}); build the rows anew.") from None


def _from_plain(raw: dict[str, Any]) -> DatasetManifest:
    features = raw["features"]
    raw["features"] = features if isinstance(features, str) else tuple(features)
    raw["catalog"] = catalog_from_json(orjson.dumps(raw["catalog"]))
    raw["options"] = Options(**raw["options"])
    raw["positions"] = {name: {int(part): at for part, at in parts.items()} for name, parts in raw["positions"].items()}
    raw["batch_files"] = tuple(HashedFile(**item) for item in raw["batch_files"])
    count, digest = raw["forgotten"]
    raw["forgotten"] = (count, digest)
    columns = [{name: value for name, value in item.items() if name != "null_rate"} for item in raw["columns"]]
    raw["columns"] = tuple(ColumnSummary(**item) for item in columns)
    raw["differences"] = tuple(raw["differences"])
    return DatasetManifest(**raw)


def needed_catalog(plan: LookupPlan, features: str | tuple[str, ...]) -> Catalog:
    """The part of the plan's catalog that the features need."""
    catalog = plan.catalog
    views = {step.view.name for step in plan.steps}
    on_demand = {step.view.name for step in plan.on_demand}
    sources = {step.view.source for step in plan.steps}
    return replace(
        catalog,
        views=tuple(view for view in catalog.views if view.name in views),
        on_demand_views=tuple(view for view in catalog.on_demand_views if view.name in on_demand),
        sources=tuple(source for source in catalog.sources if source.name in sources),
        services=tuple(service for service in catalog.services if service.name == features),
        arriving=(),
        retiring=(),
    )


def tombstones_sha256(tombstones: Tombstones) -> tuple[int, str]:
    """How many keys were forgotten, and a hash of which, and up to where."""
    items = sorted((item.digest, item.at_us, sorted(item.places.items())) for item in tombstones.items.values())
    return len(items), hashlib.sha256(orjson.dumps(items)).hexdigest()


def refuse_unknown_functions(manifest: DatasetManifest, catalog: Catalog | None) -> None:
    """Raises RequestError if the manifest brings a function that `catalog` (what is applied now) does not have: to
    build its rows is to run it."""
    known = set() if catalog is None else set(_functions(catalog))
    unknown = [name for code, name in _functions(manifest.catalog).items() if code not in known]
    if unknown:
        raise RequestError(
            f"A manifest's functions run when its rows are built, and those of {', '.join(unknown)} are not (or no "
            "longer) in the catalog; read them in the manifest, then add --trust-functions (trust_functions=True)."
        )


def _functions(catalog: Catalog) -> dict[str, str]:
    """Views by their functions' code."""
    found = {view.code: view.name for view in catalog.on_demand_views}
    return found | {view.transform.code: view.name for view in catalog.views if view.transform is not None}


class Tally:
    """Counts and hashes of rows as they go by."""

    def __init__(self, plan: LookupPlan) -> None:
        self.rows = 0
        self._features = {output.name for output in plan.outputs}
        self._columns: dict[str, tuple[str, ColumnHash]] = {}
        self._nulls: dict[str, int] = {}

    def add(self, table: pa.Table) -> None:
        """The rows that come next."""
        self.rows += table.num_rows
        for field in table.schema:
            column = table[field.name]
            self._nulls[field.name] = self._nulls.get(field.name, 0) + column.null_count
            self._columns.setdefault(field.name, (str(field.type), ColumnHash()))[1].update(column)

    def summaries(self, beyond: Mapping[str, int]) -> tuple[ColumnSummary, ...]:
        """What was seen of each column; `beyond` counts values beyond their range by feature."""
        return tuple(
            ColumnSummary(name, kind, name in self._features, self._nulls[name], beyond.get(name, 0), held.hexdigest())
            for name, (kind, held) in self._columns.items()
        )


def column_differences(known: Iterable[ColumnSummary], found: Iterable[ColumnSummary]) -> list[str]:
    """The columns that are not what they were."""
    now = {item.name: item for item in found}
    return [item.name for item in known if now.get(item.name) != item]
