"""Models as files: an artifact, a manifest that says what it needs and came from, and a champion.

    DATA_DIR/models/NAME/VERSION/model.skops     the fitted pipeline; skops, never pickle
    DATA_DIR/models/NAME/VERSION/manifest.json   a Manifest
    DATA_DIR/models/NAME/champion                the version that is served, replaced atomically

Training and scoring turn columns into the pipeline's input by the one function `model_frame`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.dtypes import DType
from headrace.errors import DataError, DefinitionError, RequestError, UnknownNameError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Champions",
    "Manifest",
    "Model",
    "ModelInput",
    "champion_manifests",
    "champion_of",
    "champion_version",
    "load_model",
    "model_frame",
    "model_inputs",
    "promote",
    "save_model",
    "versions",
]

MANIFEST_FORMAT = 1
TRUSTED_TYPES = ["numpy.dtype"]
"""What our pipelines hold beyond what skops trusts by itself; an artifact that names more is refused."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_ARTIFACT, _MANIFEST, _CHAMPION = "model.skops", "manifest.json", "champion"


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One column that a model reads: a feature `view__feature`, or a join key under its own name."""

    name: str
    dtype: DType

    @property
    def is_category(self) -> bool:
        return self.dtype is DType.STRING


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that is known of one fitted model. Times are RFC 3339 text in UTC.

    `inputs` are in the order of the fit; features bear their full names (`view__feature`) and come from `service`
    as of `catalog_version`. `positions` holds, by source and partition, the offset up to which events were read.
    `data` states rows and the range of times of the train and test part, `metrics` what the test part gave.
    `sha256` is the artifact's.
    """

    name: str
    service: str
    inputs: tuple[ModelInput, ...]
    label: str
    label_delay_s: float
    catalog_version: int
    positions: Mapping[str, Mapping[str, int]]
    data: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, float]
    libraries: Mapping[str, str]
    created_at: str
    version: int = 0
    sha256: str = ""
    format: int = MANIFEST_FORMAT


class Model:
    """A loaded model: what it is, and its scores."""

    def __init__(self, manifest: Manifest, pipeline: Any) -> None:
        self.manifest = manifest
        self._pipeline = pipeline

    def predict_proba(self, columns: Mapping[str, pa.Array]) -> NDArray[np.float64]:
        """The probability that the label is true, one float64 per row.

        `columns` holds every input by its name (others are ignored). Raises RequestError for one that is missing.
        """
        frame = model_frame(self.manifest.inputs, columns)
        scores: NDArray[np.float64] = np.asarray(self._pipeline.predict_proba(frame)[:, 1], np.float64)
        return scores


class Champions:
    """The served model of every name, loaded once and again when another is promoted."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._loaded: dict[str, Model] = {}

    def get(self, name: str) -> Model:
        """The champion of `name` as of now; raises UnknownNameError without one."""
        version = champion_version(self._data_dir, name)
        if version is None:
            raise UnknownNameError(_no_model(self._data_dir, name))
        model = self._loaded.get(name)
        if model is None or model.manifest.version != version:
            model = self._loaded[name] = load_model(self._data_dir, name, version)
        return model


def model_inputs(names: Sequence[str], rows: pa.Table) -> tuple[ModelInput, ...]:
    """`names` with the types that they have in `rows`. Raises DefinitionError for a type that no model can read."""
    return tuple(ModelInput(name, _input_dtype(name, rows.schema.field(name).type)) for name in names)


def model_frame(inputs: Sequence[ModelInput], columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> pd.DataFrame:
    """The pipeline's input: numbers and booleans as float64 (null as NaN), strings as objects (null as "")."""
    import pandas as pd

    missing = [item.name for item in inputs if item.name not in columns]
    if missing:
        raise RequestError(f"The model needs the columns {', '.join(missing)}, which are not there; add them.")
    return pd.DataFrame({item.name: _values(item, columns[item.name]) for item in inputs}, copy=False)


def save_model(data_dir: Path, manifest: Manifest, pipeline: Any) -> Manifest:
    """Write a new version of `manifest.name`, whole or not at all; returns the manifest with version and hash."""
    import skops.io

    folder = _folder(data_dir, manifest.name)
    folder.mkdir(parents=True, exist_ok=True)
    artifact = skops.io.dumps(pipeline)
    untrusted = set(skops.io.get_untrusted_types(data=artifact)) - set(TRUSTED_TYPES)
    if untrusted:
        raise DataError(f"A model may hold only known types, got {', '.join(sorted(untrusted))}; it was not saved.")
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    try:
        (scratch / _ARTIFACT).write_bytes(artifact)
        return _claim_version(folder, scratch, replace(manifest, sha256=hashlib.sha256(artifact).hexdigest()))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def promote(data_dir: Path, name: str, version: int) -> None:
    """Make a version the champion; servers take it with their next prediction."""
    folder = _folder(data_dir, name)
    if not (folder / str(version) / _MANIFEST).exists():
        raise UnknownNameError(f"Model {name!r} has no version {version}; it has {versions(data_dir, name)}.")
    scratch = folder / f".{_CHAMPION}-{os.getpid()}"
    scratch.write_text(f"{version}\n")
    os.replace(scratch, folder / _CHAMPION)


