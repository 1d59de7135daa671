"""The examples of docs/client.md, run from top to bottom."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from shop import Live, now

TEXT = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_examples_run_and_give_what_they_say(
    live: Live, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_REPO", str(live.settings.repo))
    monkeypatch.setenv("HEADRACE_DATA_DIR", str(live.settings.data_dir))
    live.push([{"id": "doc", "card_id": "c1", "amount": 9.5, "ts": now(-5)}])
    live.wait_until_applied()
    names: dict[str, Any] = {}
    code = [block.replace("http://localhost:6566", live.url) for block in BLOCKS]
    try:
        exec(code[0], names)
        first = names["vectors"]
        assert first.to_dict()["count_1h"] == [1, 0]
        assert first.statuses["sum_1h"] == ["PRESENT", "NULL_VALUE"]
        exec(code[1], names)
        assert names["vectors"].features == ["card_spend__sum_1h", "profile__since"]
        assert names["vectors"].t == [names["soon"]] * 2
        for block in code[2:]:
            exec(block, names)
        assert asyncio.run(names["score"]()).to_dict()["card_id"] == ["c1"]
        assert capsys.readouterr().out.startswith("There is no feature service 'nope'")
        live.wait_until_applied()
        assert names["direct"].get("card_v1", {"card_id": ["c1"]}).to_dict()["count_1h"] == [2]
    finally:
        for name in ("client", "direct"):
            if name in names:
                names[name].close()
