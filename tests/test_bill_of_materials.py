"""The bill of materials of the packages, for the libraries of this interpreter."""

from __future__ import annotations

import json
import runpy
from importlib.metadata import distribution
from pathlib import Path

import attrs
import pytest

LIBRARIES = runpy.run_path(str(Path(__file__).parents[1] / "deploy/packages/libraries.py"))
SITE = Path(attrs.__file__).parents[1]


def test_each_library_is_listed_with_its_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1790000000")
    text = LIBRARIES["bill_of_materials"](SITE, {"attrs": "00" * 32}, "cert-ctrl", "0.1.0")
    bill = json.loads(text)
    assert (bill["bomFormat"], bill["specVersion"], bill["metadata"]["timestamp"]) == (
        "CycloneDX",
        "1.5",
        "2026-09-21T14:13:20Z",
    )
    found = {one["name"]: one for one in bill["components"]}
    assert found["attrs"]["purl"] == f"pkg:pypi/attrs@{distribution('attrs').version}"
    assert found["attrs"]["hashes"] == [{"alg": "SHA-256", "content": "00" * 32}]
    assert found["attrs"]["licenses"] == [{"expression": "MIT"}], "an SPDX expression is no name"
    unnamed = [name for name, one in found.items() if one["licenses"] == [{"license": {"name": ""}}]]
    assert {"trio", "cryptography", "httpx"} <= found.keys() - set(unnamed)
    assert text == LIBRARIES["bill_of_materials"](SITE, {"attrs": "00" * 32}, "cert-ctrl", "0.1.0"), "the same bytes"
