"""Training sets: label rows in, point-in-time-correct features out, by the definitions that the online path runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pandas as pd
import pyarrow as pa

from headrace.catalog.definitions import BatchSource, Catalog
from headrace.errors import DataError, RequestError, UnavailableError
from headrace.read.dataset import DEFAULT_MEMORY, parse_bytes, plan_of, sources_behind
from headrace.read.fingerprints import FileStamp
from headrace.read.history import History
from headrace.read.joins.join import OnProgress, iter_training_rows
from headrace.read.label_origin import LabelOrigin, given_again, is_same, open_with_origin
from headrace.read.manifest import (
    ColumnSummary,
    DatasetManifest,
    HashedFile,
    Options,
    Tally,
    column_differences,
    needed_catalog,
    read_manifest,
    refuse_unknown_functions,
    tombstones_sha256,
)
from headrace.read.plans import LookupPlan
from headrace.settings import Settings, load_settings
from headrace.stores.batch_files import batch_path
from headrace.stores.catalogs import find_project, load_catalog
from headrace.stores.connection import open_store
from headrace.stores.offline import OfflineStore
from headrace.stores.table_writer import TableWriter, move_into_place, scratch_beside

if TYPE_CHECKING:
    import polars as pl

__all__ = ["TrainingSet", "manifest_path", "rebuild_training_set", "training_set"]


def training_set(
    features: str | Sequence[str],
    labels: Any,
    *,
    settings: Settings | None = None,
    full_feature_names: bool = False,
    memory: str | int = DEFAULT_MEMORY,
    as_known: bool = False,
) -> TrainingSet:
    """The label rows with features as they were at each row's `event_timestamp` (without a zone: UTC).

    `features` is a feature service's name, or references `["view:feature", ...]`. `labels` is a pyarrow table, a
    pandas or polars DataFrame, a path to Parquet, Delta, CSV or NDJSON, or a `headrace.grid`; it holds the join keys
    of the views and the request data of on-demand views, and whatever else it likes. A null key is an unseen entity.
    The log is read up to what is archived now.

    `as_known` counts only events that had arrived by then; without it event time alone decides. `memory` bounds what
    building takes beyond the rows that one asks to hold. Nothing is built yet: see `TrainingSet`.

    Raises UnknownNameError for names, RequestError for options, and DataError for labels that do not fit.
    """
    settings = settings or load_settings()
    catalog = _applied_catalog(settings)
    wanted = features if isinstance(features, str) else tuple(features)
    options = Options(full_feature_names, as_known, parse_bytes(memory))
    plan = plan_of(catalog, wanted, full_feature_names)
    offline = OfflineStore(settings.data_dir)
    positions = {source.name: offline.positions(source) for source in sources_behind(catalog, plan)}
    history = History(offline, settings.repo, positions)
    stamps = _stamps(plan, settings.repo)
    with _archive():
        origin = open_with_origin(labels, plan, history, options.memory_bytes)
    return TrainingSet(_Recipe(wanted, plan, origin, history, positions, options, stamps))


def rebuild_training_set(
    manifest: DatasetManifest | str | Path,
    labels: Any = None,
    *,
    settings: Settings | None = None,
    memory: str | int | None = None,
    allow_changed: bool = False,
    trust_functions: bool = False,
) -> TrainingSet:
    """The rows of a manifest again, whatever was applied, archived, compacted or vacuumed since.

    `labels` is needed where they were a table, or their file has moved. What is no longer as the manifest has it (the
    labels, a batch file, keys that were forgotten) raises DataError; with `allow_changed` it is stated in
    `TrainingSet.differences`. A manifest's functions run if the present catalog has them too, or with
    `trust_functions`.
    """
    settings = settings or load_settings()
    known = manifest if isinstance(manifest, DatasetManifest) else read_manifest(Path(manifest))
    project = find_project(settings)
    if project != known.project:
        raise RequestError(
            f"A manifest is of one project, this one of {known.project!r}, and the data directory of {project!r}; "
            "name the other one's (--data-dir, --repo)."
        )
    if not trust_functions:
        refuse_unknown_functions(known, _catalog_if_any(settings))
    memory_bytes = known.options.memory_bytes if memory is None else parse_bytes(memory)
    options = replace(known.options, memory_bytes=memory_bytes)
    plan = plan_of(known.catalog, known.features, options.full_feature_names)
    history = History(OfflineStore(settings.data_dir), settings.repo, known.positions)
    stamps = _stamps(plan, settings.repo)
    with _archive():
        origin = open_with_origin(given_again(known.labels, labels), plan, history, memory_bytes)
    recipe = _Recipe(known.features, plan, origin, history, known.positions, options, stamps)
    return TrainingSet(recipe, known, _changed(known, recipe, allow_changed), allow_changed)


def manifest_path(path: Path) -> Path:
    """Where the manifest of the rows at `path` lies: `train.parquet.manifest.json`."""
    return path.with_name(f"{path.name}.manifest.json")


@dataclass(frozen=True, slots=True)
class _Recipe:
    """All that rows are built from."""

    wanted: str | tuple[str, ...]
    plan: LookupPlan
    origin: LabelOrigin
    history: History
    positions: Mapping[str, Mapping[int, int]]
    options: Options
    batch_files: tuple[tuple[str, str, FileStamp], ...]
    """(source, path as defined, file)"""

    def hashed_files(self) -> tuple[HashedFile, ...]:
        return tuple(HashedFile(name, path, stamp.sha256()) for name, path, stamp in self.batch_files)


class TrainingSet:
    """Rows to be built: each of the `to_` functions builds them from the same past, so they give the same rows.

    The label columns come first, in their order, then the features in the service's; row order is kept. Values have
    their declared types; times are timestamp('us', 'UTC').
    """

    def __init__(
        self,
        recipe: _Recipe,
        known: DatasetManifest | None = None,
        differences: Sequence[str] = (),
        allow_changed: bool = False,
    ) -> None:
        self._recipe, self._known, self._allow_changed = recipe, known, allow_changed
        self._differences = tuple(differences)
        self._table: pa.Table | None = None
        self._rows: int | None = None
        self._columns: tuple[ColumnSummary, ...] = ()

    @property
    def num_rows(self) -> int:
        """How many rows there will be."""
        return self._recipe.origin.rows.num_rows

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the feature columns."""
        return tuple(output.name for output in self._recipe.plan.outputs)

    @property
    def differences(self) -> tuple[str, ...]:
        """What is not as the manifest has it that these rows are built again from."""
        return self._differences

    @property
    def summary(self) -> tuple[ColumnSummary, ...]:
        """What came out, by column: null counts, values out of range, hashes; empty until rows were built."""
        return self._columns

    @property
    def manifest(self) -> DatasetManifest:
        """What the rows are built from and, once they were, what came out. Raises DataError if a file of it was
        written since this training set was made."""
        recipe, plan = self._recipe, self._recipe.plan
        return DatasetManifest(
            project=plan.catalog.project,
            catalog_version=plan.catalog.version,
            catalog=needed_catalog(plan, recipe.wanted),
            features=recipe.wanted,
            options=recipe.options,
            labels=recipe.origin.record(),
            positions=recipe.positions,
            batch_files=recipe.hashed_files(),
            forgotten=tombstones_sha256(recipe.history.forgotten),
            created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            headrace=version("headrace"),
            rows=self._rows,
            columns=self._columns,
            differences=self._differences,
        )

    def to_batches(self, on_progress: OnProgress | None = None) -> Iterator[pa.RecordBatch]:
        """The rows, some at a time, in memory that does not grow with their number."""
        with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
            for table in self._tables(Path(folder), on_progress):
                yield from table.to_batches()

    def to_arrow(self, on_progress: OnProgress | None = None) -> pa.Table:
        """The rows as one table, which is built once."""
        if self._table is None:
            with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
                self._table = pa.concat_tables(list(self._tables(Path(folder), on_progress)))
        return self._table

    def to_pandas(self) -> pd.DataFrame:
        """The rows as pandas has them: an integer column with nulls is float64."""
        frame: pd.DataFrame = self.to_arrow().to_pandas()
        return frame

    def to_polars(self) -> pl.DataFrame:
        """The rows as polars has them."""
        import polars as pl

        return cast("pl.DataFrame", pl.from_arrow(self.to_arrow()))

    def to_parquet(
        self, path: str | Path, *, manifest: str | Path | bool = True, on_progress: OnProgress | None = None
    ) -> Path:
        """Write the rows to a Parquet file, row group by row group, and their manifest to `PATH.manifest.json` (or
        where `manifest` says; False for none). Returns the path.

        An interrupted or failed run leaves what was there before. Raises DataError for what cannot be written.
        """
        return self._write(Path(path), "parquet", manifest, on_progress)

    def to_csv(
        self, path: str | Path, *, manifest: str | Path | bool = True, on_progress: OnProgress | None = None
    ) -> Path:
        """The same as a CSV file, which has no lists."""
        return self._write(Path(path), "csv", manifest, on_progress)

    def _write(
        self, out: Path, file_format: Literal["parquet", "csv"], manifest: str | Path | bool, on_progress: Any
    ) -> Path:
        beside = manifest_path(out) if manifest is True else (Path(manifest) if manifest else None)
        with scratch_beside(out) as folder, scratch_beside(beside) if beside else nullcontext(folder) as note:
            half, described, spill_dir = folder / out.name, note / "manifest.json", folder / "spill"
            spill_dir.mkdir()
            tables = self._tables(spill_dir, on_progress)
            first = next(tables)
            with TableWriter(half, first.schema, file_format) as writer:
                writer.write(first)
                for table in tables:
                    writer.write(table)
            if beside is not None:
                self.manifest.write(described)
            manifest_path(out).unlink(missing_ok=True)  # never one beside rows that it is not of
            move_into_place(half, out)
            if beside is not None:
                move_into_place(described, beside)
        return out

    def _tables(self, spill_dir: Path, on_progress: OnProgress | None) -> Iterator[pa.Table]:
        recipe = self._recipe
        tally, beyond = Tally(recipe.plan), dict[str, int]()
        tables = iter_training_rows(
            recipe.plan.catalog,
            recipe.plan,
            recipe.origin.rows,
            recipe.history,
            memory_bytes=recipe.options.memory_bytes,
            as_known=recipe.options.as_known,
            spill_dir=spill_dir,
            on_progress=on_progress or _silent,
            beyond=beyond,
        )
        with _archive():
            for table in tables:
                tally.add(table)
                yield table
        self._rows, self._columns = tally.rows, tally.summaries(beyond)
        self._compare()

    def _compare(self) -> None:
        """Hold the rows against those of the manifest that they are built again from."""
        if self._known is None or self._known.rows is None:
            return
        wrong = ", ".join(column_differences(self._known.columns, self._columns))
        if wrong and not self._allow_changed:
            raise DataError(
                f"The rows are not those of the manifest: {wrong} differ, though all that they are built from is as it "
                "was; add --allow-changed (allow_changed=True) to have them as they are."
            )
        found = [f"the values of {wrong} are not those of the manifest"] if wrong else []
        self._differences = tuple(dict.fromkeys([*self._differences, *found]))


