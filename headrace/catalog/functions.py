"""User functions as self-contained source: the function, its helpers, constants and imports in one module's text.

Nothing is pickled: what a function needs is found by name, in its code and in all code nested in it, and written
down again: repo functions and classes as source, installed things as imports, literals as literals.
"""

from __future__ import annotations

import ast
import builtins
import dis
import functools
import inspect
import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any
from zoneinfo import ZoneInfo

from headrace.errors import DefinitionError

__all__ = ["carry"]

LITERAL_MODULES = ("datetime", "decimal", "zoneinfo")

HEADER = "from __future__ import annotations"
CLOCKS = frozenset({"now", "utcnow", "today", "monotonic", "perf_counter", "time_ns"})
RANDOM = frozenset({"random", "default_rng", "uuid1", "uuid4"})
EACH_PROCESS = frozenset({"hash", "id"})
"""Built-in functions that give a text, or an object, another number in each process."""
NEVER = {"random": "is random", "secrets": "is random", "feast": "is not there at run time"}


def carry(function: FunctionType, root: Path, modules: Mapping[str, ModuleType], who: str) -> str:
    """A module's source that defines `function` under its own name and needs nothing from the repo in `root`.

    `modules` are the repo's loaded modules. Raises DefinitionError naming `who` and the name that cannot be carried.
    Equal functions give equal text, whatever their comments and layout.
    """
    carrier = _Carrier(root, modules, who)
    carrier.bound[function.__name__] = function
    carrier.define(function, function.__name__)
    return carrier.text()


