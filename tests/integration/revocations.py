"""Checks of every recipe at a revocation: the key is nowhere, and the report about the service is true."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from fleet import USER, wait_for
from recipes import Trial

from certctrl.model.modes import has_key

REVOKED = "was revoked"
FROM_MEMORY = "removed; 127.0.0.1:{port} still serves it from memory"


@attrs.frozen(kw_only=True)
class Revocation:
    """A revoked certificate, and the agent's report."""

    trial: Trial
    leaf: x509.Certificate
    traces: tuple[bytes, ...]
    """Bytes that identify its key or certificate."""
    outcome: str
    why: str

    @property
    def left(self) -> set[str]:
        """The files of agent and service that still contain its key or certificate."""
        return {str(path) for path in holders(self.trial, self.traces)}

    @property
    def alerts(self) -> list[dict[str, object]]:
        """The alerts that the operator's command received."""
        return [json.loads(line) for line in alert_file(self.trial).read_text().splitlines()]


def alert_file(trial: Trial) -> Path:
    """Return the file to which the operator's command writes alerts."""
    return trial.recipe.place / "alerts"


def traces_of(trial: Trial) -> tuple[bytes, ...]:
    """Return bytes to search for: key and certificate in DER, and the middle line of each in PEM."""
    live = trial.agent.layout.live_link(trial.recipe.domain)
    key_pem, leaf_pem = ((live / name).read_bytes() for name in ("private.key", "certificate.pem"))
    key, leaf = load_pem_private_key(key_pem, None), x509.load_pem_x509_certificate(leaf_pem)
    lines = [pem.split(b"\n")[1:-2] for pem in (key_pem, leaf_pem)]
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return (der, leaf.public_bytes(Encoding.DER), *(body[len(body) // 2] for body in lines))


def holders(trial: Trial, traces: Sequence[bytes]) -> set[Path]:
    """Return the files that contain a trace, with the keystores opened.

    The agent may prune a generation meanwhile: walk again until nothing vanishes during the walk.
    """

    def walked() -> tuple[set[Path]] | None:
        try:
            return (found_below((trial.agent.layout.root, trial.recipe.place), trial, traces),)
        except FileNotFoundError:
            return None

    found = wait_for(walked, "a walk over files that stay")
    assert found is not None
    return found[0]


def found_below(roots: Sequence[Path], trial: Trial, traces: Sequence[bytes]) -> set[Path]:
    """Return the files that contain a trace. Raises FileNotFoundError if one vanishes during the walk."""

    def vanished(error: OSError) -> None:
        raise error

    found = set()
    for root in roots:
        for folder, _, names in os.walk(root, onerror=vanished):
            for path in (Path(folder) / name for name in names):
                if stat.S_ISREG(path.lstat().st_mode):
                    data = trial.revealed(path.read_bytes())
                    found |= {path} if any(trace in data for trace in traces) else set()
    return found


def published(trial: Trial) -> dict[Path, str]:
    """Return each path through which services read the certificate -> its virtual file."""
    layout, domain = trial.agent.layout, trial.recipe.domain
    found = {Path(layout.root / path): "" for path in layout.public_links(domain)}
    for item in trial.recipe.items():
        found |= {Path(to): source for source, to in zip(item.get("from", ()), item.get("to", ()), strict=True)}
    return found


@contextlib.contextmanager
def revoked(trial: Trial, how: str) -> Iterator[Revocation]:
    """Revoke a trial's certificate under a policy; afterwards renew it and wait until it is served."""
    leaf, traces, before = trial.shown(), traces_of(trial), holders(trial, traces_of(trial))
    secret = {path for path, source in published(trial).items() if has_key(source)}
    assert {trial.agent.layout.live_link(trial.recipe.domain).resolve() / "private.key", *secret} <= before
    line = f"[CRITICAL] [Alert] certificate {trial.cert_id} ({trial.recipe.domain}) {REVOKED}"
    said = trial.agent.daemon.text.count(line)
    alert_file(trial).unlink(missing_ok=True)
    alert_command = ["/bin/sh", "-c", f'cat "$CERTCTRL_ALERT" >> {alert_file(trial)}; echo >> {alert_file(trial)}']
    with trial.allowing(on_revoked=how, on_alert=alert_command):
        outcome, why = revoke(trial)
        reported = Revocation(trial=trial, leaf=leaf, traces=traces, outcome=outcome, why=why)
        print(f"{trial.recipe.name}, {how}: {outcome}: {why}")
        trial.wait_for(lambda: REVOKED in trial.agent.cli("status").stdout, "the status to show it")
        yield reported
        assert trial.agent.daemon.text.count(line) == said + 1
        (alert,) = reported.alerts
        assert (alert["alert"], alert["cert_id"], alert["done"]) == ("revoked", trial.cert_id, why)
        return_to_service(trial)


def revoke(trial: Trial) -> tuple[str, str]:
    """Revoke at the plane; return the first reported outcome and its detail."""
    operator = trial.plane.operator

    def reports() -> list[dict[str, str]]:
        rows = operator.outcomes(trial.agent.device_id)
        return [row for row in reversed(rows) if row["signal"]["type"] == "cert.revoked"]

    before = len(reports())
    operator.call("POST", f"/apiv1/users/{USER}/certificates/{trial.cert_id}/revoke", {"reason": "key lost"})
    trial.wait_for(lambda: len(reports()) > before, "the outcome of the revocation")
    first = reports()[before]
    return first["outcome"], first["detail"]


def return_to_service(trial: Trial) -> None:
    """Renew the revoked certificate, start the service if it does not run, and wait for a healthy status."""
    operator = trial.plane.operator
    time.sleep(1.1)  # a renewal within the second of the revocation does not show that the revocation is over
    operator.renew(trial.cert_id)
    serial = operator.serial(trial.cert_id)
    trial.wait_for(lambda: serial in trial.agent.serials().values(), "the files of the renewal")
    if not trial.service.running:
        trial.start()
    trial.apply()
    trial.wait_for(lambda: trial.stands(serial), f"{serial} to be deployed and served")
    trial.wait_for(lambda: REVOKED not in trial.agent.cli("status").stdout, "the status to be healthy again")


# --- the checks -----------------------------------------------------------------------------------------------------


def prove_placeholder(trial: Trial) -> None:
    """Revoke with ``placeholder``: it is served, even after a restart, and no trace of the revoked one is left."""
    with revoked(trial, "placeholder") as it:
        assert (it.outcome, it.why) == ("applied", "placeholder put in its place")
        for _ in ("as it runs", "restarted"):
            shown = trial.shown()
            names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert shown.subject == shown.issuer != it.leaf.issuer, "self-signed"
            assert trial.recipe.domain in names.get_values_for_type(x509.DNSName)
            assert public_half(shown) != public_half(it.leaf)
            assert it.left == set()
            assert trial.service.running
            trial.stop()
            trial.start()


def prove_removal(
    trial: Trial, *says: str, outcome: str = "failed", served: bool = True, starts: bool = False,
    loaded: Sequence[Path] = (),
) -> None:  # fmt: skip
    """Revoke with ``remove``: its files are gone, the service was not taken down, and what is said of it is true.

    ``served``: whether the service keeps showing the certificate from memory. ``starts``: whether it can be started
    without its files. ``loaded``: files that stand for the memory of the service.
    """
    with revoked(trial, "remove") as it:
        assert it.outcome == outcome
        for text in says:
            assert text.format(port=trial.recipe.port) in it.why, it.why
        assert it.left == set(map(str, loaded))
        assert [str(path) for path in published(trial) if os.path.lexists(path)] == []
        assert trial.service.running
        if served:
            assert trial.shown() == it.leaf
        else:
            with pytest.raises(ssl.SSLError):
                trial.shown()
        trial.stop()
        if starts:
            trial.start()
        else:
            assert trial.launch().wait(30) != 0


def public_half(certificate: x509.Certificate) -> bytes:
    """Return the public key of a certificate."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
