"""Material for the bench: a server certificate, and N certificates in several versions, sealed to one device.

Each burst needs a new version: an agent does not write a generation again that it still has.
"""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import jwt
from nacl.public import PrivateKey

from certctrl.model.records import DeviceKeys, Tokens
from certctrl.plane.ca import sealing, x509
from certctrl.store.config.files import init_config_dir
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

DAY = 86_400.0
RSA_KEYS = 8
"""Number of RSA keys shared by all RSA certificates, because making them is slow."""


@attrs.frozen
class Material:
    """The material that `tiny_plane.py` serves, and the device that can open it."""

    directory: Path
    count: int
    device: DeviceKeys = attrs.field(repr=False)
    ca_pem: bytes

    def name(self, cert_id: int) -> str:
        """Return the domain of a certificate."""
        return f"h{cert_id:04}.bench.test"

    def wire(self, cert_id: int, version: int) -> bytes:
        """Return the plane's answer with one version."""
        return json.dumps({"data": self._text(cert_id, version)["materials"]}).encode()

    def serial(self, cert_id: int, version: int) -> str:
        """Return one version's serial in plain hex."""
        return str(self._text(cert_id, version)["summary"]["serial_number"]).replace(":", "").lstrip("0")

    def _text(self, cert_id: int, version: int) -> dict[str, Any]:
        return dict(json.loads((self.directory / f"{cert_id}.{version}.json").read_text()))


def make_material(directory: Path, *, count: int, versions: int, key_type: str = "ecdsa-p256") -> Material:
    """Write ``count`` certificates in some versions, from 1 on, with the server's own certificate, below ``directory``."""
    directory.mkdir(parents=True)
    now = time.time()
    life: dict[str, Any] = {"not_before": now - DAY, "not_after": now + 365 * DAY}
    root = x509.new_root("bench root", **life)
    intermediate = x509.new_intermediate(root, "bench intermediate", **life)
    server_key = x509.new_key("ecdsa-p256")
    server = x509.sign_leaf(intermediate, server_key.public_key(), ["127.0.0.1", "localhost"], **life)
    (directory / "server.pem").write_text(x509.pem_of(server) + intermediate.pem)
    (directory / "server.key").write_bytes(x509.key_pem(server_key))
    (directory / "ca.pem").write_text(root.pem)
    box = PrivateKey.generate()
    device = DeviceKeys(public=bytes(box.public_key), secret=bytes(box))
    (directory / "device.key").write_bytes(device.secret)
    pool = [x509.new_key(key_type) for _ in range(RSA_KEYS)] if key_type.startswith("rsa") else []
    made = Material(directory, count, device, root.pem.encode())
    for cert_id in range(1, count + 1):
        for version in range(1, versions + 1):
            key = pool[(cert_id + version) % RSA_KEYS] if pool else x509.new_key(key_type)
            began = now - DAY / 2 + version
            text = _one(cert_id, made.name(cert_id), key, intermediate, began, device.public)
            (directory / f"{cert_id}.{version}.json").write_text(json.dumps(text))
    names = {cert_id: made.name(cert_id) for cert_id in range(1, count + 1)}
    (directory / "names.json").write_text(json.dumps({"names": names, "versions": versions}))
    return made


def _one(
    cert_id: int, name: str, key: Any, issuer: x509.Authority, began: float, public: bytes
) -> dict[str, dict[str, Any]]:
    names = [name, f"www.{name}", f"api.{name}"]
    leaf = x509.sign_leaf(issuer, key.public_key(), names, not_before=began, not_after=began + 47 * DAY)
    pem, serial = x509.pem_of(leaf), x509.serial_text(leaf)
    sealed = sealing.seal_private_key(x509.key_der(key), public)
    summary = {
        "id": cert_id, "domain_name": name, "sans": names, "serial_number": serial,
        "fingerprint_sha256": x509.fingerprint(leaf), "not_before": _text(began), "not_after": _text(began + 47 * DAY),
        "status": "active", "updated_at": _text(began), "certificate_pem": pem, "chain_pem": issuer.pem,
    }  # fmt: skip
    materials = {**sealed, "certificate_pem": pem, "chain_pem": issuer.pem, "serial_number": serial}
    return {"summary": summary, "materials": materials}


def _text(moment: float) -> str:
    return datetime.fromtimestamp(int(moment), UTC).isoformat()


def make_agent(
    root: Path, material: Material, *, url: str, features: frozenset[str] = frozenset(), **settings: Any
) -> ConfigDir:
    """Make a registered agent's config directory for the device of ``material``; ``features`` are those of its plane."""
    layout, fs = ConfigDir(root), RealFs()
    init_config_dir(fs, layout, server_url=url, ca_pem=material.ca_pem)
    application = json.loads(layout.application.read_text()) | {"first_poll_spread_seconds": 0} | settings
    layout.application.write_text(json.dumps(application))
    layout.log_config.write_text(json.dumps({"stderr": False, "file": "agent.log"}))
    store = StateStore(layout, fs)
    store.session.save_device_id("00000000-0000-4000-8000-000000000000")
    store.session.save_device_keys(material.device)
    store.session.save_tokens(Tokens(access_token=long_token(), refresh_token="rt_bench", features=features))
    return layout


def long_token() -> str:
    """Return an access token that outlives the bench, signed with a random key."""
    now = int(time.time())
    claims = {"sub": "1", "device_id": "1", "iat": now, "exp": now + 86_400}
    return jwt.encode(claims, base64.b64encode(bytes(range(48))).decode(), algorithm="HS256")
