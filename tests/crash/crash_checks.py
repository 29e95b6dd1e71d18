"""Checks of a host after a crash: immediately, after recovery, and after the act has run again."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from crash_stage import Stage
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certctrl.store.disk.fs import RealFs
from certctrl.store.state.store import StateStore

KEY = b"PRIVATE KEY"
ANOTHER = "another"


def files_below(root: Path) -> Iterator[tuple[Path, os.stat_result, bytes]]:
    """Yield every regular file: path, facts, contents."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            facts = path.lstat()
            if stat.S_ISREG(facts.st_mode):
                yield path, facts, path.read_bytes()


def fingerprint(certificate: bytes) -> str:
    return x509.load_pem_x509_certificates(certificate)[0].fingerprint(hashes.SHA256()).hex()


def pair(certificate: bytes, key: bytes) -> str:
    """Check that key and certificate match, and return the certificate's fingerprint."""
    leaf = x509.load_pem_x509_certificates(certificate)[0]
    assert load_pem_private_key(key, None).public_key() == leaf.public_key(), "key and certificate do not match"
    return leaf.fingerprint(hashes.SHA256()).hex()


def live(stage: Stage, name: str) -> str | None:
    """Return the fingerprint of the live certificate, read through the public links; None without one."""
    if not stage.layout.live_link(name).is_symlink():
        return None
    found = pair(
        stage.layout.live_link(name).joinpath("fullchain.pem").read_bytes(),
        stage.layout.live_link(name).joinpath("private.key").read_bytes(),
    )
    links = stage.layout.public_links(name)
    seen = [link for link in links if link.is_symlink()]
    if len(seen) == len(links):
        certificate, key = seen[0], seen[1]
        assert pair(certificate.read_bytes(), key.read_bytes()) == found
    return found


def is_live(stage: Stage, name: str, wanted: str | None) -> bool:
    """Return whether the live certificate is as wanted: a fingerprint, None for none, ANOTHER for an unknown one."""
    found = live(stage, name)
    return found not in (None, *stage.facts["known"]) if wanted == ANOTHER else found == wanted


def at_once(stage: Stage) -> None:
    """Check the disk as the crash left it, before the product runs again."""
    nothing_is_open_to_others(stage)
    store = StateStore(stage.layout, RealFs())
    session, installed = store.session, store.installed
    loads = [
        session.load_cursor, session.load_inbox, session.load_outcomes, session.load_tokens, session.load_device_keys,
        session.load_device_id, installed.load_install_config, installed.load_certificates, installed.load_activations,
        installed.load_history, installed.load_pins, installed.load_cas, installed.load_retries,
    ]  # fmt: skip
    for load in loads:
        load()  # raises for a damaged file
    for name, allowed in stage.facts.get("names", {}).items():
        assert any(is_live(stage, name, one) for one in allowed), f"{name}: {live(stage, name)} is live"
    for path, (name, kind) in stage.facts.get("copies", {}).items():
        copy_is_whole(stage, Path(path), name, kind)
    if stage.facts.get("registered"):
        assert store.session.load_tokens() is not None, "the session is lost"
        assert store.session.load_device_keys() is not None, "the device key is lost"
    for path in (stage.out / "trust").glob("[!.]*"):
        fingerprint(path.read_bytes())  # raises for a damaged file
    cursor_is_not_ahead(stage, store)
    acked_is_done(stage)


def nothing_is_open_to_others(stage: Stage) -> None:
    secret = (stage.layout.state, stage.layout.keys)
    for path, facts, data in files_below(stage.world):
        ours = any(path.is_relative_to(one) for one in secret)
        if ours:
            assert not facts.st_mode & 0o077, f"{path} is readable by others: {facts.st_mode:o}"
        elif KEY in data:
            copied = str(path.parent) in {str(Path(one).parent) for one in stage.facts.get("copies", {})}
            wanted = 0o640 if copied else 0o600  # its temporary file as well: the mode is set before the rename
            assert not facts.st_mode & 0o777 & ~wanted, f"a key is readable by others: {path} {facts.st_mode:o}"


def copy_is_whole(stage: Stage, path: Path, name: str, kind: str) -> None:
    """Check that a file at an explicit destination equals that of a generation, or is missing.

    A revocation removes the generations before the copies; then a copy only has to be complete.
    """
    allowed = stage.facts["names"][name]
    if not path.exists():
        assert None in allowed, f"{path} is gone"
        return
    data = path.read_bytes()
    known = [one.read_bytes() for one in (stage.layout.generations / name).glob(f"*/{kind}")]
    if data not in known:
        assert not known or ANOTHER in allowed, f"{path} is in no generation: partial, or mixed"
        load_pem_private_key(data, None) if kind == "private.key" else fingerprint(data)


