"""Make the model disk importable by name: tests are no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if "modeldisk" not in sys.modules:
    spec = importlib.util.spec_from_file_location("modeldisk", Path(__file__).parent.parent / "modeldisk.py")
    assert spec is not None and spec.loader is not None
    sys.modules["modeldisk"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["modeldisk"])
