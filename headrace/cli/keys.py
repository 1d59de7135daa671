"""`headrace keys`: who may ask the server for what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.common import make_console, with_settings
from headrace.errors import SettingsError
from headrace.settings import Settings

if TYPE_CHECKING:
    from headrace.stores.api_keys import ApiKey

__all__ = ["keys_command"]

SCOPES = ("read", "write", "predict", "admin")


@click.group("keys")
def keys_command() -> None:
    """API keys of the server: a file with a hash of each (HEADRACE_API_KEYS, or --file).

    \b
      headrace keys new ranking --scope read --scope predict --rate 500
      headrace keys list
      headrace keys revoke ranking

    Servers take a changed file up within a second. Callers send a key as X-API-Key, or as Authorization: Bearer.
    """


file_option = click.option("--file", type=click.Path(path_type=Path), help="File of the keys [HEADRACE_API_KEYS].")


def _file(settings: Settings, file: Path | None) -> Path:
    found = file or settings.api_keys
    if found is None:
        raise SettingsError("Keys lie in a file, none is named; set HEADRACE_API_KEYS, or give --file.")
    return found


@keys_command.command("new")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), required=True, help="What it allows.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Most requests a second by it [any].")
@click.option("--expires", help="When it ends (RFC 3339) [never].")
@file_option
@with_settings
def new_command(
    settings: Settings, name: str, scopes: tuple[str, ...], rate: float | None, expires: str | None, file: Path | None
) -> None:
    """Make a key for NAME and print it, once: the file keeps only its hash."""
    from headrace.compute.columns import parse_moment
    from headrace.stores.api_keys import add_key

    expires_us = 0 if expires is None else parse_moment(expires) or 0
    path = _file(settings, file)
    key, _ = add_key(path, name, tuple(dict.fromkeys(scopes)), rate, expires_us)
    click.echo(key)
    click.echo(f"Its hash is in {path}; the key itself is nowhere else.", err=True)


@keys_command.command("list")
@file_option
@with_settings
def list_command(settings: Settings, file: Path | None) -> None:
    """Show the keys: names, ids, scopes, rates, ends."""
    from rich.table import Table

    from headrace.stores.api_keys import load_keys

    shown = Table("name", "id", "scopes", "requests/s", "made", "ends", box=None, pad_edge=False)
    for key in load_keys(_file(settings, file)).values():
        shown.add_row(*_row(key))
    make_console().print(shown, soft_wrap=False)


def _row(key: ApiKey) -> tuple[str, ...]:
    from headrace.moments import rfc3339

    ends = rfc3339(key.expires_us) if key.expires_us else "never"
    rate = "any" if key.rate is None else f"{key.rate:g}"
    return key.name, key.id, ", ".join(key.scopes), rate, rfc3339(key.created_us), ends


@keys_command.command("revoke")
@click.argument("names", nargs=-1, required=True)
@file_option
@with_settings
def revoke_command(settings: Settings, names: tuple[str, ...], file: Path | None) -> None:
    """Take keys out, by name or id."""
    from headrace.stores.api_keys import revoke_keys

    gone = revoke_keys(_file(settings, file), names)
    missing = set(names) - {name for key in gone for name in (key.name, key.id)}
    for key in gone:
        click.echo(f"revoked {key.name} ({key.id})")
    if missing:
        raise SettingsError(f"There is no key {', '.join(sorted(missing))}; headrace keys list shows them.")
