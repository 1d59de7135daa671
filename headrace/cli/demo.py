"""headrace demo."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from headrace.errors import SettingsError

__all__ = ["demo_command"]


@click.command("demo", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo_command(arguments: tuple[str, ...]) -> None:
    """Run the whole path on a real year of flights: stream, lookup, training set, comparison, model.

    Takes the options of `python -m demo`, which it runs.
    """
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "demo" / "__main__.py").exists():
        raise SettingsError(
            "The demo is part of the source, not of the installed package; "
            "get the source of Headrace and run make demo in it."
        )
    path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    # This process becomes the demo, so that every signal meant for it reaches it.
    os.execve(sys.executable, [sys.executable, "-P", "-m", "demo", *arguments], {**os.environ, "PYTHONPATH": path})