def champion_version(data_dir: Path, name: str) -> int | None:
    """The promoted version, None before the first."""
    try:
        return int((_folder(data_dir, name) / _CHAMPION).read_text())
    except FileNotFoundError:
        return None


def champion_manifests(data_dir: Path) -> list[Manifest]:
    """What is known of every champion, by name; a champion whose manifest is not there or not ours is left out."""
    names = [path.parent.name for path in sorted((Path(data_dir) / "models").glob(f"*/{_CHAMPION}"))]
    found = [champion_of(data_dir, name) for name in names]
    return [manifest for manifest in found if manifest is not None]


def champion_of(data_dir: Path, name: str) -> Manifest | None:
    """What is known of the champion of `name`, None without one and without a manifest that we can read."""
    with contextlib.suppress(OSError, ValueError, DataError):
        return _read_manifest(_folder(data_dir, name) / str(champion_version(data_dir, name)) / _MANIFEST)
    return None


def versions(data_dir: Path, name: str) -> list[int]:
    """All versions of a model, ascending."""
    found = _folder(data_dir, name).glob(f"*/{_MANIFEST}")
    return sorted(int(path.parent.name) for path in found if path.parent.name.isdigit())


def load_model(data_dir: Path, name: str, version: int | None = None) -> Model:
    """A version of a model, by default its champion.

    Raises UnknownNameError when there is none, DataError when the artifact is not what the manifest says or holds
    a type that we do not trust.
    """
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    wanted = champion_version(data_dir, name) if version is None else version
    folder = _folder(data_dir, name) / str(wanted)
    if wanted is None or not folder.is_dir():
        raise UnknownNameError(_no_model(data_dir, name))
    manifest = _read_manifest(folder / _MANIFEST)
    artifact = (folder / _ARTIFACT).read_bytes()
    if hashlib.sha256(artifact).hexdigest() != manifest.sha256:
        raise DataError(f"{folder / _ARTIFACT} is not the file its manifest describes; train again or restore it.")
    try:
        return Model(manifest, skops.io.loads(artifact, trusted=TRUSTED_TYPES))
    except UntrustedTypesFoundException as error:
        raise DataError(f"{folder / _ARTIFACT} holds a type that Headrace does not load: {error}") from None


def _claim_version(folder: Path, scratch: Path, manifest: Manifest) -> Manifest:
    """Move `scratch` to the next free version; a rename onto a taken one fails, so two trainings never share one."""
    while True:
        taken = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        numbered = replace(manifest, version=max(taken, default=0) + 1)
        (scratch / _MANIFEST).write_bytes(orjson.dumps(asdict(numbered), option=orjson.OPT_INDENT_2))
        try:
            scratch.chmod(0o755)
            scratch.rename(folder / str(numbered.version))
            return numbered
        except OSError:
            if not (folder / str(numbered.version)).exists():
                raise


def _read_manifest(path: Path) -> Manifest:
    raw = orjson.loads(path.read_bytes())
    if raw.get("format") != MANIFEST_FORMAT:
        raise DataError(f"{path} has format {raw.get('format')!r}, this Headrace reads {MANIFEST_FORMAT}; train again.")
    raw["inputs"] = tuple(ModelInput(item["name"], DType(item["dtype"])) for item in raw["inputs"])
    return Manifest(**raw)


def _folder(data_dir: Path, name: str) -> Path:
    """Where a model's versions lie; refuses names that could leave the folder."""
    if not _NAME.fullmatch(name):
        raise UnknownNameError(f"A model's name is letters, digits, '_', '.' and '-', got {name!r}; choose another.")
    return Path(data_dir) / "models" / name


def _no_model(data_dir: Path, name: str) -> str:
    folder = Path(data_dir) / "models"
    known = sorted(path.parent.name for path in folder.glob(f"*/{_CHAMPION}"))
    return f"There is no model {name!r}; there are: {', '.join(known) or 'none, run headrace train'}."


def _input_dtype(name: str, kind: pa.DataType) -> DType:
    if pa.types.is_boolean(kind):
        return DType.BOOL
    if pa.types.is_integer(kind):
        return DType.INT64
    if pa.types.is_floating(kind):
        return DType.FLOAT64
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return DType.STRING
    raise DefinitionError(
        f"A model reads numbers, booleans and strings, {name!r} is {kind}; leave it out of the service, "
        "or make a number of it in an on-demand view."
    )


def _values(item: ModelInput, column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    if item.is_category:
        objects: NDArray[Any] = pc.fill_null(column.cast(pa.string()), "").to_numpy(zero_copy_only=False)
        return objects.astype(object, copy=False)
    numbers: NDArray[Any] = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.where(np.isfinite(numbers), numbers, np.nan)
