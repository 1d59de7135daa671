"""Loading a repo: what is found, what is refused, and that nothing is left behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from feast import Entity, FeatureView
from feast.data_source import PushSource

from headrace.catalog.load import load_repo
from headrace.errors import DefinitionError, SettingsError

CARD = "from feast import Entity, ValueType\ncard = Entity(name='card', value_type=ValueType.STRING)\n"


def test_definitions_are_found_once_in_the_order_of_files_and_lines(write_repo: Any) -> None:
    root = write_repo(
        b_second="from a_first import card\nfrom feast import Entity, ValueType\n"
        "zebra = Entity(name='zebra', value_type=ValueType.STRING)\n"
        "ant = Entity(name='ant', value_type=ValueType.STRING)\nagain = zebra\n",
        a_first=CARD,
    )
    assert [entity.name for entity in load_repo(root).of(Entity)] == ["card", "zebra", "ant"]


def test_loading_leaves_the_process_as_it_was(write_repo: Any) -> None:
    root = write_repo(shared_entities=CARD, shared_views="from shared_entities import card\n")
    path, here = list(sys.path), Path.cwd()
    load_repo(root)
    assert (sys.path, Path.cwd()) == (path, here)
    assert not {"shared_entities", "shared_views"} & set(sys.modules)


def test_a_second_load_sees_what_was_changed(write_repo: Any) -> None:
    root = write_repo(entities=CARD)
    assert [entity.name for entity in load_repo(root).of(Entity)] == ["card"]
    (root / "entities.py").write_text(CARD.replace("'card'", "'shop'"))
    assert [entity.name for entity in load_repo(root).of(Entity)] == ["shop"]


def test_subfolders_are_loaded_and_init_files_and_ignored_files_are_not(write_repo: Any) -> None:
    root = write_repo(entities=CARD, scratch="raise ValueError('not for you')")
    (root / "views").mkdir()
    (root / "views" / "__init__.py").write_text("")
    (root / "views" / "more.py").write_text(CARD.replace("card", "shop"))
    (root / ".feastignore").write_text("scratch.py\n")
    assert sorted(entity.name for entity in load_repo(root).of(Entity)) == ["card", "shop"]


def test_an_error_names_file_line_and_reason(write_repo: Any) -> None:
    root = write_repo(entities=CARD + "card.nothing()\n")
    with pytest.raises(DefinitionError, match=r"entities\.py, line 3 .*AttributeError.*nothing"):
        load_repo(root)
    (root / "entities.py").write_text("def broken(:\n")
    with pytest.raises(DefinitionError, match=r"entities\.py, line 1 .*SyntaxError"):
        load_repo(root)
    assert "entities" not in sys.modules


def test_our_own_refusals_keep_their_words_and_gain_the_line(write_repo: Any) -> None:
    root = write_repo(entities="from headrace.define import windows\nwindows('amount', 'sum')\n")
    with pytest.raises(DefinitionError, match=r"entities\.py, line 2: functions of windows.*write \['sum'\]"):
        load_repo(root)


@pytest.mark.parametrize("name", ["training", "json", "pandas", "redis"])
def test_a_file_named_like_an_importable_module_is_refused(write_repo: Any, name: str) -> None:
    root = write_repo(**{name: CARD})
    with pytest.raises(DefinitionError, match=rf"{name}\.py shadows '{name}'.*rename it"):
        load_repo(root)


def test_a_folder_that_is_no_repo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"feature_store\.yaml.*create it"):
        load_repo(tmp_path)
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    with pytest.raises(SettingsError, match="no definition file"):
        load_repo(tmp_path)
    (tmp_path / "feature_store.yaml").write_text("project: my-shop\n")
    with pytest.raises(SettingsError, match="'my-shop'"):
        load_repo(tmp_path)


def test_feast_and_we_find_the_same_objects(load: Any) -> None:
    repo = load("""
        spend = stream_view("spend", card, payments, windows("amount", ["sum"], over=["1h"]))
        last = FeatureView(name="last", entities=[card], source=payments, schema=[Field(name="amount", dtype=Float64)])
    """)
    assert {view.name for view in repo.of(FeatureView)} == {"spend", "last"}
    assert [source.name for source in repo.of(PushSource)] == ["payments"]
