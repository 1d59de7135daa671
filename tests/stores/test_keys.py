from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from headrace.stores.keys import entity_key, entity_prefix, group_keys

TRICKY = st.text(st.sampled_from("%:,{}\r\n a2Cé"), max_size=6)
NAMES = st.lists(TRICKY, min_size=1, max_size=3, unique=True)


@given(TRICKY, NAMES, st.data(), TRICKY, NAMES)
def test_two_entities_never_share_a_key(
    project: str, names: list[str], data: st.DataObject, other_project: str, other_names: list[str]
) -> None:
    values = data.draw(st.lists(TRICKY, min_size=len(names), max_size=len(names)))
    other_values = data.draw(st.lists(TRICKY, min_size=len(other_names), max_size=len(other_names)))
    one = entity_key(entity_prefix(project, names), values)
    other = entity_key(entity_prefix(other_project, other_names), other_values)
    same = (project, sorted(names), values) == (other_project, sorted(other_names), other_values)
    assert (one == other) == same
    assert b"{" not in one and b"}" not in one


def test_rows_are_grouped_by_key_and_nulls_stand_apart() -> None:
    sites = pa.array([7, 8, 7, None, 7], pa.int64())
    whos = pa.array(["a", "a", "b", "a", "a"])
    codes, keys = group_keys(entity_prefix("p", ["who", "site"]), [sites, whos])
    assert codes[3] == -1 and codes[0] == codes[4]
    assert [keys[code] for code in codes[[0, 1, 2]]] == [
        b"headrace:p:site,who:7,a",
        b"headrace:p:site,who:8,a",
        b"headrace:p:site,who:7,b",
    ]


def test_only_nulls_have_no_key() -> None:
    codes, keys = group_keys("x:", [pa.array([None, None], pa.string())])
    assert np.array_equal(codes, [-1, -1]) and keys == []