@dataclass
class _Carrier:
    """The parts of the module while they are collected; `bound` is what each of its names stands for."""

    root: Path
    modules: Mapping[str, ModuleType]
    who: str
    bound: dict[str, Any] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)
    constants: dict[str, str] = field(default_factory=dict)
    definitions: list[str] = field(default_factory=list)

    def text(self) -> str:
        imports = sorted(self.imports)
        constants = [f"{name} = {value}" for name, value in sorted(self.constants.items())]
        parts = ["\n".join([HEADER, *imports]), "\n".join(constants), *self.definitions]
        return "\n\n".join(part for part in parts if part) + "\n"

    def refuse(self, name: str, reason: str, remedy: str) -> DefinitionError:
        return DefinitionError(
            f"The function of {self.who} travels as source with all it needs; {name!r} {reason}; {remedy}."
        )

    def define(self, item: Any, name: str) -> None:
        """Carry a function or class of the repo, its needs first."""
        tree = self._tree(item, name)
        self._refuse_impure(tree, name)
        scope = self._scope(item)
        code = compile(f"{HEADER}\n{ast.unparse(tree)}", name, "exec")
        for need in sorted(_names(code)):
            self.need(need, scope, name)
        self.definitions.append(ast.unparse(tree))

    def need(self, name: str, scope: Mapping[str, Any], user: str) -> None:
        """Carry what `name` stands for in `scope`."""
        if name not in scope:
            if name in EACH_PROCESS and name not in self.bound:
                raise self.refuse(name, "gives another number in each process", "use hashlib or zlib.crc32")
            if name in self.bound or hasattr(builtins, name):
                return
            raise self.refuse(name, f"is used by {user} and defined nowhere", "define or import it")
        value = scope[name]
        if name in self.bound:
            if not _same(self.bound[name], value):
                raise self.refuse(name, "stands for two different things in its files", "rename one")
            return
        self.bound[name] = value
        self._bind(name, value)

    def _bind(self, name: str, value: Any) -> None:
        value = _undecorated(value)
        if isinstance(value, ModuleType):
            self._import_module(name, value)
        elif isinstance(value, FunctionType | type) and self._is_ours(value):
            self._bind_definition(name, value)
        elif (literal := _literal(value)) is not None:
            self.constants[name] = literal
            self.imports |= {f"import {name} as _{name}" for name in LITERAL_MODULES if f"_{name}." in literal}
        else:
            self._import_name(name, value)

    def _bind_definition(self, name: str, value: Any) -> None:
        own = value.__name__
        if own != name and self.bound.setdefault(own, value) is not value:
            raise self.refuse(own, "stands for two different things in its files", "rename one")
        self.define(value, own)
        if own != name:
            self.definitions.append(f"{name} = {own}")

    def _import_module(self, name: str, module: ModuleType) -> None:
        if self._is_repo_module(module):
            remedy = f"write 'from {module.__name__} import ...' with the names that it uses"
            raise self.refuse(name, "is a module of the repo", remedy)
        self._refuse_root(module.__name__, name)
        self.imports.add(f"import {module.__name__} as {name}" if module.__name__ != name else f"import {name}")

    def _import_name(self, name: str, value: Any) -> None:
        """Carry a thing of an installed package as an import, if importing it gives the same thing."""
        module = getattr(value, "__module__", None)
        own = getattr(value, "__qualname__", getattr(value, "__name__", None))
        if not module or not own or module in self.modules or _imported(module, own) is not value:
            remedy = "make it a literal, an import or a function of the repo"
            raise self.refuse(name, f"is a {type(value).__name__}", remedy)
        self._refuse_root(module, name)
        if own in RANDOM:
            raise self.refuse(name, "is random", "compute from the inputs alone")
        if own in CLOCKS or (module, own) == ("time", "time"):
            raise self.refuse(name, "reads a clock", "pass the time in as request data")
        self.imports.add(f"from {module} import {own}" + (f" as {name}" if own != name else ""))

    def _refuse_root(self, module: str, name: str) -> None:
        reason = NEVER.get(module.partition(".")[0])
        if reason is not None:
            raise self.refuse(name, reason, "compute from the inputs alone")

    def _tree(self, item: Any, name: str) -> ast.FunctionDef | ast.ClassDef:
        """The definition without its decorators."""
        if name == "<lambda>":
            raise self.refuse(name, "is a lambda", "write it as a function with def")
        if hasattr(item, "__wrapped__"):
            raise self.refuse(name, "is changed by a decorator", "call the decorating function inside it")
        try:
            tree = self._class_tree(item) if isinstance(item, type) else _function_tree(item)
        except (OSError, TypeError, SyntaxError) as error:
            raise self.refuse(name, f"has no source ({error})", "define it in a definition file") from None
        if not isinstance(tree, ast.FunctionDef | ast.ClassDef):
            raise self.refuse(name, "is not written as def or class at module level", "write it so")
        if isinstance(item, type):
            self._refuse_class_decorators(tree, name)
        else:
            tree.decorator_list = []
        return tree

    def _class_tree(self, item: type) -> ast.stmt | None:
        """A class is found by its name in its file: the module that inspect would ask is no longer imported."""
        body = ast.parse(inspect.getsource(self.modules[item.__module__])).body
        return next((node for node in body if isinstance(node, ast.ClassDef) and node.name == item.__qualname__), None)

    def _refuse_class_decorators(self, tree: ast.FunctionDef | ast.ClassDef, name: str) -> None:
        for decorator in tree.decorator_list:
            if "dataclass" not in ast.unparse(decorator):
                raise self.refuse(name, f"is decorated by {ast.unparse(decorator)}", "leave the decorator out")

    def _refuse_impure(self, tree: ast.AST, name: str) -> None:
        """Refuse what gives another value at another time; the check on sample rows finds what this misses."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in RANDOM:
                raise self.refuse(ast.unparse(node), "is random", "compute from the inputs alone")
            if isinstance(node, ast.Global):
                raise self.refuse(node.names[0], f"is assigned by {name} outside itself", "keep no state")
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self._refuse_root(alias.name, alias.name)
            if isinstance(node, ast.ImportFrom):
                self._refuse_root(node.module or "", node.module or "")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                text = ast.unparse(node.func)
                if node.func.attr in CLOCKS or text == "time.time":
                    raise self.refuse(f"{text}()", "reads a clock", "pass the time in as request data")

    def _scope(self, item: Any) -> dict[str, Any]:
        """What names stand for inside `item`: its module's globals, and the cells of its closure."""
        if isinstance(item, type):
            return dict(vars(self.modules[item.__module__])) if item.__module__ in self.modules else {}
        scope = dict(item.__globals__)
        for name, cell in zip(item.__code__.co_freevars, item.__closure__ or (), strict=True):
            scope[name] = cell.cell_contents
        return scope

    def _is_ours(self, value: FunctionType | type) -> bool:
        if isinstance(value, FunctionType):
            return Path(value.__code__.co_filename).resolve().is_relative_to(self.root) and (
                "site-packages" not in value.__code__.co_filename
            )
        return value.__module__ in self.modules

    def _is_repo_module(self, module: ModuleType) -> bool:
        return any(module is known for known in self.modules.values()) or (
            any(name.startswith(f"{module.__name__}.") for name in self.modules)
        )


