"""Slots move while the worker writes and the server reads: nothing wrong, nothing twice, nothing begun anew."""

from __future__ import annotations

from typing import Any

from cluster.conftest import SPARE
from cluster.nodes import Node, move_slot, owner_of
from cluster.pushed import CARDS, Pushed, Pusher, Watcher
from shop import running, shop

from headrace.settings import Settings
from headrace.stores.cluster_copies import copy_key, slot_of
from headrace.stores.connection import open_store
from headrace.stores.keys import catalog_key, entity_key, entity_prefix, lease_key, markers_key, stream_key


def test_slots_move_under_way(nodes: list[Node], clustered: Settings) -> None:
    card_slots = [slot_of(entity_key(entity_prefix("shop", ["card"]), [card])) for card in CARDS]
    others = [catalog_key("shop"), lease_key("shop", "worker"), stream_key("shop", "payments", 0)]
    copies = [slot_of(copy_key(markers_key("shop").encode(), n)) for n in range(4)]
    wanted = dict.fromkeys([*card_slots[:6], *(slot_of(key.encode()) for key in others), *copies])
    homes = {slot: owner_of(nodes, slot) for slot in wanted}
    with running(clustered, shop()) as live:
        pushed = Pushed(live)
        pushed.push(200)
        pushed.assert_served()
        builds = markers(clustered)
        pusher, watcher = Pusher(pushed), Watcher(pushed)
        pusher.start()
        watcher.start()
        try:
            for number, (slot, home) in enumerate(homes.items()):
                target = nodes[SPARE] if number % 3 == 0 else nodes[(nodes.index(home) + 1) % 3]
                move_slot(nodes, slot, target, 0.05)
            for slot, home in homes.items():
                move_slot(nodes, slot, home, 0.02)
        finally:
            pusher.stop()
            watcher.stop()
        pushed.assert_served()
        live.wait_until_applied("archived")
        assert not watcher.wrong and watcher.answers > 20, (watcher.wrong[:3], watcher.refusals)
        assert all(refusal.startswith("503") for refusal in watcher.refusals), watcher.refusals
        assert markers(clustered) == builds


def markers(settings: Settings) -> dict[Any, Any]:
    with open_store(settings) as store:
        held: Any = store.hgetall(markers_key("shop"))
        return {field: value for field, value in held.items() if field.startswith(b"build|")}
