"""What the short forms say to a wrong kind of argument."""

import pytest

from headrace.define import entity, events, stream_view, windows
from headrace.errors import DefinitionError

CARD = entity("card", key="card_id")
PAYMENTS = events("payments", time="ts", columns={"card_id": "string", "amount": "double", "ts": "timestamp"})
SUMS = windows("amount", ["sum"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("card", PAYMENTS, SUMS), "one Entity or a list of them, view 'v' got 'card'; write"),
        ((None, PAYMENTS, SUMS), "got None"),
        (([], PAYMENTS, SUMS), "got None"),
        (([CARD, "shop"], PAYMENTS, SUMS), "got 'shop'"),
        ((CARD, "payments", SUMS), "reads events, view 'v' got 'payments'"),
        ((CARD, None, SUMS), "got None"),
        ((CARD, PAYMENTS, "sum"), "has aggregations, view 'v' got 'sum'"),
        ((CARD, PAYMENTS), "got none"),
        ((CARD, PAYMENTS, None), "got None"),
    ],
)
def test_a_stream_view_names_rule_value_and_remedy(arguments, message):
    with pytest.raises(DefinitionError, match=message):
        stream_view("v", *arguments)


def test_columns_durations_and_lists_are_checked():
    with pytest.raises(DefinitionError, match="types by name, got a list"):
        events("p", time="ts", columns=["ts"])
    with pytest.raises(DefinitionError, match="text like 10m or a timedelta, got 3600"):
        windows("amount", ["sum"], over=[3600])
    with pytest.raises(DefinitionError, match="is a list, got None"):
        windows("amount", None)
    with pytest.raises(DefinitionError, match="type None"):
        entity("card", dtype=None)
