"""headrace train and headrace jobs, on a store and an archive of their own."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from headrace.catalog.definitions import (
    Aggregation,
    Catalog,
    Column,
    Entity,
    FeatureView,
    Service,
    Source,
    ViewReference,
)
from headrace.cli.training import jobs_command, train_command
from headrace.dtypes import DType
from headrace.errors import DataError, DefinitionError, RequestError, UnknownNameError
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.models import champion_version, load_model
from headrace.stores.offline import OfflineStore, event_rows

HOUR_US = 3_600_000_000
N = 3_000
SOURCE = Source(
    "payments",
    (Column("card", DType.STRING), Column("amount", DType.FLOAT64), Column("ts", DType.TIMESTAMP)),
    "ts",
)
CONFIG = """
[models.fraud]
service = "cards_v1"
labels = "labels.parquet"
label = "fraud"
label_delay = "2h"
keys = ["card"]

[jobs.weekly]
kind = "retrain"
model = "fraud"
cron = "30 4 * * mon"
"""


def catalog() -> Catalog:
    features = {"count_24h": ("count", "*", DType.INT64), "mean_amount_24h": ("mean", "amount", DType.FLOAT64)}
    aggregations = tuple(
        Aggregation(name, function, column, 24 * HOUR_US, HOUR_US, DType.FLOAT64, dtype)
        for name, (function, column, dtype) in features.items()
    )
    columns = tuple(Column(name, dtype) for name, (_, _, dtype) in features.items())
    view = FeatureView("spend", "windowed", ("card",), columns, "f1", "payments", aggregations=aggregations)
    service = Service("cards_v1", (ViewReference("spend", "spend", tuple(features)),))
    return Catalog("cards", 5, "wall", (Entity("card", "card", DType.STRING),), (SOURCE,), (view,), (), (service,))


def archive(folder: Path) -> None:
    """One event per hour and card, amounts that drift up and down by the day."""
    generator = np.random.default_rng(11)
    times_us = np.arange(N) * HOUR_US
    amounts = 10 + 5 * np.sin(np.arange(N) / 40) + generator.normal(size=N)
    table = pa.table(
        {
            "card": pa.array(generator.choice(["a", "b"], N)),
            "amount": amounts,
            "ts": pa.array(times_us).cast(pa.timestamp("us", "UTC")),
        }
    )
    rows = event_rows(
        table,
        event_time_us=times_us,
        arrival_us=times_us,
        partition=0,
        offset=np.full(N, 77),
        index=np.arange(N),
        is_repeat=np.zeros(N, np.bool_),
    )
    OfflineStore(folder).append_events(SOURCE, rows, partition=0, last_offset=77)
    labels = table.select(["card"]).append_column("event_timestamp", table["ts"])
    fraud = np.sin(np.arange(N) / 40) + generator.normal(scale=0.5, size=N) > 0.8
    pq.write_table(labels.append_column("fraud", pa.array(fraud)), folder.parent / "repo" / "labels.parquet")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    repo = folder / "repo"
    repo.mkdir()
    (repo / "feature_store.yaml").write_text("project: cards\nprovider: local\n")
    (repo / "headrace.toml").write_text(CONFIG)
    settings = Settings(repo=repo, data_dir=folder / "data")
    store = open_store(settings)
    save_catalog(store, settings, catalog())
    archive(settings.data_dir)
    yield settings
    store.close()


def call(command, settings, *arguments):
    """The command's output; what it raises is raised."""
    words = list(arguments)
    options = ["--repo", str(settings.repo), "--data-dir", str(settings.data_dir)]
    result = CliRunner().invoke(command, [*words, *options], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_train_takes_the_declared_model_and_makes_it_the_champion(settings):
    manifest = json.loads(call(train_command, settings, "--json"))
    assert (manifest["name"], manifest["service"], manifest["catalog_version"]) == ("fraud", "cards_v1", 5)
    assert [item["name"] for item in manifest["inputs"]] == ["card", "spend__count_24h", "spend__mean_amount_24h"]
    assert manifest["positions"] == {"payments": {"0": 77}}
    assert manifest["metrics"]["roc_auc"] > 0.8
    assert manifest["label_delay_s"] == 7_200
    assert champion_version(settings.data_dir, "fraud") == manifest["version"]
    one = {"card": pa.array(["a"]), "spend__count_24h": pa.array([9]), "spend__mean_amount_24h": pa.array([15.0])}
    low = one | {"spend__mean_amount_24h": pa.array([5.0])}
    model = load_model(settings.data_dir, "fraud")
    assert model.predict_proba(one)[0] > 3 * model.predict_proba(low)[0]


def test_a_model_can_be_given_by_options_alone_and_left_unpromoted(settings):
    labels = str(settings.repo / "labels.parquet")
    options = ["--name", "other", "--service", "cards_v1", "--labels", labels, "--label", "fraud"]
    assert "not promoted" in call(train_command, settings, *options, "--label-delay", "1d", "--no-promote")
    assert champion_version(settings.data_dir, "other") is None
    assert load_model(settings.data_dir, "other", 1).manifest.label_delay_s == 86_400


def test_jobs_show_their_last_and_next_run(settings):
    assert "last  never" in call(jobs_command, settings)
    assert "fraud version" in call(jobs_command, settings, "run", "weekly")
    shown = call(jobs_command, settings)
    assert "weekly: retrain fraud, cron 30 4 * * mon (UTC)" in shown
    assert "done after" in shown and "roc_auc" in shown


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--key", "amount"], DefinitionError, "'amount' is none of card"),
        (["--labels", "nowhere.parquet"], DataError, "does not exist"),
        (["--label", "colour"], DataError, "'colour'"),
        (["--name", "new"], RequestError, "--service, --labels, --label"),
        (["--name", "fraud", "--service", "nope"], UnknownNameError, "nope"),
        (["--label-delay", "20000w"], DataError, "label_delay"),
    ],
)
def test_what_cannot_be_trained_is_refused(settings, options, error, message):
    with pytest.raises(error, match=message):
        call(train_command, settings, *options)


def test_an_unknown_job_is_named(settings):
    with pytest.raises(UnknownNameError, match="daily"):
        call(jobs_command, settings, "run", "daily")


def test_a_model_no_better_than_chance_is_saved_and_not_promoted_unless_asked_for(settings):
    labels = pq.read_table(settings.repo / "labels.parquet")
    generator = np.random.default_rng(5)
    auc = 1.0
    while auc > 0.5:
        noise = labels.set_column(2, "fraud", pa.array(generator.random(N) < 0.5))
        pq.write_table(noise, settings.repo / "noise.parquet")
        options = ["--name", "noise", "--service", "cards_v1", "--labels", str(settings.repo / "noise.parquet")]
        text = call(train_command, settings, *options, "--label", "fraud", "--no-promote")
        auc = float(text.partition("roc_auc")[2].split()[0])
    text = call(train_command, settings, *options, "--label", "fraud")
    assert "not promoted" in text
    assert "does not beat chance" in text and champion_version(settings.data_dir, "noise") is None
    assert "now the champion" in call(train_command, settings, *options, "--label", "fraud", "--promote")
