"""Start-up time: what the fast commands import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import certctrl

HEAVY = (
    "attrs", "cattrs", "cryptography", "h11", "httpcore", "httpx", "jwt", "logging", "nacl", "prometheus_client",
    "pydantic", "starlette", "trio", "trio_util", "typer",
)  # fmt: skip
LOADED = """
import sys
sys.argv = ["cert-ctrl", *sys.argv[1:]]
from certctrl.__main__ import main
status = 0
try:
    status = main() or 0
except SystemExit as end:
    status = end.code or 0
print("loaded:", *sorted(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
raise SystemExit(status)
"""


def loaded_by(*argv: str) -> tuple[int, str, list[str]]:
    """Run `cert-ctrl` in a fresh interpreter; return exit status, standard output and the heavy modules it imported."""
    code = LOADED.format(heavy=(*HEAVY, "rich"))
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60, check=False)
    last = done.stderr.splitlines()[-1] if done.stderr else ""
    assert last.startswith("loaded:"), done.stderr
    return done.returncode, done.stdout, last.split()[1:]


def test_version_imports_nothing_heavy() -> None:
    status, out, loaded = loaded_by("--version")
    assert (status, loaded) == (0, [])
    assert certctrl.__version__ in out


def test_help_imports_nothing_heavy() -> None:
    status, out, loaded = loaded_by("--help")
    assert status == 0
    assert "status" in out
    assert not set(loaded) & (set(HEAVY) - {"typer"})


@pytest.mark.parametrize("command", ["status", "list-certs"])
def test_status_and_list_certs_import_nothing_heavy(command: str, tmp_path: Path) -> None:
    from certctrl.store.config.files import init_config_dir
    from certctrl.store.disk.fs import RealFs
    from certctrl.store.layout import ConfigDir

    root = tmp_path / "agent"
    init_config_dir(RealFs(), ConfigDir(root), server_url="https://plane.example", ca_pem=None)
    _, _, loaded = loaded_by("-c", str(root), command)
    assert not loaded, "not even rich: standard output is not a terminal here"


def test_the_daemon_imports_neither_challenges_nor_makers_of_keys_nor_of_copies() -> None:
    """Many hosts have none of them, and what an idle daemon needs of memory has a limit (tests/bench/idle.py)."""
    names = ["agent.challenges", "net.challenge_listener", "net.tls_alpn", "install.material.key_request"]
    names += ["store.deployments.file_set", "store.deployments.journal", "store.disk.safe_path"]
    code = f"import certctrl.agent.run, sys; print(*sorted({{'certctrl.' + n for n in {names}}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "\n"


REFUSED = """
import httpcore, sys, trio
from certctrl.net.connections import KeptConnections, Progress
import certctrl.net.transport

async def refused():
    kept = KeptConnections(context=None, keepalive_seconds=1.0)
    try:
        await kept.exchange(httpcore.Request("GET", "http://127.0.0.1:1/"), None, Progress())
    except httpcore.ConnectError:
        print("refused", *sorted({"httpx", "encodings.idna"} & sys.modules.keys()))

trio.run(refused)
"""


def test_a_connection_needs_neither_the_client_for_acme_nor_tables_of_international_names() -> None:
    """They would take a quarter of what an idle daemon may need of memory."""
    done = subprocess.run([sys.executable, "-c", REFUSED], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "refused\n"
