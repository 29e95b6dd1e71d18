"""The authority of `sandbox --acme`: a missing program is one line with its package."""

from __future__ import annotations

import pytest

from certctrl.errors import UsageError
from certctrl.sandbox import acme_ca


@pytest.mark.parametrize("absent", ["pebble", "pebble-challtestsrv"])
def test_a_missing_pebble_names_its_package(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acme_ca.shutil, "which", lambda name, **_: None if name == absent else f"/usr/bin/{name}")
    with pytest.raises(UsageError, match=f"{absent} is not installed") as refused:
        acme_ca.require_ca("pebble")
    assert refused.value.fix == "apt-get install pebble"


def test_a_missing_acme2certifier_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acme_ca.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="acme2certifier is not installed") as refused:
        acme_ca.require_ca("ari")
    assert refused.value.fix == "pip install acme2certifier"


def test_another_authority_is_refused() -> None:
    with pytest.raises(UsageError, match="--acme letsencrypt: not one of pebble, ari"):
        acme_ca.require_ca("letsencrypt")
