"""What tests/materialize/test_forget.py says, on a cluster."""

from __future__ import annotations

import pytest
from cluster.contract import contract, load

pytestmark = pytest.mark.usefixtures("clustered")
globals().update(
    contract(
        load("materialize/test_forget.py"),
        test_a_forgotten_key_is_gone_everywhere_and_later_events_begin_anew=1,
    )
)
