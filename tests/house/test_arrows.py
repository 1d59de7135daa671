"""Who may import whom: the arrows of docs/architecture.md, read from the source."""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("headrace", "materialize", "serving", "training", "demo", "benchmarks")
FOUNDATION = {"headrace.errors", "headrace.dtypes", "headrace.settings", "headrace.moments", "headrace.telemetry"}
LIBRARY = FOUNDATION | {"headrace.windows", "headrace.catalog", "headrace.stores", "headrace.compute", "headrace.read"}

MAY_IMPORT = {
    "headrace.windows": FOUNDATION,
    "headrace.catalog": FOUNDATION | {"headrace.windows"},
    "headrace.stores": FOUNDATION | {"headrace.windows", "headrace.catalog"},
    "headrace.compute": FOUNDATION | {"headrace.windows", "headrace.catalog", "headrace.stores"},
    "headrace.read": LIBRARY - {"headrace.read"},
    "headrace.feast_plugin": LIBRARY,
    "headrace.client": LIBRARY,
    "headrace.define": FOUNDATION | {"headrace.windows", "headrace.catalog"},
    "headrace.cli": None,
    "materialize": LIBRARY,
    "serving": LIBRARY,
    "training": LIBRARY,
    "demo": FOUNDATION | {"headrace"},
    "benchmarks": None,
}
MAY_IMPORT_FEAST = ("headrace/catalog/", "headrace/define.py", "headrace/feast_plugin/")
NEIGHBOURS_ALLOWED = {("training/jobs.py", "materialize"), ("headrace/feast_plugin/engine.py", "materialize")}


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """The dotted names that a module imports, at its top or inside functions; those for types only are left out."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for node in ast.walk(block)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(name: str) -> str:
    """The room a dotted module name lies in: headrace's folders and files count singly."""
    parts = name.split(".")
    inner = parts[0] == "headrace" and len(parts) > 1
    if not inner:
        return parts[0]
    lies_in_headrace = (ROOT / "headrace" / parts[1]).is_dir() or (ROOT / "headrace" / f"{parts[1]}.py").is_file()
    return ".".join(parts[:2]) if lies_in_headrace else "headrace"


def own_room(path: Path) -> str:
    return room(".".join(path.relative_to(ROOT).with_suffix("").parts))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_arrows_allow(path: Path) -> None:
    here, relative = own_room(path), str(path.relative_to(ROOT))
    allowed = MAY_IMPORT.get(here, FOUNDATION)
    if allowed is None:
        return
    reached = {room(name) for name in imported(path) if name.split(".")[0] in (*PACKAGES, "feature_repo", "tests")}
    wrong = {name for name in reached - allowed - {here} if (relative, name) not in NEIGHBOURS_ALLOWED}
    if relative == "headrace/__init__.py":
        wrong -= LIBRARY | {"headrace.define", "headrace.client"}
    if relative == "headrace/__main__.py":
        wrong -= {"headrace.cli"}
    assert not wrong, f"{relative} imports {sorted(wrong)}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_definition_side_imports_feast(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    if relative.startswith((*MAY_IMPORT_FEAST, "demo/", "benchmarks/")):
        return
    assert not {name for name in imported(path) if name.split(".")[0] == "feast"}
    assert not {name for name in imported(path) if name.split(".")[0] in ("pickle", "dill", "cloudpickle")}


def test_no_module_of_ours_bears_a_dependency_s_name() -> None:
    foreign = {name.lower() for name in importlib.metadata.packages_distributions() if name not in PACKAGES}
    ours = {path.stem.lower() for path in modules() if not path.stem.startswith("__")}
    folders = {path.parent.name.lower() for path in modules()} - {"headrace"}
    assert not (ours | folders) & foreign
