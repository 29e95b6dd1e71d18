"""What a command is told in its environment: paths, never secrets (safety.md §4.4)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from certctrl.errors import DiskError
from certctrl.install.deploy.context import Context
from certctrl.install.material.formats import SALTED_FILES
from certctrl.install.plan.values import DesiredCert
from certctrl.store.disk.atomic import read_bytes

_FILES = {
    "private.key": "CERTCTRL_KEY_FILE",
    "certificate.pem": "CERTCTRL_CERTIFICATE_FILE",
    "chain.pem": "CERTCTRL_CHAIN_FILE",
    "fullchain.pem": "CERTCTRL_FULLCHAIN_FILE",
    "bundle.pfx": "CERTCTRL_PFX_FILE",
    "bundle.jks": "CERTCTRL_JKS_FILE",
}
MOST_NAMES = 100
MOST_KEYS = 20
"""Certificates of one command whose keys are known to whoever redacts its output, line by line."""
_KEY_LIMIT = 64 * 1024
_SHORTEST_LINE = 16


def environment(context: Context, certs: Sequence[DesiredCert]) -> tuple[dict[str, str], tuple[bytes, ...]]:
    """Return the ``CERTCTRL_*`` variables for a command about some certificates, and the secrets to redact.

    For one certificate its files are named, keystore passwords by the file they are in. Blocks on the disk.
    """
    layout = context.layout
    told = {"CERTCTRL_CONFIG_DIR": str(layout.root), "CERTCTRL_LIVE_DIR": str(layout.live)}
    here = [cert for cert in certs if cert.generation]
    told["CERTCTRL_NAMES"] = ",".join(cert.name for cert in here[:MOST_NAMES])
    if len(here) != 1:
        return told, tuple(line for cert in here[:MOST_KEYS] for line in _key_lines(context, layout.live / cert.name))
    cert = here[0]
    more, secrets = files_of(context, cert.name, layout.live / cert.name, cert.files)
    return told | more, secrets


def files_of(
    context: Context, name: str, directory: Path, files: Collection[str]
) -> tuple[dict[str, str], tuple[bytes, ...]]:
    """Return the variables that name the files of one certificate in a directory, and its secrets."""
    told, secrets = {"CERTCTRL_NAME": name}, list(_key_lines(context, directory)) if "private.key" in files else []
    for file, variable in _FILES.items():
        if file in files:
            told[variable] = str(directory / file)
    for file, kind in SALTED_FILES.items():
        if file in files:
            password, path = context.state.password(name, kind)
            secrets.append(password)
            told[f"CERTCTRL_{kind.upper()}_PASSWORD_FILE"] = str(path)
    return told, tuple(secrets)


def _key_lines(context: Context, directory: Path) -> tuple[bytes, ...]:
    """Return the lines of a key's PEM text: a command may print one without the lines around it."""
    try:
        data = read_bytes(context.fs, directory / "private.key", _KEY_LIMIT) or b""
    except DiskError:
        return ()  # the command cannot read it either
    return tuple(line for line in data.splitlines() if len(line) >= _SHORTEST_LINE and not line.startswith(b"-----"))
