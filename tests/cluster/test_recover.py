"""What tests/materialize/test_recover.py says, on a cluster."""

from __future__ import annotations

import pytest
from cluster.contract import contract, load

pytestmark = pytest.mark.usefixtures("clustered")
globals().update(
    contract(
        load("materialize/test_recover.py"),
        test_a_store_that_came_back_empty_is_recovered_by_command=None,
        test_a_hole_below_a_view_that_is_not_ready_stops_its_build_and_no_other_view=None,
    )
)
