"""`cert-ctrl plane …` in this process, against a plane in another one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from ssl import create_default_context
from typing import Any

import attrs
from proving import answered


@attrs.frozen
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The JSON output of a command that succeeded."""
        return json.loads(self.output)

    @property
    def output(self) -> str:
        """The output of a command that succeeded."""
        assert self.status == 0, self.err
        return self.out


Cli = Callable[..., Result]
"""``cli("plane", …)`` runs a command."""


@attrs.define
class PlaneSite:
    """A plane in a separate process, and the commands that operate it."""

    data: Path
    url: str
    cli: Cli

    def __call__(self, *argv: str) -> Result:
        return self.cli("plane", *argv, "--data", str(self.data))

    def register(self, body: dict[str, Any]) -> Any:
        """Register a device."""
        path = "/apiv1/device/registration"
        return self.post(path, answered(body, self.post(path, body)))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a request to the plane, and return the data of its answer."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        context = create_default_context(cafile=str(self.data / "ca.pem"))
        with urllib.request.urlopen(request, context=context, timeout=10) as reply:
            return json.loads(reply.read())["data"]


@contextmanager
def served_plane(data: Path, **environ: str) -> Iterator[str]:
    """Run ``plane serve`` for the block and yield its URL; it must end with status 0."""
    argv = [sys.executable, "-m", "certctrl", "plane", "serve", "--data", str(data), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | environ
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
