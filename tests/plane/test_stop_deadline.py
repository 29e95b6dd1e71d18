"""The stop deadline ends the process even if its output is closed or not read."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import time
from certctrl.plane import stop_deadline
stop_deadline.STOP_SECONDS = 0.1
stop_deadline._SAY_SECONDS = 0.3
{before}
stop_deadline.end_in_time()
time.sleep(60)
"""
STUCK = """
import fcntl, logging, os, sys
reading, writing = os.pipe()
fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
os.write(writing, bytes(4096))  # never read
logging.basicConfig(stream=os.fdopen(writing, "w"))
"""
BEFORE = {
    "nothing": "",
    "no standard streams": "import sys; sys.stdout = sys.stderr = None  # as with >&- 2>&-",
    "closed streams": "import sys; sys.stdout.close(); sys.stderr.close()",
    "a log that nobody reads": STUCK,
}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_the_process_ends_in_time(before: str) -> None:
    argv = [sys.executable, "-c", SCRIPT.format(before=before)]
    assert subprocess.run(argv, timeout=20, capture_output=True, check=False).returncode == 0
