"""All settings, read from the environment (`HEADRACE_*`); the command line overrides them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from headrace.errors import SettingsError

__all__ = ["Clock", "Settings", "load_settings"]

Clock = Literal["wall", "event"]


class Settings(BaseSettings):
    """Where things are and how a process behaves; one field per environment variable."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", env_ignore_empty=True, extra="ignore", frozen=True)

    repo: Path = Field(default=Path("feature_repo"), description="Folder of the definitions and feature_store.yaml.")
    data_dir: Path = Field(
        default=Path(".headrace"), description="Folder of the offline store, models, run records and embedded store."
    )
    redis_url: str | None = Field(
        default=None,
        description="redis://, rediss:// or unix:// URL of the online store, or redis+cluster:// "
        "(rediss+cluster://) of one node of a cluster; unset starts an embedded one.",
    )
    host: str = Field(default="127.0.0.1", description="Address the server listens on.")
    port: int = Field(default=6566, ge=0, le=65535, description="Port the server listens on (Feast's default).")
    clock: Clock | None = Field(
        default=None, description="'wall' or 'event' (the watermark is the present); apply fixes it in the catalog."
    )
    workers: int = Field(default=1, ge=1, le=256, description="Processes that serve, on one address.")
    uds: Path | None = Field(default=None, description="Unix socket the server listens on too, without TLS.")
    tls_cert: Path | None = Field(default=None, description="File of the server's certificate chain; needs tls_key.")
    tls_key: Path | None = Field(default=None, description="File of the certificate's key.")
    fast_lane: bool = Field(
        default=True, description="Whether lookups are answered before ASGI; 0 has every request go through it."
    )
    api_keys: Path | None = Field(
        default=None, description="File of API keys (headrace keys); unset, whoever reaches the server may ask it."
    )
    open: bool = Field(default=False, description="Whether a server without API keys may listen beyond loopback.")
    docs: bool = Field(default=True, description="Whether the server shows /docs and /openapi.json.")
    deadline_ms: float = Field(
        default=50.0, gt=0, le=600_000, description="Milliseconds after which a lookup is answered without the store."
    )
    degrade: bool = Field(
        default=True, description="Whether a lookup may be answered without the store; 0 answers 503 instead."
    )
    kept_keys: int = Field(
        default=100_000, ge=0, description="Entity keys whose last values a server keeps for degraded answers."
    )
    max_staleness: float = Field(
        default=300.0, ge=0, description="Seconds for which kept values may be answered where a view does not say."
    )
    max_under_way: int = Field(default=2_000, ge=1, description="Most requests under way in one server process.")
    shed_lag_ms: float = Field(
        default=50.0, gt=0, description="Milliseconds the event loop may lag before requests are refused, batch first."
    )
    max_rows: int = Field(default=1_000, ge=1, description="Most rows that one lookup may ask for.")
    compact_files: int = Field(
        default=100, ge=1, description="Small files of one event date from which on the archiver merges them."
    )
    vacuum_after_h: int = Field(
        default=168, ge=0, description="Hours after which the archiver deletes files that left a table."
    )
    max_body_bytes: int = Field(default=16 << 20, ge=1, description="Largest request body in bytes.")
    feature_log_rows: int = Field(
        default=10_000, ge=0, description="Most sampled rows that wait in one server process; more are dropped."
    )
    served_days: int = Field(
        default=30, ge=0, description="Days for which served rows are kept in the offline store; 0 keeps them for ever."
    )
    stream_budget: int = Field(
        default=4 << 30, ge=1, description="Most bytes of events that a stream's partition holds; past it a push waits."
    )
    stream_keep: float = Field(
        default=600.0, ge=0, description="Seconds of the stream kept behind worker and archiver before it is trimmed."
    )
    kafka_security_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        default="plaintext", description="How Kafka's brokers are spoken to."
    )
    kafka_sasl_mechanism: str | None = Field(default=None, description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.")
    kafka_sasl_username: str | None = Field(default=None, description="Name for SASL.")
    kafka_sasl_password: SecretStr | None = Field(default=None, description="Password for SASL.")
    kafka_ssl_ca: Path | None = Field(default=None, description="File of the CA that signed the brokers' certificate.")
    kafka_ssl_certificate: Path | None = Field(default=None, description="File of the client's certificate.")
    kafka_ssl_key: Path | None = Field(default=None, description="File of the client's key.")
    kafka_ssl_key_password: SecretStr | None = Field(default=None, description="Password of that key.")
    lease: float = Field(
        default=5.0, ge=0.5, le=600, description="Seconds after which a standby worker takes over from a dead one."
    )


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
