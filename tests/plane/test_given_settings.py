"""Settings and documents that operators give: JSON that cannot be sent again is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from certctrl.cli.plane.documents import json_file
from certctrl.cli.plane.issuers import _settings
from certctrl.errors import UsageError

UNSENDABLE = ["NaN", "[-Infinity]", "1e999", "[" * 60_000]


@pytest.mark.parametrize("value", UNSENDABLE)
def test_a_setting_that_is_no_json_is_a_text(value: str) -> None:
    assert _settings("", [f"budget={value}", "terms_agreed=true"]) == {"budget": value, "terms_agreed": True}


@pytest.mark.parametrize("value", UNSENDABLE)
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, value: str) -> None:
    file = tmp_path / "settings.json"
    file.write_text(f'{{"budget": {value}}}')
    with pytest.raises(UsageError, match="is not JSON"):
        _settings(str(file), [])
    with pytest.raises(UsageError, match="is not JSON"):
        json_file(file)
