"""The layouts of views beside those that serve, as list and doctor show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from headrace.catalog.definitions import Catalog
from headrace.moments import rfc3339

__all__ = ["Beside", "layouts_beside"]


@dataclass(frozen=True, slots=True)
class Beside:
    """A layout that a rebuild builds (`arriving`), or that has served and is kept until a moment (`retiring`)."""

    state: Literal["arriving", "retiring"]
    view: str
    generation: int
    until: str | None

    def as_plain(self) -> dict[str, Any]:
        until = {} if self.until is None else {"until": self.until}
        return {"view": self.view, "generation": self.generation, **until}

    def __str__(self) -> str:
        end = "" if self.until is None else f", kept up to date until {self.until}, then swept"
        return f"generation {self.generation}{end}"


def layouts_beside(catalog: Catalog) -> list[Beside]:
    """Those that arrive, then those that retire."""
    arriving = [Beside("arriving", layout.view.name, layout.view.generation, None) for layout in catalog.arriving]
    return arriving + [
        Beside("retiring", layout.view.name, layout.view.generation, rfc3339(layout.until_us // 1_000_000 * 1_000_000))
        for layout in catalog.retiring
    ]
