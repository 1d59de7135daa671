"""User functions as self-contained source."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from headrace.catalog.functions import carry
from headrace.catalog.load import load_repo
from headrace.errors import DefinitionError

YAML_AND = "from feast import Entity, ValueType\ncard = Entity(name='card', value_type=ValueType.STRING)\n"


@pytest.fixture
def carried(write_repo: Any) -> Any:
    """The carried source of function `f` in features.py, beside which helpers.py lies."""

    def run(text: str, helpers: str = "", name: str = "f") -> str:
        repo = load_repo(write_repo(features=YAML_AND + textwrap.dedent(text), helpers=helpers or "pass\n"))
        return carry(vars(repo.modules["features"])[name], repo.root, repo.modules, "view 'v'")

    return run


def call(code: str, *arguments: Any, name: str = "f") -> Any:
    """Run a carried module where nothing of the repo is known."""
    namespace: dict[str, Any] = {"__name__": "builtins"}
    exec(compile(code, "carried", "exec"), namespace)
    return namespace[name](*arguments)


WORKING = {
    "helper": ("def g(x):\n    return x + 1\ndef f(x):\n    return g(x)\n", "", 3, 4),
    "constant": ("K = {'a': [1, (2.5,)], 'b': {3}}\ndef f(x):\n    return K['a'][1][0] + x\n", "", 1, 3.5),
    "infinite constant": ("K = float('-inf')\ndef f(x):\n    return max(K, x)\n", "", 1, 1),
    "sibling": (
        "from helpers import h as other\ndef f(x):\n    return other(x)\n",
        "def h(x):\n    return -x\n",
        2,
        -2,
    ),
    "sibling's constant": (
        "from helpers import h\ndef f(x):\n    return h(x)\n",
        "LIMIT = 10\ndef h(x):\n    return min(x, LIMIT)\n",
        99,
        10,
    ),
    "import": ("import math\ndef f(x):\n    return math.floor(x)\n", "", 2.5, 2),
    "import under another name": ("import numpy as n\ndef f(x):\n    return int(n.sign(x))\n", "", -7, -1),
    "imported name": ("from math import floor as fl\ndef f(x):\n    return fl(x)\n", "", 2.5, 2),
    "imported class": ("from datetime import timedelta\ndef f(x):\n    return timedelta(x).days\n", "", 2, 2),
    "time constant": (
        "from datetime import timedelta\nSTEP = timedelta(2)\ndef f(x):\n    return x * STEP == timedelta(x * 2)\n",
        "",
        3,
        True,
    ),
    "inside a comprehension": (
        "K = 3\ndef g(x):\n    return x * K\ndef f(x):\n    return [g(i) for i in range(x)]\n",
        "",
        3,
        [0, 3, 6],
    ),
    "inside a nested function": (
        "K = 3\ndef f(x):\n    def inner():\n        return (lambda: K + x)()\n    return inner()\n",
        "",
        1,
        4,
    ),
    "default value": ("K = 3\ndef f(x, k=K):\n    return x + k\n", "", 1, 4),
    "annotations": ("import pandas as pd\ndef f(x: pd.DataFrame) -> 'Nothing':\n    return x\n", "", 1, 1),
    "closure over a literal": (
        "def make(k):\n    def f(x):\n        return x + k\n    return f\nf = make(5)\n",
        "",
        1,
        6,
    ),
    "cached helper": (
        "from functools import cache\n@cache\ndef g(x):\n    return x * 2\ndef f(x):\n    return g(x)\n",
        "",
        4,
        8,
    ),
    "class": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    def twice(self):\n"
        "        return self.x * K\nK = 2\ndef f(x):\n    return P(x).twice()\n",
        "",
        4,
        8,
    ),
    "mutual recursion": (
        "def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n != 0 and even(n - 1)\n"
        "def f(x):\n    return even(x)\n",
        "",
        4,
        True,
    ),
    "import inside": ("def f(x):\n    import math\n    return math.ceil(x)\n", "", 1.2, 2),
}


@pytest.mark.parametrize(("text", "helpers", "given", "expected"), WORKING.values(), ids=WORKING)
def test_a_carried_function_gives_what_the_original_gives(
    carried: Any, text: str, helpers: str, given: Any, expected: Any
) -> None:
    assert call(carried(text, helpers), given) == expected


REFUSED = {
    "undefined name": (
        "def f(x):\n    return [missing_name(i) for i in x]\n",
        "'missing_name' is used by f and defined",
    ),
    "opened file": ("K = open('feature_store.yaml')\nK.close()\ndef f(x):\n    return K\n", "'K' is a TextIOWrapper"),
    "array": ("import numpy as np\nK = np.zeros(3)\ndef f(x):\n    return K\n", "'K' is a ndarray; make it a literal"),
    "feast object": ("def f(x):\n    return card.name\n", "'card' is a Entity"),
    "repo module": ("import helpers\ndef f(x):\n    return helpers.h(x)\n", "module of the repo; write 'from helpers"),
    "lambda": ("f = lambda x: x\n", "lambda; write it as a function with def"),
    "state": ("n = 0\ndef f(x):\n    global n\n    n += 1\n    return n\n", "'n' is assigned by f outside itself"),
    "clock": ("from datetime import datetime\ndef f(x):\n    return datetime.now()\n", r"reads a clock; pass the time"),
    "time": ("import time\ndef f(x):\n    return time.time()\n", "reads a clock"),
    "random": ("import random\ndef f(x):\n    return random.random()\n", "is random"),
    "numpy random": ("import numpy as np\ndef f(x):\n    return np.random.rand()\n", "is random"),
    "imported random": ("from random import choice\ndef f(x):\n    return choice(x)\n", "'choice'"),
    "imported clock": ("from time import time\ndef f(x):\n    return time()\n", "'time' reads a clock"),
    "imported identifier": ("from uuid import uuid4\ndef f(x):\n    return uuid4().hex\n", "'uuid4' is random"),
    "imported generator": (
        "from numpy.random import default_rng\ndef f(x):\n    return default_rng(1).random()\n",
        "is random",
    ),
    "hash": ("def f(x):\n    return list(map(hash, x))\n", "'hash' gives another number in each process; use hashlib"),
    "feast": ("import feast\ndef f(x):\n    return feast.__version__\n", "not there at run time"),
    "wrapped": (
        "import functools\ndef deco(g):\n    @functools.wraps(g)\n    def h(x):\n        return g(x) + 1\n"
        "    return h\n@deco\ndef g(x):\n    return x\ndef f(x):\n    return g(x)\n",
        "changed by a decorator",
    ),
}


@pytest.mark.parametrize(("text", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_carried_is_refused_by_name(carried: Any, text: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=f"view 'v' travels as source.*{words}"):
        carried(text)


def test_two_things_of_one_name_are_refused(carried: Any) -> None:
    with pytest.raises(DefinitionError, match="'K' stands for two different things"):
        carried("from helpers import h\nK = 1\ndef f(x):\n    return h(x) + K\n", "K = 2\ndef h(x):\n    return K\n")


def test_equal_functions_give_equal_text(carried: Any) -> None:
    one = carried("K = {'b', 'a'}\ndef f(x):\n    # why\n    return x  in  K\n")
    other = carried("K = {'a', 'b'}\n\n\ndef f(x):\n    return (x in K)\n")
    assert one == other
