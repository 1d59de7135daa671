"""An explanation as a terminal shows it: the verdict first, then values, age, what is stored, and the rows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from headrace.cli.common import counted, make_console
from headrace.moments import rfc3339
from headrace.read.explain import FROM, Explanation
from headrace.stores.offline import INDEX, OFFSET, PARTITION
from headrace.windows.window import format_duration

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["as_plain", "print_explanation"]

MOST_COLUMNS = 3
"""How many value columns the table of rows has; more stand together in one."""
ROW_COLUMNS = (FROM, "event_time", "arrival_time", PARTITION, OFFSET, INDEX)


def as_plain(found: Explanation) -> dict[str, Any]:
    """The explanation for JSON."""
    online = {**found.online, "newest_event_time": _moment(found.online["newest_us"])}
    return {
        "view": found.view.name,
        "key": found.key,
        "t": rfc3339(found.t_us),
        "agree": found.agree,
        "differ": found.differ,
        "behind": found.behind,
        "online": online,
        "offline": found.offline,
        "unread": found.unread,
        "events": None if found.events is None else found.events.to_pylist(),
    }


def print_explanation(found: Explanation, limit: int) -> None:
    """Print it, at most `limit` rows and tiles, the newest."""
    console = make_console()
    console.print(*_verdict(found))
    for line in _facts(found):
        console.print(line)
    for table in _tables(found, limit):
        console.print()
        console.print(table, soft_wrap=False)


def _verdict(found: Explanation) -> tuple[str, ...]:
    of = f"{found.view.name} of {_key(found)} at {rfc3339(found.t_us)}"
    if found.unread is not None:
        return (f"no verdict: {of}: the archive cannot be read: {found.unread}",)
    if found.differ is None:
        return (f"no verdict: {of}: {found.online['silent']}",)
    if not found.differ:
        return (f"agree: {of}: the online values are those of the archive",)
    waiting = f" ({'; '.join(found.behind)}: see whether it passes)" if found.behind else ""
    return (f"DIFFER: {of}: {', '.join(found.differ)}{waiting}",)


def _key(found: Explanation) -> str:
    return ", ".join(f"{name}={value}" for name, value in found.key.items())


def _facts(found: Explanation) -> Iterator[str]:
    online, view = found.online, found.view
    if online["status"] is not None and view.kind != "windowed":
        yield f"status  {online['status']}{_age(found)}"
    elif online["newest_us"] is not None:
        yield f"newest  event at {rfc3339(online['newest_us'])}, {_span(found.t_us - online['newest_us'])} before t"
    else:
        yield "newest  none: the online store holds nothing of this key"
    if _is_unmaterialized(found):
        yield f"batch   the file has rows that the store lacks; load them: headrace materialize {view.name}"
    state = "" if online["ready"] else ", not ready"
    yield f"stored  {online['redis_key']}, field {online['layout']}{state}, {counted(online['bytes'], 'byte')}"
    if online["positions"]:
        merged = ", ".join(f"{place.replace('|', ' ')}: {position}" for place, position in online["positions"].items())
        yield f"merged  up to {merged} (revision {online['revision']})"


def _age(found: Explanation) -> str:
    """How old the newest row of a plain or batch view is, and what its TTL says to that."""
    newest_us, ttl_us = found.online["newest_us"], found.view.ttl_us
    if newest_us is None:
        return ": the online store holds no row of this key"
    age_us = found.t_us - newest_us
    text = f": newest row at {rfc3339(newest_us)}, {_span(age_us)} before t"
    if not ttl_us:
        return f"{text}; no TTL"
    left_us = ttl_us - age_us
    rest = f"{_span(left_us)} left" if left_us >= 0 else f"past it by {_span(-left_us)}"
    return f"{text}; TTL {_span(ttl_us)}, {rest}"


def _is_unmaterialized(found: Explanation) -> bool:
    if not found.differ or found.events is None or not found.events.num_rows:
        return False
    return bool(found.events[FROM][-1].as_py() == "batch file")


def _tables(found: Explanation, limit: int) -> Iterator[Table]:
    yield _values(found)
    if found.events is not None:
        yield _rows(found, limit)
    if found.online["tiles"]:
        yield _tiles(found.online["tiles"], limit)


def _values(found: Explanation) -> Table:
    shown = _table("feature", "online", "archive", "")
    sides = (found.online["values"], found.offline)
    for feature in found.view.features:
        cells = ["-" if side is None else _text(side[feature.name]) for side in sides]
        mark = "" if found.differ is None else "differs" if feature.name in found.differ else "equal"
        shown.add_row(feature.name, *cells, mark)
    return shown


def _rows(found: Explanation, limit: int) -> Table:
    assert found.events is not None
    rows = found.events.slice(max(found.events.num_rows - limit, 0)).to_pylist()
    names = [name for name in found.events.column_names if name not in ROW_COLUMNS]
    origins = found.view.kind != "windowed"
    values = names if len(names) <= MOST_COLUMNS else ["values"]
    what = "row" if origins else "event"
    title = f"{counted(found.events.num_rows, f'archived {what}')} that count" + _shown_of(found.events.num_rows, limit)
    shown = _table(*(["from"] if origins else []), "event time (UTC)", "arrived", *values, "position")
    for column in shown.columns[: 3 if origins else 2]:
        column.no_wrap = True
    shown.title = f"{title}; the last one wins" if origins and rows else title
    for row in rows:
        own = [_text(row[name]) for name in names]
        if values == ["values"]:
            own = [", ".join(f"{name} {value}" for name, value in zip(names, own, strict=True))]
        first = [row[FROM]] if origins else []
        shown.add_row(*first, _time(row["event_time"]).removesuffix("Z"), _arrived(row), *own, _position(row))
    return shown


def _shown_of(count: int, limit: int) -> str:
    return f" (the newest {limit}; --limit shows more)" if count > limit else ""


def _arrived(row: dict[str, Any]) -> str:
    """The arrival as a span after the event time."""
    if row["arrival_time"] is None:
        return "-"
    late = row["arrival_time"] - row["event_time"]
    late_us = (late.days * 86_400 + late.seconds) * 1_000_000 + late.microseconds
    return f"+{_span(late_us)}" if late_us >= 0 else f"-{_span(-late_us)}"


def _position(row: dict[str, Any]) -> str:
    if row[OFFSET] is None:
        return "-"
    partition = f"{row[PARTITION]}:" if row[PARTITION] else ""
    return f"{partition}{row[OFFSET]}-{row[INDEX]}"


def _tiles(tiles: list[dict[str, Any]], limit: int) -> Table:
    shown = _table("hop", "tile starts", "events from here on come to")
    shown.title = counted(len(tiles), "suffix row") + _shown_of(len(tiles), limit)
    for tile in tiles[-limit:]:
        start = rfc3339(tile["tile_start_us"]) if tile["hop_us"] else "-"
        state = ", ".join(f"{name} {_text(value)}" for name, value in tile["state"].items())
        shown.add_row(format_duration(tile["hop_us"]) if tile["hop_us"] else "lifetime", start, state)
    return shown


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, title_justify="left", title_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    return table


def _text(value: Any) -> str:
    """A value as people write it: null, a moment in RFC 3339, a list in brackets."""
    if value is None:
        return "null"
    if isinstance(value, datetime):
        return _time(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _moment(time_us: int | None) -> str | None:
    return None if time_us is None else rfc3339(time_us)


def _span(span_us: int) -> str:
    """A duration by its two largest units."""
    days, rest = divmod(span_us, 86_400_000_000)
    hours, rest = divmod(rest, 3_600_000_000)
    minutes, rest = divmod(rest, 60_000_000)
    if days:
        return f"{days}d {hours}h" if hours else f"{days}d"
    if hours:
        return f"{hours}h {minutes}m" if minutes else f"{hours}h"
    seconds = f"{rest / 1e6:.3f}".rstrip("0").rstrip(".")
    whole = rest // 1_000_000
    return (f"{minutes}m {whole}s" if whole else f"{minutes}m") if minutes else f"{seconds}s"
