"""Records what Feast's own Python feature server answers, for test_wire.py to compare ours with.

Run it after a change of Feast's version or of the requests below:

    .venv/bin/python tests/serving/record_feast.py

It applies wire_repo with Feast to a folder of its own (SQLite as online store), runs Feast's server in a process of
its own, sends it the rows and the requests, and writes them with the replies to feast_replies.json.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
RECORD = HERE / "feast_replies.json"

TIME = "2026-01-02T03:04:05"
TYPES = ("a_int32", "a_int64", "a_float32", "a_float64", "a_bool", "a_string", "a_time")
WRITES: list[tuple[str, dict[str, list[Any]]]] = [
    (
        "every",
        {
            "driver_id": [1, 2, 3],
            "a_int32": [2**31 - 1, -(2**31), 0],
            "a_int64": [2**53 + 1, -(2**63) + 1, 0],
            "a_float32": [0.5, 0.1, None],
            "a_float64": [0.1, 1e300, None],
            "a_bool": [True, False, None],
            "a_string": ["Köln 😀", "", None],
            "a_time": [1_356_998_400, -1, 0],
            "event_timestamp": [TIME] * 3,
            "created": [None] * 3,
        },
    ),
    ("every", {"driver_id": [4], **{name: [None] for name in TYPES}, "event_timestamp": [TIME], "created": [None]}),
    ("brief", {"driver_id": [1], "speed": [30.0], "event_timestamp": [f"{TIME}.250"], "created": [None]}),
    (
        "pair",
        {
            "driver_id": [1, 1],
            "customer_id": ["a", "b"],
            "trips": [7, 8],
            "event_timestamp": [TIME, TIME],
            "created": [None, None],
        },
    ),
]
EVENTS = [
    {"driver_id": 1, "n": n, "x": n / 4, "flag": n > 1, "word": f"w{n}"}
    | {"moment": f"2026-01-02T03:04:0{n}Z", "ts": f"2026-01-02T03:04:0{n + 2}Z"}
    for n in (1, 2, 3)
]
"""What the lists of `lists` are the last three of, in the order of time, a second apart, up to TIME."""


def body(entities: dict[str, Any], *features: str, service: str | None = None, **more: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"feature_service": service} if service else {"features": list(features)}
    return {**asked, "entities": entities, **more}


ONE = {"driver_id": [1]}
SOME = {"driver_id": [1, 2, 3, 4, 99]}
COUPLES = {"driver_id": [1, 1, 9], "customer_id": ["b", "a", "a"]}
ASK = {"amount": [2.0, 3.0], "count": [2, 3]}

CASES: dict[str, Any] = {
    "every type, nulls and an unseen key": body(SOME, service="typed_v1"),
    "references": body(SOME, "every:a_string", "every:a_int32"),
    "full names": body(ONE, "every:a_string", "every:a_int32", full_feature_names=True),
    "past its ttl": body({"driver_id": [1, 2]}, "brief:speed"),
    "two keys": body(COUPLES, "pair:trips"),
    "several views and another name": body(COUPLES, service="mixed_v1"),
    "several views and another name, full names": body(COUPLES, service="mixed_v1", full_feature_names=True),
    "lists": body({"driver_id": [1, 99]}, *(f"lists:last_3_{c}_lifetime" for c in ("n", "x", "flag", "word"))),
    "a list of moments": body({"driver_id": [1, 99]}, "lists:last_3_moment_lifetime"),
    "a moment": body(SOME, "every:a_time"),
    "on demand beside a null": body({"driver_id": [3], "amount": [1.0], "count": [1]}, "by_frame:text"),
    "on demand": body({"driver_id": [1, 2], **ASK}, service="asked_v1"),
    "on demand, full names": body({"driver_id": [1, 2], **ASK}, service="asked_v1", full_feature_names=True),
    "on demand by reference": body({"driver_id": [1, 2], **ASK}, "by_lists:total", "every:a_float64"),
    "the same key twice": body({"driver_id": [1, 1]}, "every:a_string"),
    "a null key": body({"driver_id": [1, None]}, "every:a_string"),
    "a key as text": body({"driver_id": ["1"]}, "every:a_string"),
    "a key as a fraction": body({"driver_id": [1.5]}, "every:a_string"),
    "a key too many": body({"driver_id": [1], "other": [1]}, "every:a_string"),
    "no key": body({}, "every:a_string"),
    "another key": body({"customer_id": ["a"]}, "every:a_string"),
    "no rows": body({"driver_id": []}, "every:a_string"),
    "unequal columns": body({"driver_id": [1, 2], "customer_id": ["a"]}, "pair:trips"),
    "no request data": body({"driver_id": [1]}, service="asked_v1"),
    "an unknown service": body(ONE, service="nope"),
    "an unknown view": body(ONE, "nope:x"),
    "an unknown feature": body(ONE, "every:nope"),
    "a reference without a colon": body(ONE, "every"),
    "a feature twice": body(ONE, "every:a_string", "every:a_string"),
    "nothing asked": {"entities": ONE},
    "service and features": body(ONE, service="typed_v1") | {"features": ["every:a_string"]},
    "no entities": {"features": ["every:a_string"]},
    "entities of another shape": {"features": ["every:a_string"], "entities": {"driver_id": 1}},
    "a field that is none": body(ONE, "every:a_string", nope=1),
    "no object": [],
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        repo = Path(folder) / "repo"
        shutil.copytree(HERE / "wire_repo", repo)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = subprocess.Popen([sys.executable, __file__, "serve", str(repo), str(port)])
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
                record = answers(http)
        finally:
            process.terminate()
            process.wait()
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(record['cases'])} replies of Feast {record['feast']} in {RECORD}")


def answers(http: httpx.Client) -> dict[str, Any]:
    wait(http)
    for view, df in WRITES:
        http.post("/write-to-online-store", json={"feature_view_name": view, "df": df}).raise_for_status()
    cases = []
    for name, asked in CASES.items():
        reply = http.post("/get-online-features", json=asked, headers={"connection": "close"})
        cases.append({"name": name, "body": asked, "status": reply.status_code, "reply": reply.json()})
    writes = [{"feature_view_name": view, "df": df} for view, df in WRITES]
    return {"feast": version("feast"), "writes": writes, "time": TIME, "events": EVENTS, "cases": cases}


def wait(http: httpx.Client) -> None:
    for _ in range(600):
        try:
            if http.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise SystemExit("Feast's server did not start")


def serve(repo: str, port: str) -> None:
    """Applies the repo and runs Feast's server over it, with the lists in its store: they are computed nowhere else."""
    import pandas as pd
    import uvicorn
    from feast import FeatureStore
    from feast.feature_server import get_app
    from feast.repo_config import load_repo_config
    from feast.repo_operations import apply_total

    os.chdir(repo)
    sys.path.insert(0, repo)
    apply_total(
        load_repo_config(Path(repo), Path(repo) / "feature_store.yaml"), Path(repo), skip_source_validation=True
    )
    store = FeatureStore(repo)
    last = {f"last_3_{name}_lifetime": [[row[name] for row in EVENTS]] for name in ("n", "x", "flag", "word")}
    last["last_3_moment_lifetime"] = [[pd.Timestamp(row["moment"]) for row in EVENTS]]
    store.write_to_online_store("lists", pd.DataFrame({"driver_id": [1], **last, "ts": [pd.Timestamp(TIME)]}))
    uvicorn.run(get_app(store), host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    serve(*sys.argv[2:]) if sys.argv[1:2] == ["serve"] else main()
