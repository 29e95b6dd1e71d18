"""The processes of the sandbox (``certctrl/sandbox/servers.py``)."""

from __future__ import annotations

import subprocess
import sys

import certctrl

CODE = """
import subprocess, sys
sys.path += {path!r}
from certctrl.sandbox.servers import module_argv
sys.exit(subprocess.run(module_argv("certctrl", "--version")).returncode)
"""


def test_a_module_runs_with_the_libraries_of_its_parent() -> None:
    """Found with a package, whose program adds its libraries to the path of a bare interpreter."""
    argv = [sys.executable, "-I", "-S", "-c", CODE.format(path=sys.path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd="/", check=False)
    assert (done.returncode, done.stdout) == (0, f"cert-ctrl {certctrl.__version__}\n"), done.stderr
