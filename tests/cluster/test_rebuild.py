"""What tests/materialize/test_rebuild.py says, on a cluster."""

from __future__ import annotations

import pytest
from cluster.contract import contract, load

pytestmark = pytest.mark.usefixtures("clustered")
globals().update(
    contract(
        load("materialize/test_rebuild.py"),
        test_a_reader_sees_only_what_a_definition_gives_while_a_view_is_rebuilt=True,
        test_the_sweep_removes_the_old_layout_and_nothing_else=None,
    )
)
