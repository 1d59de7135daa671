"""On a cluster: events that values hold and the log has lost, because a shard failed over and another did not.

A writer announces on every shard how far it is about to write (field `writing` of the markers), then writes. If the
log, archive and stream together, does not reach as far as somebody announced, no one can tell which values hold what
it lost: the views that the source feeds are begun anew, from what the log holds.
"""

from __future__ import annotations

from headrace.catalog.definitions import Catalog
from headrace.stores.cluster import is_cluster
from headrace.stores.keys import markers_key
from headrace.stores.logs import Logs
from headrace.stores.markers import Applied, Markers, applied_field, build_field, places, ready_field
from headrace.stores.offline import OfflineStore
from headrace.telemetry import get_logger
from materialize.layouts import catalog_of, feeds, stored_layouts

__all__ = ["forget_lost_tails"]

Place = tuple[str, int]
log = get_logger()


def forget_lost_tails(logs: Logs, offline: OfflineStore, markers: Markers, catalog: Catalog) -> list[str]:
    """Has the views begun anew that may hold events which the log has lost; returns their names.

    To be asked when work starts, and now and then: a writer that slept may write late, and announces it before.
    """
    if not is_cluster(logs.store):
        return []
    wanted = [(source.name, partition) for source, partition in places(catalog) if source.kafka is None]
    announced = markers.applied("writing", wanted)
    lost = [place for place, upto in announced.items() if upto and not _is_logged(logs, offline, place, upto)]
    if not lost:
        return []
    names, fields = [], []
    for layout in stored_layouts(catalog):
        fed = {(source.name, partition) for source, partition in feeds(catalog_of(catalog, layout), layout.view)}
        if fed & set(lost):
            names.append(layout.view.name)
            fields += [ready_field(layout.view), build_field(layout.view)]
    fields += [applied_field("source", *place) for place in lost]
    logs.store.hdel(markers_key(catalog.project), *fields)
    logs.store.hdel(markers_key(catalog.project), *(applied_field("writing", *place) for place in lost))
    log.warning("the store has lost events that views hold; building these anew", views=names, places=lost)
    return names


def _is_logged(logs: Logs, offline: OfflineStore, place: Place, upto: Applied) -> bool:
    """Whether the stream has or had everything up to `upto`, as its running totals tell, or the archive has it."""
    entry = logs.last_upto(*place, upto.offset)
    if entry is not None and (entry.offset, entry.total) == (upto.offset, upto.total):
        return True
    following = logs.first_after(*place, upto.offset)
    if following is not None and following.before == upto.total:
        return True
    return offline.archived_offset(*place) >= upto.offset
