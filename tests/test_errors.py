"""Fixes of errors (``certctrl/errors.py``)."""

from __future__ import annotations

from certctrl.errors import install_extra


def test_a_missing_library_comes_with_a_package_where_the_program_did() -> None:
    assert install_extra("plane") == "pip install 'certctrl[plane]'"
    packaged = install_extra("plane-postgres", "/usr/lib/cert-ctrl/certctrl/errors.py")
    assert packaged == "install the package cert-ctrl-plane"