def _function_tree(function: FunctionType) -> ast.stmt:
    return ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]


def _same(one: Any, other: Any) -> bool:
    literal = _literal(one)
    return one is other or (literal is not None and literal == _literal(other))


def _undecorated(value: Any) -> Any:
    """A function behind functools.cache: it gives the same values without."""
    is_cached = isinstance(value, functools._lru_cache_wrapper)
    return value.__wrapped__ if is_cached else value


def _imported(module: str, qualname: str) -> Any:
    """What an import of the name gives, None if it cannot be imported."""
    if "." in qualname:
        return None
    try:
        return getattr(__import__(module, fromlist=[qualname]), qualname, None)
    except ImportError:
        return None


def _names(code: CodeType) -> set[str]:
    """The global names that `code` and all code nested in it read."""
    return {name for part in _nested(code) for name in _read(part)}


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _read(code: CodeType) -> set[str]:
    """The names that one code object reads from its module, without those that it has stored before."""
    stored: set[str] = {"__name__", "__annotations__"}
    read = set()
    for instruction in dis.get_instructions(code):
        name = str(instruction.argval)
        if instruction.opname == "STORE_NAME":
            stored.add(name)
        elif instruction.opname == "LOAD_GLOBAL" or (instruction.opname == "LOAD_NAME" and name not in stored):
            read.add(name)
    return read


def _literal(value: Any) -> str | None:
    """Source text that gives an equal value, None for what is no literal."""
    kind = type(value)
    if kind in (bool, int, str, bytes, type(None)):
        return repr(value)
    if kind is float:
        return repr(value) if math.isfinite(value) else f"float({str(value)!r})"
    if kind in (list, tuple, set, frozenset):
        return _sequence(value)
    if kind is dict:
        pairs = [(_literal(key), _literal(item)) for key, item in value.items()]
        inner = None if any(None in pair for pair in pairs) else ", ".join(f"{key}: {item}" for key, item in pairs)
        return None if inner is None else f"{{{inner}}}"
    if kind in (date, datetime, timedelta, timezone):
        return repr(value).replace("datetime.", "_datetime.").replace("zoneinfo.", "_zoneinfo.")
    if kind is Decimal:
        return f"_decimal.{value!r}"
    return f"_zoneinfo.ZoneInfo({value.key!r})" if kind is ZoneInfo and value.key else None


def _sequence(value: Any) -> str | None:
    items = [_literal(item) for item in value]
    if None in items:
        return None
    texts = [item for item in items if item is not None]
    if isinstance(value, set | frozenset):
        inner = ", ".join(sorted(texts))
        return f"{type(value).__name__}(({inner}{',' if inner else ''}))"
    inner = ", ".join(texts)
    if isinstance(value, tuple):
        return f"({inner}{',' if len(texts) == 1 else ''})"
    return f"[{inner}]"
