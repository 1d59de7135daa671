"""Which model a caller means, and its scores: what the server and the client that reads the store do alike."""

from __future__ import annotations

from pathlib import Path

from headrace.catalog.definitions import Catalog
from headrace.errors import DataError, RequestError, UnavailableError, UnknownNameError
from headrace.read.model_fit import misfit
from headrace.stores.models import Champions, Model

__all__ = ["find_model"]


def find_model(champions: Champions, data_dir: Path, catalog: Catalog, name: str | None, service: str | None) -> Model:
    """The champion called `name`; without a name the one that reads `service`, or the only one there is.

    Raises UnknownNameError without one, RequestError where the request does not say which one it means,
    UnavailableError for one that cannot be loaded or no longer fits the definitions.
    """
    model = _only_model(champions, data_dir, service) if name is None else _named(champions, name, service)
    problem = misfit(model.manifest, catalog)
    if problem is not None:
        raise UnavailableError(f"{problem}.")
    return model


def _named(champions: Champions, name: str, service: str | None) -> Model:
    model = _load(champions, name)
    if service is not None and service != model.manifest.service:
        raise RequestError(f"Model {name!r} reads {model.manifest.service!r}, not {service!r}; leave one of them out.")
    return model


def _only_model(champions: Champions, data_dir: Path, service: str | None) -> Model:
    models = [_load(champions, name) for name in _names(data_dir)]
    fitting = [model for model in models if service in (None, model.manifest.service)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(model.manifest.name for model in fitting)
    if fitting:
        raise RequestError(f"A request must say which model it means, there are: {names}; name one as model.")
    raise UnknownNameError(f"There is no model{f' of {service!r}' if service else ''} yet; run headrace train.")


def _names(data_dir: Path) -> list[str]:
    return sorted(path.parent.name for path in data_dir.glob("models/*/champion"))


def _load(champions: Champions, name: str) -> Model:
    try:
        return champions.get(name)
    except DataError as error:
        raise UnavailableError(str(error)) from error
