"""Models and jobs as `headrace.toml` of the repo declares them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from headrace.errors import DefinitionError, UnknownNameError
from headrace.windows.window import parse_duration_us

__all__ = ["CONFIG_FILE", "Job", "ModelConfig", "TrainingConfig", "load_config"]

CONFIG_FILE = "headrace.toml"
Item = TypeVar("Item")
JOB_TARGETS = {"materialize": "view", "compact": None, "retrain": "model"}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """How a model is trained: the features of `service` on the rows of `labels` (a file), for the column `label`.

    `label_delay_us` is how long after a row's event time its label is known. `keys` are join keys that are read as
    features too. The newest `test_fraction` of the rows is the test part.
    """

    name: str
    service: str
    labels: Path
    label: str
    label_delay_us: int = 0
    keys: tuple[str, ...] = ()
    test_fraction: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise DefinitionError(f"test_fraction lies between 0 and 1, got {self.test_fraction}; use 0.3.")


@dataclass(frozen=True, slots=True)
class Job:
    """Something that runs on a schedule. `target` is the view or model it is about; None for compact (all sources)."""

    name: str
    kind: Literal["materialize", "compact", "retrain"]
    cron: str
    target: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """All of one repo's models and jobs, by name."""

    models: Mapping[str, ModelConfig]
    jobs: Mapping[str, Job]

    def model(self, name: str) -> ModelConfig:
        return _named(self.models, "model", name)

    def job(self, name: str) -> Job:
        return _named(self.jobs, "job", name)


def load_config(repo: Path) -> TrainingConfig:
    """What `headrace.toml` in `repo` declares, nothing without the file. Raises DefinitionError naming the place."""
    path = Path(repo) / CONFIG_FILE
    if not path.exists():
        return TrainingConfig({}, {})
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DefinitionError(f"{path} is not TOML: {error}; correct it.") from None
    unknown = sorted(set(raw) - {"models", "jobs"})
    if unknown:
        raise DefinitionError(f"{path} has the table {unknown[0]!r}; it may have models and jobs.")
    models = {name: _model(path, name, table) for name, table in _tables(path, raw, "models").items()}
    jobs = {name: _job(path, name, table) for name, table in _tables(path, raw, "jobs").items()}
    for job in jobs.values():
        if job.kind == "retrain" and job.target not in models:
            raise DefinitionError(f"{path}: job {job.name!r} retrains {job.target!r}, which is not among its models.")
    return TrainingConfig(models, jobs)


def _tables(path: Path, raw: Mapping[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    tables = raw.get(kind, {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise DefinitionError(f"{path}: {kind} are tables, write [{kind}.NAME].")
    return tables


def _model(path: Path, name: str, table: Mapping[str, Any]) -> ModelConfig:
    where = f"{path}, [models.{name}]"
    known = {"service": str, "labels": str, "label": str, "label_delay": str, "keys": list, "test_fraction": float}
    _check(where, table, known, required=("service", "labels", "label"))
    return ModelConfig(
        name,
        table["service"],
        path.parent / table["labels"],
        table["label"],
        parse_duration_us(table.get("label_delay", "0s")),
        tuple(map(str, table.get("keys", []))),
        table.get("test_fraction", 0.3),
    )


def _job(path: Path, name: str, table: Mapping[str, Any]) -> Job:
    where = f"{path}, [jobs.{name}]"
    kind = table.get("kind")
    if kind not in JOB_TARGETS:
        raise DefinitionError(f"{where}: kind is one of {', '.join(JOB_TARGETS)}, got {kind!r}.")
    target = JOB_TARGETS[kind]
    known = {"kind": str, "cron": str} | ({target: str} if target else {})
    _check(where, table, known, required=tuple(known))
    _check_cron(where, table["cron"])
    return Job(name, kind, table["cron"], table[target] if target else None)


def _check(where: str, table: Mapping[str, Any], known: Mapping[str, type], required: tuple[str, ...]) -> None:
    for key, value in table.items():
        if key not in known:
            raise DefinitionError(f"{where}: there is no setting {key!r}; there are: {', '.join(known)}.")
        if not isinstance(value, known[key]):
            raise DefinitionError(f"{where}: {key} is a {known[key].__name__}, got {value!r}.")
    for key in required:
        if key not in table:
            raise DefinitionError(f"{where}: {key} is missing, and has no default.")


def _check_cron(where: str, cron: str) -> None:
    """Refuse what APScheduler cannot read, and weekdays by number: 0 is Monday to it and Sunday to cron."""
    from apscheduler.triggers.cron import CronTrigger

    try:
        CronTrigger.from_crontab(cron, timezone="UTC")
    except ValueError as error:
        raise DefinitionError(f"{where}: cron is 'minute hour day month weekday', got {cron!r} ({error}).") from None
    weekday = cron.split()[-1]
    if any(character.isdigit() for character in weekday):
        raise DefinitionError(f"{where}: weekdays go by name, got {weekday!r}; write mon, tue, ... or mon-fri.")


def _named(items: Mapping[str, Item], word: str, name: str) -> Item:
    if name not in items:
        known = ", ".join(sorted(items)) or "none"
        raise UnknownNameError(f"There is no {word} {name!r} in {CONFIG_FILE}; there are: {known}.")
    return items[name]
