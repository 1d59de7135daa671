"""The `headrace` command: one file per group of commands, each imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys

import click

from headrace.errors import HeadraceError

__all__ = ["main"]

COMMANDS = {
    "plan": ("headrace.cli.definitions", "Show what apply would change."),
    "apply": ("headrace.cli.definitions", "Compile the definitions and make them the catalog."),
    "list": ("headrace.cli.definitions", "List entities, sources, views and services."),
    "rebuild": ("headrace.cli.rebuild", "Compute a view's values anew while the present ones serve."),
    "describe": ("headrace.cli.definitions", "Describe one view, source or service."),
    "up": ("headrace.cli.processes", "Run store, worker, archiver, server and scheduler in one terminal."),
    "worker": ("headrace.cli.processes", "Compute features from the stream into the online store."),
    "archive": ("headrace.cli.processes", "Append the stream's events to the offline store."),
    "serve": ("headrace.cli.processes", "Answer lookups, pushes and predictions over HTTP."),
    "schedule": ("headrace.cli.processes", "Run the scheduled jobs."),
    "push": ("headrace.cli.push", "Push the events of a file to a source."),
    "streams": ("headrace.cli.push", "Show each source's head, applied and archived positions."),
    "ingest": ("headrace.cli.ingest", "Import past events from files into the archive and the views."),
    "materialize": ("headrace.cli.materialize", "Load the rows of batch views into the online store."),
    "materialize-incremental": ("headrace.cli.materialize", "Load what came into their files since the last time."),
    "dataset": ("headrace.cli.dataset", "Build a point-in-time-correct training set."),
    "train": ("headrace.cli.training", "Fit and evaluate the baseline model of a service."),
    "jobs": ("headrace.cli.training", "Show the scheduled jobs, or run one now."),
    "preview": ("headrace.cli.preview", "Run a view on sample events, before anything is applied."),
    "dead-letters": ("headrace.cli.dead_letters", "List events that are in no view, or not in one; replay them."),
    "compact": ("headrace.cli.maintenance", "Merge the small files of the archive."),
    "keys": ("headrace.cli.keys", "Make, list and revoke the server's API keys."),
    "forget": ("headrace.cli.forget", "Delete everything about one key of an entity."),
    "audit": ("headrace.cli.audit", "Recompute what was served from the archive, and say what differs and why."),
    "explain": ("headrace.cli.inspect", "Show the events, tiles and positions behind a value."),
    "doctor": ("headrace.cli.inspect", "Check the set-up and say what to mend."),
    "recover": ("headrace.cli.recover", "Find out what the store has lost, and bring back what can be."),
    "demo": ("headrace.cli.demo", "Run the whole path on a real year of flights."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when called; `--help` reads their one-line helps from the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headrace")
def group() -> None:
    """Headrace, a real-time feature store: one definition for the stream, the lookup and the training set.

    Settings come from HEADRACE_* variables (see docs/operations.md); first steps: headrace demo.
    """


def main() -> None:
    """Entry point of the `headrace` script: exit 0, 1 on a refused input, 2 on wrong usage."""
    try:
        sys.exit(group.main(standalone_mode=False))
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except HeadraceError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if not _is_of_the_store(error):
            raise
        click.echo(
            f"Error: The online store failed ({error}); see that it runs, then give the command again.", err=True
        )
        sys.exit(1)


def _is_of_the_store(error: Exception) -> bool:
    """Whether the store went away or was replaced meanwhile. Its client is not imported where nothing needs it; a reply
    that is an error and nothing else would be our mistake."""
    client = sys.modules.get("redis")
    return client is not None and isinstance(error, client.RedisError) and type(error) is not client.ResponseError
