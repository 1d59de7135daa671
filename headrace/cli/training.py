"""headrace train, headrace jobs."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.common import with_settings
from headrace.errors import RequestError
from headrace.settings import Settings
from headrace.windows.window import parse_duration_us

if TYPE_CHECKING:
    from training.config import ModelConfig, TrainingConfig
    from training.runs import Run

__all__ = ["jobs_command", "train_command"]


@click.command("train")
@click.option("--name", help="Name of the model [default: the one in headrace.toml, else the service's].")
@click.option("--service", help="Feature service whose vectors the model reads.")
@click.option("--labels", type=click.Path(path_type=Path), help="Parquet or CSV file of label rows.")
@click.option("--label", help="Its column to predict: a boolean, or 0 and 1.")
@click.option("--label-delay", help="How long after a row's time its label is known, like 6h.")
@click.option("--test-fraction", type=float, help="Share of the rows, the newest, to evaluate on [default: 0.3].")
@click.option("--key", "keys", multiple=True, help="A join key that the model also reads; may be repeated.")
@click.option(
    "--promote/--no-promote",
    default=None,
    help="Make the model the champion, or not [default: if its ROC AUC beats chance].",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@with_settings
def train_command(settings: Settings, promote: bool | None, as_json: bool, **options: Any) -> None:
    """Fit and evaluate the baseline model of a service, and serve it.

    Logistic regression on a split in time order with a gap of the label delay. What an option does not say is taken
    from the model's table in headrace.toml.
    """
    from headrace.stores.models import champion_version
    from headrace.telemetry import configure_logging
    from training.config import load_config
    from training.fit import train

    configure_logging("train")
    manifest = train(settings, _model_config(load_config(settings.repo), options), make_champion=promote)
    if as_json:
        import orjson

        click.echo(orjson.dumps(asdict(manifest), option=orjson.OPT_INDENT_2).decode())
        return
    train_rows, test_rows = manifest.data["train"]["rows"], manifest.data["test"]["rows"]
    is_champion = champion_version(settings.data_dir, manifest.name) == manifest.version
    kept = "now the champion" if is_champion else "not promoted"
    click.echo(f"{manifest.name} version {manifest.version}, {kept}: {manifest.service}, {len(manifest.inputs)} inputs")
    click.echo(f"  fitted on {train_rows:,} rows, evaluated on the {test_rows:,} newest")
    for name, value in manifest.metrics.items():
        click.echo(f"  {name:<10} {value:.4f}")
    if promote is None and not is_champion:
        click.echo(
            "Note: it does not beat chance, so /predict does not serve it; train --promote makes it the champion."
        )


@click.group("jobs", invoke_without_command=True)
@with_settings
def jobs_command(settings: Settings) -> None:
    """Show the scheduled jobs with their last and next runs; `jobs run NAME` runs one now."""
    if click.get_current_context().invoked_subcommand is not None:
        return
    from training.config import CONFIG_FILE, load_config

    jobs = load_config(settings.repo).jobs
    if not jobs:
        click.echo(f"No jobs: declare them in {settings.repo / CONFIG_FILE} as [jobs.NAME].")
    for job in jobs.values():
        _show(settings, job)


@jobs_command.command("run")
@click.argument("name")
@with_settings
def run_command(settings: Settings, name: str) -> None:
    """Run the job NAME now, in this process, and record the run."""
    from headrace.telemetry import configure_logging
    from training.config import load_config
    from training.jobs import run_job

    configure_logging("job")
    click.echo(run_job(settings, load_config(settings.repo).job(name)))


def _show(settings: Settings, job: Any) -> None:
    from training.jobs import next_run
    from training.runs import RunRecords

    last = RunRecords(settings.data_dir).last(job.name)
    following = next_run(job, datetime.now(UTC))
    target = f" {job.target}" if job.target else ""
    click.echo(f"{job.name}: {job.kind}{target}, cron {job.cron} (UTC)")
    click.echo(f"  last  {_run_line(last[0]) if last else 'never'}")
    click.echo(f"  next  {following:%Y-%m-%d %H:%M} UTC" if following else "  next  never")


def _run_line(run: Run) -> str:
    started = datetime.fromtimestamp(run.started_us / 1e6, UTC)
    took = "" if run.ended_us is None else f" after {(run.ended_us - run.started_us) / 1e6:.1f} s"
    message = f": {run.message}" if run.message else ""
    return f"{started:%Y-%m-%d %H:%M:%S} UTC, {run.outcome}{took}{message}"


def _model_config(config: TrainingConfig, options: dict[str, Any]) -> ModelConfig:
    """The declared model that the options mean, with what they override."""
    from training.config import ModelConfig

    given = {name: value for name, value in options.items() if value not in (None, ())}
    delay = given.pop("label_delay", None)
    if delay is not None:
        given["label_delay_us"] = parse_duration_us(delay)
    declared = _declared(config, given.get("name"), given.get("service"))
    if declared is not None:
        return replace(declared, **given)
    missing = [f"--{name}" for name in ("service", "labels", "label") if name not in given]
    if missing:
        known = ", ".join(config.models) or "none"
        raise RequestError(f"Training needs {', '.join(missing)}, or a model's --name from headrace.toml: {known}.")
    return ModelConfig(**{"name": given["service"], **given})


def _declared(config: TrainingConfig, name: str | None, service: str | None) -> ModelConfig | None:
    if name is not None:
        return config.models.get(name)
    of_service = [model for model in config.models.values() if service in (None, model.service)]
    return of_service[0] if len(of_service) == 1 else None
