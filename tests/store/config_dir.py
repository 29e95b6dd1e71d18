"""Helpers for the tests of the operator's files."""

from __future__ import annotations

import pytest

from certctrl.errors import ConfigError, ExitStatus
from certctrl.store.config.files import load_config
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir

URL = "https://plane.example"
FS = RealFs()


def refused(layout: ConfigDir, environ: dict[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(layout, environ or {})
    assert caught.value.exit_status == ExitStatus.CONFIG
    assert caught.value.fix
    assert "\n" not in str(caught.value)
    return caught.value
