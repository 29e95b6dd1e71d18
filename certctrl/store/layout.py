"""Paths and modes of the config directory, ``-c`` (spec, "Configuration Directory Structure")."""

from __future__ import annotations

from pathlib import Path

from certctrl.model.paths import NEXT_PLANE_CA, PLANE_CA, STATE_DIR

DIR_MODE = 0o700
SECRET_MODE = 0o600
ALIAS = "+"
"""First character of links in ``certs/.live`` that lead to another name there; no certificate's name begins with it."""
OWN_MARK = "+"
"""Separates name and id of a certificate that is not the first one with its name; `safe_name` never returns it."""
PUBLIC_MODE = 0o644
_PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.+?="
"""Characters of plain names."""
CA_FILE_PREFIX = "certctrl-"
"""Prefix of the names of CA files in the system trust store; they end with ``-ID.crt``."""


class ConfigDir:
    """The paths of one agent's config directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.application = root / "application.json"
        self.httpclient = root / "httpclient_config.json"
        self.ioc = root / "ioc_config.json"
        self.log_config = root / "log_config.json"
        self.policy = root / "policy.json"
        self.local_installs = root / "installs.local.json"
        self.plane_ca = root / PLANE_CA

        self.state = root / STATE_DIR
        self.access_token = self.state / "access_token.txt"
        self.refresh_token = self.state / "refresh_token.txt"
        self.device_id = self.state / "device_id.txt"
        self.known_plane = self.state / "plane.json"
        self.recommended = self.state / "recommended.json"
        self.taken_plane_ca = self.state / PLANE_CA
        self.next_plane_ca = self.state / NEXT_PLANE_CA
        self.next_device_id = self.state / "device_id.next"
        self.last_cursor = self.state / "last_cursor.txt"
        self.last_poll_time = self.state / "last_poll_time.txt"
        self.pending_acks = self.state / "pending_acks.json"
        self.inbox = self.state / "inbox.json"
        self.install_config = self.state / "install_config.json"
        self.certificates = self.state / "certificates.json"
        self.retries = self.state / "retries.json"
        self.activations = self.state / "activations.json"
        self.status = self.state / "status.json"
        self.history = self.state / "history.jsonl"
        self.passwords = self.state / "passwords"
        self.pins = self.state / "pins.json"
        self.cas = self.state / "cas.json"
        self.challenges = self.state / "challenges.json"
        self.certificate_list = self.state / "certificate_list.txt"
        self.plane_features = self.state / "plane_features.json"
        self.move = self.state / "move.txt"
        self.journal = self.state / "journal"
        self.daemon_lock = self.state / "daemon.lock"
        self.token_lock = self.state / "token.lock"
        self.control_socket = self.state / "agent.sock"

        self.keys = root / "keys"
        self.device_public_key = self.keys / "dev_pk.bin"
        self.device_secret_key = self.keys / "dev_sk.bin"
        self.next_secret_key = self.keys / "dev_sk.next"
        self.rotated_secret_key = self.keys / "dev_sk.rotated"
        self.account_keys = self.keys / "account_keys"
        self.staged_keys = self.keys / "staged"

        self.certs = root / "certs"
        self.chains = self.certs / "chains"
        self.live = self.certs / ".live"
        self.generations = self.certs / ".generations"

        self.logs = root / "logs"

    def directories(self) -> tuple[Path, ...]:
        """Return all directories, parents first; each has mode 0700."""
        return (
            self.root,
            self.state,
            self.journal,
            self.passwords,
            self.keys,
            self.account_keys,
            self.staged_keys,
            self.certs,
            self.chains,
            self.live,
            self.generations,
            self.logs,
        )

    def live_link(self, name: str) -> Path:
        """Return ``certs/.live/<name>``, the link whose replacement commits a generation."""
        return self.live / name

    def generation(self, name: str, generation_id: str) -> Path:
        """Return the directory of one generation; its contents never change."""
        return self.generations / name / generation_id

    def public_links(self, name: str, *, alias: bool = False) -> dict[Path, str]:
        """Return the spec's link paths with their relative targets, all through ``.live``, or its ``alias`` of the name."""
        via = f".live/{ALIAS}{name}" if alias else f".live/{name}"
        return {
            self.certs / f"{name}.crt": f"{via}/fullchain.pem",
            self.certs / f"{name}.key": f"{via}/private.key",
            self.chains / f"{name}.pem": f"../{via}/chain.pem",
        }

    def public_paths(self, name: str) -> tuple[str, ...]:
        """Return the spec's link paths as text, in the order of `public_links`."""
        return f"{self.certs}/{name}.crt", f"{self.certs}/{name}.key", f"{self.chains}/{name}.pem"


def is_plain_name(text: str) -> bool:
    """Return whether the agent could have given this name to a certificate, a generation or one of its files.

    Names from files become parts of paths only after this check. ``?`` and ``=`` are for the alias of a keystore.
    """
    return 0 < len(text) <= 224 and text[0] not in ".-+" and not text.strip(_PLAIN)


def safe_name(domain: str) -> str:
    """Return a directory-safe name for a primary domain: ``*.example.com`` → ``_wildcard.example.com``.

    Lower-case letters, digits, ``-``, ``_`` and inner dots are kept; other characters become ``_`` and their hex code.
    """
    text = domain.strip().rstrip(".").lower()
    if text.startswith("*."):
        text = "_wildcard." + text[2:]
    safe = "".join(c if (c.isascii() and c.isalnum()) or c in "-_." else f"_{ord(c):x}" for c in text)
    safe = "_" + safe if not safe or safe[0] in ".-" or safe == "chains" else safe
    if len(safe) > 200:  # a file name has at most 255 bytes: long names differ by their hash
        import hashlib  # here: every command imports this module, few need it

        safe = f"{safe[:160]}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return safe
