"""The example scripts for `on_alert`: what they send, and that docs/alerts.md describes what the agent sends."""

from __future__ import annotations

import json
import os
import re
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from certctrl.agent.alert_watch import Kind
from certctrl.agent.alerts import ENDED, EXPIRY, REVOKED, UNASSIGNED
from certctrl.agent.standing import MASS, UNKNOWN

ROOT = Path(__file__).parents[1]
ALERTS = ROOT / "deploy" / "alerts"
PAGE = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
EXAMPLE = json.loads(PAGE.partition("```json\n")[2].partition("```")[0])


@contextmanager
def served(server: socketserver.BaseServer) -> Iterator[str]:
    """Serve in a thread; yield HOST:PORT."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield "{}:{}".format(*server.server_address[:2])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run(script: str, alert: dict[str, Any], tmp_path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "alert.json"
    path.write_text(json.dumps(alert))
    return subprocess.run(
        [sys.executable, ALERTS / script, *args], env={**os.environ, "CERTCTRL_ALERT": str(path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


class MailServer(socketserver.StreamRequestHandler):
    """A mail server for one mail."""

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        for line in self.rfile:
            verb = line[:4].upper().strip()
            if verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                mail = iter(self.rfile.readline, b".\r\n")
                self.server.mails.append(b"".join(mail).decode())  # type: ignore[attr-defined]
            self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")
            if verb == b"QUIT":
                return


class Hook(BaseHTTPRequestHandler):
    """A webhook."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, json.loads(body)))  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.integration
def test_an_alert_is_mailed(tmp_path: Path) -> None:
    server = socketserver.TCPServer(("127.0.0.1", 0), MailServer)
    server.mails = []  # type: ignore[attr-defined]
    with served(server) as address:
        done = run("alert-mail", EXAMPLE, tmp_path, "root@example.com", address)
    assert done.returncode == 0, done.stderr
    (mail,) = server.mails  # type: ignore[attr-defined]
    assert "To: root@example.com" in mail and "failing www.example.com" in mail
    text = mail.replace("=\r\n", "")
    assert EXAMPLE["what"][:60] in text and "What to do: remove the cause" in text and "attempts: 3" in text
    assert run("alert-mail", EXAMPLE, tmp_path, "root@example.com", address).returncode != 0, "nobody listens"


@pytest.mark.integration
def test_an_alert_is_posted(tmp_path: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), Hook)
    server.posts, server.status = [], 200  # type: ignore[attr-defined]
    url = tmp_path / "url"
    with served(server) as address:
        url.write_text(f"http://{address}/services/T0/B0/secret\n")
        alert = EXAMPLE | {"what": "it says <!channel> & more"}
        assert run("alert-webhook", alert, tmp_path, str(url)).returncode == 0
        assert run("alert-webhook", EXAMPLE, tmp_path, str(url), "json").returncode == 0
        server.status = 500  # type: ignore[attr-defined]
        assert run("alert-webhook", EXAMPLE, tmp_path, str(url)).returncode != 0, "so that the agent logs it"
    (path, slack), (_, plain), _ = server.posts  # type: ignore[attr-defined]
    assert path == "/services/T0/B0/secret"
    assert list(slack) == ["text"] and "it says &lt;!channel&gt; &amp; more" in slack["text"]
    assert plain.items() >= EXAMPLE.items() and plain["host"]


def test_the_page_lists_every_kind_and_key() -> None:
    kinds = re.findall(r"^\| `([\w-]+)` \| (?:a|it|the|polling|another|more|`cert)", PAGE, re.MULTILINE)
    assert sorted(kinds) == sorted([*Kind, *EXPIRY, REVOKED, UNASSIGNED, MASS, UNKNOWN, "breaker", ENDED])
    keys = re.findall(
        r"`(\w+)`", "\n".join(re.findall(r"^\| (`[\w`, ]+`) \| (?:string|number|list)", PAGE, re.MULTILINE))
    )
    assert EXAMPLE.keys() <= set(keys)
    for script in ALERTS.iterdir():
        assert "deploy/alerts/*" in PAGE and f"/usr/local/lib/cert-ctrl/{script.name}" in PAGE
        assert script.stat().st_mode & 0o111
