"""Make the shared modules of these tests importable by name: tests are no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).parent

for name, path in {"modeldisk": HERE.parent / "modeldisk.py", "crash_protocols": HERE / "crash_protocols.py"}.items():
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