def is_unfinished(store: StateStore) -> bool:
    """Return whether a signal waits in the inbox, or as a retry."""
    retries, _ = store.installed.load_retries()
    return bool(store.session.load_inbox()) or any(retry.signal is not None for retry in retries)


def cursor_is_not_ahead(stage: Stage, store: StateStore) -> None:
    """Check that each signal before the cursor is unfinished on disk or has taken effect."""
    cursor, expected = store.session.load_cursor(), stage.facts.get("after", {})
    if not stage.facts.get("signals") or cursor is None or stage.plane.waiting(cursor):
        return
    if not is_unfinished(store):
        for name, wanted in expected.items():
            assert is_live(stage, name, wanted), "the cursor is after a signal that is neither on disk nor completed"


def acked_is_done(stage: Stage) -> None:
    """Check that outcomes reported to the plane are true."""
    done = [event for event in stage.plane.events if event.get("outcome") in ("applied", "unchanged")]
    if any(event["signal"]["type"] in ("cert.renewed", "cert.revoked") for event in done):
        for name, wanted in stage.facts["after"].items():
            assert is_live(stage, name, wanted), "reported as applied, but not live"


def spent_is_stored(stage: Stage) -> None:
    """Check that no refresh token was used whose successor is not on disk."""
    tokens = StateStore(stage.layout, RealFs()).session.load_tokens()
    assert tokens is not None and tokens.refresh_token not in stage.plane.spends, "used although there was no space"


def after_recovery(stage: Stage) -> None:
    """Check the disk after recovery: all pairs match, and nothing is left behind."""
    at_once(stage)
    copies = stage.facts.get("copies", {})
    there = {kind: Path(path) for path, (_, kind) in copies.items() if Path(path).exists()}
    withdrawn = None in stage.facts.get("after", {}).values()  # copies are removed one by one
    if there and not withdrawn:
        assert len(there) == len(copies), f"half a pair: {there}"
        pair(there["fullchain.pem"].read_bytes(), there["private.key"].read_bytes())
    if stage.facts.get("together"):
        switched = {name: is_live(stage, name, wanted) for name, wanted in stage.facts["after"].items()}
        assert len(set(switched.values())) == 1, f"a batch is switched in part: {switched}"
    nothing_is_left(stage)


def nothing_is_left(stage: Stage) -> None:
    """Check that there is no temporary file and no journal, and that keys are only where they belong."""
    for folder, folders, names in os.walk(stage.world):
        for name in (*folders, *names):
            stray = name.startswith((".tmp-", "alert-")) or (name.startswith(".") and name.endswith((".tmp", ".old")))
            assert not stray, f"left behind: {folder}/{name}"
    assert not list(stage.layout.journal.iterdir()), "an open journal"
    allowed = {str(path) for path in stage.facts.get("copies", {})}
    for path, _, data in files_below(stage.world):
        if KEY in data and str(path) not in allowed:
            assert path.is_relative_to(stage.layout.generations), f"a key at {path}"


def in_the_end(stage: Stage, *, signals: bool = True) -> None:
    """Check the disk after the act has run again without a fault: the host matches the plane."""
    after_recovery(stage)
    store, facts = StateStore(stage.layout, RealFs()), stage.facts
    assert store.session.load_tokens() is not None and store.session.load_device_keys() is not None
    for name, wanted in facts.get("after", {}).items():
        assert is_live(stage, name, wanted), f"{name}: {live(stage, name)} is live in the end"
        generations = {path.name for path in (stage.layout.generations / name).glob("*")}
        most = 1 + len(facts.get("kept", {}).get(name, [])) if wanted else 0
        assert len(generations) <= most, f"{name}: {len(generations)} generations"
        records = [record for record in store.installed.load_certificates().values() if record.name == name]
        assert [record.generation != "" for record in records] in ([wanted is not None], [] if not wanted else [True])
    for path, (name, kind) in facts.get("copies", {}).items():
        if facts["after"][name] is None:
            assert not Path(path).exists(), f"{path} remains after its certificate"
        else:
            assert Path(path).read_bytes() == (stage.layout.live_link(name) / kind).read_bytes()
            assert Path(path).stat().st_mode & 0o7777 == 0o640
    if facts.get("trusted"):
        assert len([fingerprint(path.read_bytes()) for path in (stage.out / "trust").iterdir()]) == facts["trusted"]
    if facts.get("reloaded"):
        assert (stage.out / "reloaded").exists(), "switched but never reloaded"
    if signals and facts.get("signals"):
        assert not is_unfinished(store) and not store.session.load_outcomes()[0]
        cursor = store.session.load_cursor()
        assert cursor is not None and not stage.plane.waiting(cursor)


def picture(stage: Stage) -> dict[str, Any]:
    """Return everything that a service sees, to compare it."""
    return {str(path): sha256(data).hexdigest() for path, _, data in files_below(stage.out)}
