"""Addresses of stores that cannot be."""

from pathlib import Path

import pytest

from headrace.errors import SettingsError
from headrace.settings import Settings
from headrace.stores.connection import open_store


@pytest.mark.parametrize(
    ("url", "shown"), [("nonsense", "'nonsense'"), ("http://me:secret@host/1", "'http://[*]{3}@host/1'"), ("", "''")]
)
def test_an_url_of_another_kind_is_refused_with_how_to_write_it(tmp_path: Path, url: str, shown: str) -> None:
    with pytest.raises(SettingsError, match=f"got {shown}; write it like redis://localhost:6379, or unset it"):
        open_store(Settings(data_dir=tmp_path, redis_url=url))
