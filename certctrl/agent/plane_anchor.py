"""Take over a new CA of the control plane, which it announces over a connection that the old one verified.

    new CA stored durably → both trusted → a connection that only the new one verifies → old one replaced

The new CA is stored in the state directory (`net/tls.py`), in place of ``plane-ca.pem``, which `init --ca` wrote. Other
files in ``ca_files``, and the system's trust store, belong to the operator.
"""

from __future__ import annotations

import hashlib
import logging
import re
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from certctrl.agent.log_lines import Line, log_line
from certctrl.errors import CertctrlError, DiskError
from certctrl.model.config import AgentConfig
from certctrl.net.http import Http
from certctrl.net.tls import PlaneCa
from certctrl.store.disk.atomic import read_bytes, remove_file, write_atomic
from certctrl.store.disk.fs import Fs
from certctrl.store.layout import ConfigDir

PROVE_SECONDS = 10.0
MAX_ANCHORS = 100
"""Most fingerprints in one request."""
_MAX_BYTES = 1024 * 1024
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class PlaneAnchor:
    """The CAs by which this agent verifies the control plane. Methods raise no error; failures are logged."""

    def __init__(
        self,
        layout: ConfigDir,
        config: AgentConfig,
        fs: Fs,
        connect: Callable[[AgentConfig], Http],
        offload: Callable[..., Awaitable[Any]],
    ) -> None:
        """``connect`` makes a client of the plane for another configuration; ``offload`` runs disk work."""
        self._layout = layout
        self._files = PlaneCa.below(layout.root)
        self._config = config
        self._fs = fs
        self._connect = connect
        self._offload = offload
        self._log = logging.getLogger("certctrl.Token")
        self._last_refusal = ""
        """The reason logged last, which is not repeated."""

    async def trusted(self) -> tuple[str, ...]:
        """Return the SHA-256 fingerprints of the CA certificates that are trusted now."""
        found: tuple[str, ...] = await self._offload(self._trusted)
        return found[:MAX_ANCHORS]

    async def take(self, pem: str | None) -> None:
        """Trust the CA that the plane has announced, durably; None: it announced none."""
        if pem is not None:
            await self._offload(self._take, pem)

    async def prove(self) -> None:
        """Replace the old CA by the new one if a connection verified by the new one alone succeeds."""
        if not await self._offload(self._is_waiting):
            return
        settings = attrs.evolve(self._config.httpclient, ca_files=(str(self._layout.next_plane_ca),))
        try:
            http = self._connect(attrs.evolve(self._config, httpclient=settings))
            try:
                await http.request("GET", "/health", deadline=PROVE_SECONDS, cap=_MAX_BYTES)
            finally:
                with trio.move_on_after(2, shield=True):
                    await http.aclose()
        except CertctrlError:
            return  # not switched yet, or not reachable: both stay
        await self._offload(self._replace)

    def _trusted(self) -> tuple[str, ...]:
        paths: list[Path | None] = [self._layout.root / name for name in self._config.httpclient.ca_files]
        if self._layout.plane_ca in paths:
            used, added = self._files.in_use()
            paths = [used if path == self._layout.plane_ca else path for path in paths] + [added]
        found = [one for path in paths if path is not None for one in self._fingerprints(path)]
        return tuple(dict.fromkeys(found))

    def _take(self, pem: str) -> None:
        der = only_ca(pem)
        new = "" if der is None else hashlib.sha256(der).hexdigest()
        if der is None:
            self._report_refusal("it is not one CA certificate in PEM")
        elif new in self._trusted():
            self._last_refusal = ""
        elif self._layout.plane_ca.name not in self._config.httpclient.ca_files:
            if self._config.httpclient.ca_files:  # the system's trust store: a public CA in front of the plane
                self._report_refusal(
                    f"ca_files does not name {self._layout.plane_ca.name}; add the plane's ca.pem to a file of it"
                )
        else:
            try:
                write_atomic(self._fs, self._layout.next_plane_ca, self._files.stamp() + pem.encode("ascii"))
            except DiskError as error:
                self._report_refusal(str(error))
            else:
                log_line(self._log, Line.PLANE_ANCHOR_STORED, sha256=new)

    def _is_waiting(self) -> bool:
        config = self._config
        named = self._layout.plane_ca.name in config.httpclient.ca_files
        if not named or not config.application.server_url.startswith("https:"):  # without TLS nothing is verified
            return False
        return self._files.in_use()[1] is not None

    def _replace(self) -> None:
        try:
            pem = read_bytes(self._fs, self._layout.next_plane_ca, _MAX_BYTES)
            if pem is not None:
                write_atomic(self._fs, self._layout.taken_plane_ca, pem)
                remove_file(self._fs, self._layout.next_plane_ca)
                log_line(self._log, Line.PLANE_ANCHOR_REPLACED, sha256=", ".join(fingerprints(pem)))
        except DiskError as error:
            self._report_refusal(str(error))

    def _fingerprints(self, path: Path) -> tuple[str, ...]:
        with suppress(DiskError):
            return fingerprints(read_bytes(self._fs, path, _MAX_BYTES) or b"")
        return ()

    def _report_refusal(self, why: str) -> None:
        if why != self._last_refusal:
            self._last_refusal = why
            log_line(self._log, Line.PLANE_ANCHOR_REFUSED, why=why)


def fingerprints(pem: bytes) -> tuple[str, ...]:
    """Return the SHA-256, in hex, of each certificate in a PEM text."""
    return tuple(hashlib.sha256(der).hexdigest() for der in _certificates(pem))


def only_ca(pem: str) -> bytes | None:
    """Return the DER of the only certificate in a PEM text; None if it is not one CA certificate."""
    found = _certificates(pem.encode("ascii", "replace"))
    return found[0] if pem.isascii() and len(found) == 1 and _is_ca(pem) else None


def _certificates(pem: bytes) -> list[bytes]:
    found = []
    for block in _BLOCK.findall(pem):
        with suppress(ValueError):
            found.append(ssl.PEM_cert_to_DER_cert(block.decode("ascii", "replace")))
    return found


def _is_ca(pem: str) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with suppress(ssl.SSLError, ValueError):
        context.load_verify_locations(cadata=pem)
        return context.cert_store_stats() == {"x509": 1, "crl": 0, "x509_ca": 1}
    return False
