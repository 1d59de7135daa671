"""All settings, read from the environment (`HEADRACE_*`); the command line overrides them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from headrace.errors import SettingsError

__all__ = ["Clock", "Settings", "load_settings"]

Clock = Literal["wall", "event"]


class Settings(BaseSettings):
    """Where things are and how a process behaves; one field per environment variable."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore", frozen=True)

    repo: Path = Field(default=Path("feature_repo"), description="Folder of the definitions and feature_store.yaml.")
    data_dir: Path = Field(
        default=Path(".headrace"), description="Folder of the offline store, models, run records and embedded store."
    )
    redis_url: str | None = Field(
        default=None,
        description="redis://, rediss:// or unix:// URL of the online store; unset starts an embedded one.",
    )
    host: str = Field(default="127.0.0.1", description="Address the server listens on.")
    port: int = Field(default=6566, ge=0, le=65535, description="Port the server listens on (Feast's default).")
    clock: Clock | None = Field(
        default=None, description="'wall' or 'event' (the watermark is the present); apply fixes it in the catalog."
    )
    max_rows: int = Field(default=1_000, ge=1, description="Most rows that one lookup may ask for.")
    max_body_bytes: int = Field(default=16 << 20, ge=1, description="Largest request body in bytes.")


@lru_cache(maxsize=1)
def _from_environment() -> Settings:
    return Settings()


def load_settings(**overrides: object) -> Settings:
    """The settings of this process: the environment's, with `overrides` (None means not given).

    Raises SettingsError naming the variable, its value and what it may be.
    """
    try:
        base = _from_environment()
        given = {name: value for name, value in overrides.items() if value is not None}
        return Settings.model_validate({**base.model_dump(), **given}) if given else base
    except ValidationError as error:
        first = error.errors()[0]
        name = "HEADRACE_" + "_".join(str(part) for part in first["loc"]).upper()
        raise SettingsError(f"{name} is {first.get('input')!r}: {first['msg']}; correct or unset it.") from None
