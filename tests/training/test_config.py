"""headrace.toml: what it declares, and what it may not."""

import pytest

from headrace.errors import DefinitionError, UnknownNameError
from training.config import CONFIG_FILE, load_config

MODEL = '[models.m]\nservice = "s"\nlabels = "data/l.parquet"\nlabel = "late"\n'


def written(folder, text):
    (folder / CONFIG_FILE).write_text(text)
    return folder


def test_without_the_file_there_is_nothing(tmp_path):
    assert not load_config(tmp_path).models and not load_config(tmp_path).jobs


def test_models_and_jobs_are_read(tmp_path):
    job = '[jobs.weekly]\nkind = "retrain"\nmodel = "m"\ncron = "30 4 * * mon"\n'
    config = load_config(written(tmp_path, MODEL + 'label_delay = "6h"\nkeys = ["a"]\n' + job))
    assert config.model("m").labels == tmp_path / "data" / "l.parquet"
    assert config.model("m").label_delay_us == 6 * 3_600_000_000
    assert config.model("m").keys == ("a",) and config.model("m").test_fraction == 0.3
    assert config.job("weekly").target == "m"
    with pytest.raises(UnknownNameError, match="weekly"):
        config.job("daily")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models", "not TOML"),
        ("[model.m]", "it may have models and jobs"),
        ("models = 3", r"\[models.NAME\]"),
        ('[models.m]\nservice = "s"\n', "labels is missing"),
        (MODEL + "colour = 1", "no setting 'colour'"),
        (MODEL + "label_delay = 6", "label_delay is a str"),
        (MODEL + 'label_delay = "soon"', "duration"),
        ('[jobs.j]\nkind = "dance"', "materialize, compact, retrain"),
        ('[jobs.j]\nkind = "compact"', "cron is missing"),
        ('[jobs.j]\nkind = "compact"\ncron = "1 2 3"', "minute hour day month weekday"),
        ('[jobs.j]\nkind = "compact"\ncron = "0 4 * * 0"', "weekdays go by name"),
        ('[jobs.j]\nkind = "retrain"\nmodel = "x"\ncron = "0 4 * * sun"', "not among its models"),
    ],
)
def test_what_cannot_work_is_refused_with_its_place(tmp_path, text, message):
    with pytest.raises(DefinitionError, match=message):
        load_config(written(tmp_path, text))