@contextmanager
def _archive() -> Iterator[None]:
    """Says of a file of the archive that is gone what it means."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            f"The archive has all files that its tables name, {error.filename or error} is missing; restore it from a "
            "backup."
        ) from None


def _silent(what: str, done: int, total: int) -> None:
    """Nobody watches."""


def _stamps(plan: LookupPlan, repo: Path) -> tuple[tuple[str, str, FileStamp], ...]:
    found = {step.view.batch.name: step.view.batch for step in plan.steps if step.view.batch is not None}
    return tuple((item.name, item.path, _stamp(item, repo)) for item in found.values())


def _stamp(source: BatchSource, repo: Path) -> FileStamp:
    try:
        return FileStamp.of(batch_path(source, repo))
    except DataError as error:
        raise DataError(f"Batch source {source.name!r}: {error}") from None


def _changed(known: DatasetManifest, recipe: _Recipe, allow_changed: bool) -> list[str]:
    """What the rows are built from and is not as the manifest has it. Raises DataError where that is not allowed."""
    found = []
    if not is_same(known.labels, recipe.origin.record()):
        found.append("the labels are not those of the manifest")
    now = {(item.source, item.path): item.sha256 for item in recipe.hashed_files()}
    for item in known.batch_files:
        if now.get((item.source, item.path)) != item.sha256:
            found.append(f"the file {item.path} of batch source {item.source!r} is not what it was")
    forgotten = tombstones_sha256(recipe.history.forgotten)
    if forgotten != known.forgotten:
        found.append(f"other keys are forgotten ({forgotten[0]}, then {known.forgotten[0]}), and their rows gone")
    if found and not allow_changed:
        raise DataError(
            f"Rows are built again from what they were built from, but {'; '.join(found)}. Bring it back, or add "
            "--allow-changed (allow_changed=True) to have the rows that there are now."
        )
    return found


def _applied_catalog(settings: Settings) -> Catalog:
    store = open_store(settings)
    try:
        return load_catalog(store, find_project(settings))
    finally:
        store.close()


def _catalog_if_any(settings: Settings) -> Catalog | None:
    try:
        return _applied_catalog(settings)
    except UnavailableError:
        return None
