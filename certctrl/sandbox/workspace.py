"""The sandbox's directory: the agent's config directory, its policy, and its install config."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from certctrl.errors import UsageError
from certctrl.model.policy import AcmeAnswers, HostPolicy, NamedCommand, Retirement
from certctrl.sandbox.servers import HOST, Server
from certctrl.store.config.files import init_config_dir, save_policy
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir

AGENT_SETTINGS: Mapping[str, Any] = {
    "name": "sandbox",
    "poll_mode": "long-poll",
    "first_poll_spread_seconds": 0,  # a single host need not spread its polls
}
LOG_SETTINGS: Mapping[str, Any] = {"level": "INFO", "stderr": False, "file": "agent.log"}


@contextlib.contextmanager
def sandbox_directory(wanted: Path | None) -> Iterator[Path]:
    """Create the directory: a temporary one, removed at the end, or the given one, which is kept.

    Raises UsageError if the given one is not empty: an earlier run is never continued.
    """
    if wanted is None:
        temporary = Path(tempfile.mkdtemp(prefix="cert-ctrl-sandbox-"))
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return
    root = wanted.absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(f"--dir {wanted}: exists and is not empty", fix="name a new or empty directory")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    yield root


def stage_agent(root: Path, *, url: str, ca_pem: bytes, name: str = "agent", short_lives: bool = False) -> ConfigDir:
    """Create ``root/name`` as `cert-ctrl init` would, with long polls.

    ``short_lives``: the plane renews at half of a life, so the agent must not warn then.
    """
    layout, fs = ConfigDir(root / name), RealFs()
    init_config_dir(fs, layout, server_url=url, ca_pem=ca_pem)
    _merge(layout.application, {**AGENT_SETTINGS, **({"expiry_warn_days": 0} if short_lives else {})})
    _merge(layout.log_config, LOG_SETTINGS)
    return layout


def allow_service(layout: ConfigDir, server: Server, *, http01_port: int | None = None) -> None:
    """Write the host's policy: the service's two commands by exact argv, one directory, and where to answer http-01."""
    published = server.folder / "published"
    published.mkdir(mode=0o700)
    policy = HostPolicy(
        write_roots=(str(published),),
        commands={
            "check": NamedCommand(argv=server.check_argv),
            "reload": NamedCommand(argv=server.reload_argv),
        },
        acme=AcmeAnswers(http01_listen=None if http01_port is None else f"{HOST}:{http01_port}"),
        # nginx does not start without its files; the built-in service drops the name.
        on_revoked=Retirement.PLACEHOLDER if server.kind == "nginx" else Retirement.REMOVE,
    )
    save_policy(RealFs(), layout, policy)


def install_items(server: Server, certificates: Mapping[int, str]) -> Sequence[dict[str, Any]]:
    """Return the items: per certificate a check of the staged files and a probe of the endpoint; one reload for all.

    The service reads certificate and key from the agent's ``certs/``; only the certificate is copied.
    """
    copies = [
        {
            "id": f"publish {name}",
            "type": "copy",
            "ob_type": "cert",
            "ob_id": cert_id,
            "from": ["certificate.pem"],
            "to": [str(server.folder / "published" / f"{name}.pem")],
            "check": list(server.check_argv),
            "verify": {"type": "tls", "host": HOST, "port": server.port, "server_name": name},
        }
        for cert_id, name in certificates.items()
    ]
    reload = {
        "id": "reload",
        "type": "exec",
        "cmd_argv": list(server.reload_argv),
        "depends_on": [copy["id"] for copy in copies],
    }
    return [*copies, reload]


def _merge(path: Path, settings: Mapping[str, Any]) -> None:
    text = json.loads(path.read_text(encoding="utf-8")) | settings
    path.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
