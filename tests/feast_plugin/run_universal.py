"""Feast's own universal tests, those that need no docker, against our stores: `make feast-tests FEAST_SRC=path`.

The tests are in Feast's repository, not in its wheel. They are copied to a temporary folder, so that they import the
Feast that is installed here, and run with the packages they want in an environment of their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import feast

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv" / "feast-tests"
NEEDED = (
    "pytest>=7,<8",
    "pytest-asyncio<=0.24.0",
    "pytest-env",
    "pytest-lazy-fixture==0.6.3",
    "pytest-mock==1.10.4",
    "pytest-timeout==1.4.2",
    "pytest-xdist",
    "assertpy",
    "botocore",
    "google-cloud-bigquery",
    "grpcio",
    "minio",
    "python-keycloak",
    "psycopg",
    "pymysql",
    "sqlalchemy",
    "testcontainers>=4",
)
TESTS = Path("tests/integration")
RUNS = (
    (
        "headrace",
        (
            "online_store/test_universal_online.py",
            "online_store/test_push_features_to_online_store.py",
            "online_store/test_universal_e2e.py",
            "offline_store/test_feature_logging.py",
            "offline_store/test_non_entity_mode.py",
            "offline_store/test_offline_write.py",
            "offline_store/test_persist.py",
            "offline_store/test_push_features_to_offline_store.py",
            "offline_store/test_universal_historical_retrieval.py",
            "offline_store/test_universal_materialization.py",
            "offline_store/test_universal_types.py",
            "materialization/test_universal_materialization.py",
        ),
    ),
    ("redis", ("online_store/test_universal_online.py",)),
    ("sqlite", ("online_store/test_universal_online_types.py",)),
)
LEFT_OUT = "not dynamo"
"""They start a DynamoDB in docker."""
EXPECTED = {
    "test_entity_ttl_online_store": "sets key_ttl_seconds, an option of Feast's Redis store; keys here expire by ttl",
    "test_write_to_online_store_event_check": (
        "it wants the value of a row that is an hour old under a ttl of five minutes; past its ttl a value is null"
    ),
    "test_feature_get_historical_features_types_match[TypeTestConfig(feature_dtype='float', feature_is_list=False": (
        "a feature declared Float32 over a file of doubles is float32 in training, as it is online; Feast's file store "
        "gives the file's doubles"
    ),
    "test_odfv_write_methods": (
        "it reads a row of 2024 with a ttl of one day and wants its value; past its ttl a value is null, online as in "
        "training"
    ),
    "test_entity_inference_types_match[": (
        "Feast infers Json for a join key whose texts look like numbers, by chance; so it does on Feast's file store"
    ),
    "test_non_entity_mode_preserves_multiple_timestamps": (
        "written for Ray alone (ray_offline_stores_only); fails the same on Feast's file store: it compares float32 "
        "with doubles exactly"
    ),
}
WHERE = """Feast's universal tests are in its repository:
  git clone --depth 1 --branch v{version} https://github.com/feast-dev/feast /tmp/feast
  make feast-tests FEAST_SRC=/tmp/feast"""


def main(arguments: list[str]) -> int:
    source = Path(arguments[0]).absolute() if arguments and arguments[0] else None
    if source is None or not (source / "sdk/python/tests/universal").is_dir():
        if source is not None:
            print(f"There is no sdk/python/tests/universal in {source}.", file=sys.stderr)
        print(WHERE.format(version=feast.__version__), file=sys.stderr)
        return 2
    python = _environment()
    with tempfile.TemporaryDirectory(prefix="feast-tests-") as folder:
        work = Path(folder)
        shutil.copytree(source / "sdk/python/tests", work / "tests")
        shutil.copy(source / "sdk/python/pytest.ini", work)
        return _report([case for name, modules in RUNS for case in _run(python, work, name, modules)])


def _environment() -> Path:
    """A Python with the tests' packages, over those of this project."""
    python = ENVIRONMENT / "bin" / "python"
    uv = str(ROOT / ".venv" / "bin" / "uv")
    if not python.exists():
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(ENVIRONMENT)], check=True)
        ours = [path for path in sys.path if path.endswith("site-packages")]
        (packages,) = ENVIRONMENT.glob("lib/python*/site-packages")
        (packages / "project.pth").write_text("\n".join([*ours, str(ROOT)]) + "\n")
    subprocess.run([uv, "pip", "install", "-q", "--python", str(python), *NEEDED], check=True)
    return python


Case = tuple[str, str, str, str]
"""Module, test, outcome (passed, skipped, failed), what was said."""


def _run(python: Path, work: Path, name: str, modules: tuple[str, ...]) -> list[Case]:
    """Run modules with our online store under a name."""
    data, report, scratch = work / f"data-{name}", work / f"{name}.xml", work / "scratch"
    scratch.mkdir(exist_ok=True)
    print(f"As {name!r}: {len(modules)} modules", flush=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")} | {
        "FEAST_IS_LOCAL_TEST": "True",
        "FEAST_TESTS_AS": name,
        "FEAST_TESTS_DATA": str(data),
        "FEAST_USAGE": "False",
        "FULL_REPO_CONFIGS_MODULE": "universal_stores",
        "PYTHONPATH": os.pathsep.join([str(work), str(Path(__file__).parent)]),
        "TMPDIR": str(scratch),
    }
    command = [str(python), "-m", "pytest", "--integration", "-q", "-p", "no:warnings", "-k", LEFT_OUT]
    command += [f"--junitxml={report}", *(str(TESTS / module) for module in modules)]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    if not report.exists() or done.returncode not in (0, 1, 5):
        print(done.stdout[-4_000:], done.stderr[-4_000:], file=sys.stderr)
        raise SystemExit(f"pytest ended with {done.returncode}")
    return [_case(case, name) for case in ElementTree.parse(report).iter("testcase")]


def _case(case: ElementTree.Element, name: str) -> Case:
    found = {child.tag: child for child in case}
    wrong = next((found[tag] for tag in ("failure", "error") if tag in found), None)
    outcome = "failed" if wrong is not None else "skipped" if "skipped" in found else "passed"
    said = (wrong if wrong is not None else found.get("skipped", case)).get("message", "")
    module = case.get("classname", "").removeprefix("tests.integration.")
    return module if name == RUNS[0][0] else f"{module} as {name}", case.get("name", ""), outcome, said


def _report(cases: list[Case]) -> int:
    """The table, and 1 if a test failed that is not expected to."""
    counts: dict[str, Counter[str]] = {}
    for module, _, outcome, _ in cases:
        counts.setdefault(module, Counter())[outcome] += 1
    print(f"\n{'module':60}{'passed':>8}{'skipped':>9}{'failed':>8}")
    for module, count in counts.items():
        print(f"{module:60}{count['passed']:8}{count['skipped']:9}{count['failed']:8}")
    total = Counter(outcome for _, _, outcome, _ in cases)
    print(f"{'all':60}{total['passed']:8}{total['skipped']:9}{total['failed']:8}\n")
    unexpected = 0
    for module, test, outcome, said in cases:
        if outcome == "failed":
            why = next((reason for start, reason in EXPECTED.items() if test.startswith(start)), None)
            unexpected += why is None
            print(f"{'expected' if why else 'FAILED'}: {module}::{test[:110]}\n    {why or said.splitlines()[:1]}")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
