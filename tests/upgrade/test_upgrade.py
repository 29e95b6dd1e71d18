"""An agent of this version continues on the disk of an earlier one that was killed in the middle of its work."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12
from simulation.authority import leaf_facts, public_half
from simulation.disk import file_in, names_in
from simulation.network import NOTIFY_PATH, NetworkFault
from simulation.world import COPIES, DEVICE, USER
from upgrade.old_host import (
    BROKEN,
    COPIED,
    HELD,
    KEYSTORE,
    POISON,
    REVOKED,
    TOLERATED,
    UNPROVEN,
    WAITING,
    WILD,
    WINDOW_OPENS,
    OldHost,
    facts,
    files,
    resume,
    write_real,
)

from certctrl.model.signals import identity
from certctrl.protocol.wire.signals import signal_from_wire

LISTS = "/apiv1/devices/self/certificates"
FRESH = (KEYSTORE, COPIED, WAITING)
"""Certificates whose signal had arrived and was not handled yet."""
QUARANTINED = (BROKEN, UNPROVEN, POISON)
"""Certificates whose signal had failed too often."""


def certificate(cert_id: int) -> dict[str, Any]:
    """Return what the earlier release said of a certificate."""
    return next(row for row in facts()["status"]["certificates"] if row["cert_id"] == cert_id)


def entry(cert_id: int) -> dict[str, Any]:
    """Return the waiting signal of a certificate."""
    return next(one for one in facts()["inbox"] if one["identity"].startswith(f"cert.renewed|cert_id={cert_id}|"))


# --- the command line ---------------------------------------------------------------------------------------------


def printed(root: Path, command: str) -> Any:
    argv = [sys.executable, "-m", "certctrl", "-c", str(root), command, "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return json.loads(done.stdout.replace(str(root), "{ROOT}"))


def test_status_and_list_certs_show_the_same_before_the_first_start(tmp_path: Path) -> None:
    root = tmp_path / "etc"
    write_real(root)
    status = printed(root, "status")
    assert {key: status[key] for key in facts()["status"]} == facts()["status"]
    listed = printed(root, "list-certs")
    shown = [{key: row[key] for key in certificate(row["cert_id"])} for row in listed]
    assert shown == facts()["status"]["certificates"]


def test_the_data_has_the_modes_and_links_of_a_host(tmp_path: Path) -> None:
    root = tmp_path / "etc"
    write_real(root)
    for path in (root / "state").rglob("*"):
        assert stat.S_IMODE(path.lstat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert (root / "certs/copied.example.key").resolve().parent.parent.name == "copied.example"
    assert (root / "certs/.live/copied.example").is_symlink()


# --- recovery -----------------------------------------------------------------------------------------------------


def test_recovery_finishes_the_renames_and_the_service_is_reloaded_after_it(tmp_path: Path) -> None:
    pair = pair_of_the_journal(tmp_path / "etc")

    async def scenario(host: OldHost) -> None:
        await trio.sleep(60)
        assert {kind: file_in(host.recovered, f"{COPIES}/{COPIED}.{kind}") for kind in pair} == pair
        assert not names_in(host.recovered, host.scene.world.layout.journal)
        assert not [name for name in names_in(host.recovered, COPIES) if name.startswith(".")]
        new = host.scene.plane.certificates.page(DEVICE, 0, 100)[COPIED - 1]["fingerprint_sha256"]
        fingerprint, public = leaf_facts(host.read(f"{COPIES}/{COPIED}.pem"))
        assert (fingerprint, public) == (new, public_half(host.read(f"{COPIES}/{COPIED}.key")))
        assert host.scene.world.services.known[COPIED].served == new

    resume(tmp_path / "etc", scenario)


def pair_of_the_journal(root: Path) -> dict[str, bytes]:
    """Return the pair that was being written: its certificate is in place, its key is not yet."""
    kept = files(root)
    journal = next(entry["data"] for path, entry in kept.items() if "/journal/" in path and entry["kind"] == "file")
    plan, armed = map(json.loads, journal.splitlines())
    assert armed["armed"]
    names = {Path(one["path"]).suffix[1:]: one for one in plan["plan"]}
    assert f"{COPIES}/{names['pem']['temp']}" not in kept, "killed after the first rename"
    old = kept[f"{COPIES}/{names['pem']['backup']}"]["data"]
    pair = {"pem": kept[f"{COPIES}/{COPIED}.pem"]["data"], "key": kept[f"{COPIES}/{names['key']['temp']}"]["data"]}
    assert old != pair["pem"] and kept[f"{COPIES}/{COPIED}.key"]["data"] != pair["key"], "and before the second"
    return pair


# --- what waited ------------------------------------------------------------------------------------------------


def test_a_fresh_signal_is_handled_and_reported(tmp_path: Path) -> None:
    async def scenario(host: OldHost) -> None:
        await host.scene.until(lambda: not host.scene.agent.inbox.acks_pending, 900)
        await trio.sleep(330)
        outcomes = {identity(signal_from_wire(row["signal"])): row["outcome"] for row in reported(host)}
        for cert_id in FRESH:
            assert outcomes[entry(cert_id)["identity"]] in ("applied", "unchanged"), cert_id
        for cert_id in (KEYSTORE, WAITING):
            record = host.scene.record(cert_id)
            assert record.staged and record.facts.serial == certificate(cert_id)["serial"], "staged for the window"

    resume(tmp_path / "etc", scenario)


def reported(host: OldHost) -> list[dict[str, Any]]:
    """Return the outcomes that the plane has."""
    found: list[dict[str, Any]] = host.scene.plane.reports.outcomes(DEVICE)
    return found


def test_outcomes_that_were_not_reported_are_reported_once(tmp_path: Path) -> None:
    async def scenario(host: OldHost) -> None:
        await trio.sleep(3600)
        sent = [event for _, one in host.requests if one.path == NOTIFY_PATH for event in one.json["events"]]
        assert len(facts()["acks"]) == 3
        for event in facts()["acks"]:
            assert sent.count(json.loads(json.dumps(event).replace("{ROOT}", str(tmp_path / "etc")))) == 1

    resume(tmp_path / "etc", scenario)


def test_a_failed_command_is_retried_at_its_time(tmp_path: Path) -> None:
    due = certificate(TOLERATED)["next_try_at"]

    async def scenario(host: OldHost) -> None:
        assert host.now < due - 2000
        await host.sleep_until(due - 5)
        assert TOLERATED not in {cert_id for _, cert_id in host.reloads}, "before its time"
        stuck = next(one for one in (await host.status())["stuck"] if "tolerated.example" in one["item"])
        assert (stuck["attempts"], stuck["next_try_at"]) == (certificate(TOLERATED)["attempts"], due)
        assert stuck["reason"] == certificate(TOLERATED)["last_error"]
        await host.sleep_until(due + 60)
        assert [cert_id for _, cert_id in host.reloads].count(TOLERATED) == 1
        status = await host.status()
        assert "tolerated.example" not in str(status["stuck"])
        assert host.scene.world.services.known[TOLERATED].served == certificate(TOLERATED)["fingerprint_sha256"]

    resume(tmp_path / "etc", scenario)


def test_a_command_that_fails_again_keeps_its_count_and_its_longest_pause(tmp_path: Path) -> None:
    due, attempts = certificate(TOLERATED)["next_try_at"], certificate(TOLERATED)["attempts"]

    async def scenario(host: OldHost) -> None:
        await host.sleep_until(due + 60)
        stuck = next(one for one in (await host.status())["stuck"] if "tolerated.example" in one["item"])
        assert stuck["attempts"] == attempts + 1
        assert due + 3600 <= stuck["next_try_at"] <= due + 3600 + 60
        await host.sleep_until(stuck["next_try_at"] + 60)
        assert [cert_id for _, cert_id in host.reloads].count(TOLERATED) == 2

    resume(tmp_path / "etc", scenario, failing=[TOLERATED])


def test_failed_signals_keep_their_times_when_the_host_cannot_be_compared_with_the_plane(tmp_path: Path) -> None:
    due = entry(WILD)["next_try_at"]

    async def scenario(host: OldHost) -> None:
        assert host.now < due - 30
        await host.sleep_until(due - 1)
        assert not host.fetched(WILD), "before its time"
        await host.sleep_until(due + 30)
        assert len(host.fetched(WILD)) == 1
        await trio.sleep(3600)
        for cert_id in QUARANTINED:
            assert entry(cert_id)["next_try_at"] > host.now + 86_400
            assert not host.fetched(cert_id), "in quarantine"
        status = await host.status()
        assert sorted(one["ref"]["cert_id"] for one in status["quarantined"]) == sorted(QUARANTINED)
        for one in status["quarantined"]:
            was = next(row for row in facts()["status"]["quarantined"] if row["ref"] == one["ref"])
            assert (one["attempts"], one["reason"]) == (was["attempts"], was["reason"])

    resume(tmp_path / "etc", scenario, faults=[NetworkFault(kind="status", status=503, path=LISTS)])


@pytest.mark.parametrize("changes", [1, 2, 3, 5, 8, 13, 16, 18, 20, 21, 22, 24, 34, 55, 89])
def test_a_power_cut_during_the_first_start_loses_nothing(tmp_path: Path, changes: int) -> None:
    due, attempts = certificate(TOLERATED)["next_try_at"], certificate(TOLERATED)["attempts"]

    async def scenario(host: OldHost) -> None:
        await host.sleep_until(due - 5)
        assert host.scene.host.crashes == 1 and host.scene.host.starts == 2
        status = await host.status()
        stuck = next(one for one in status["stuck"] if "tolerated.example" in one["item"])
        assert (stuck["attempts"], stuck["next_try_at"]) == (attempts, due)
        assert not host.scene.agent.inbox.acks_pending
        outcomes = {identity(signal_from_wire(row["signal"])) for row in reported(host)}
        assert {entry(cert_id)["identity"] for cert_id in FRESH} <= outcomes
        assert {identity(signal_from_wire(event["signal"])) for event in facts()["acks"]} <= outcomes
        await host.sleep_until(due + 60)
        assert "tolerated.example" not in str((await host.status())["stuck"])

    resume(tmp_path / "etc", scenario, power_cut=changes)


def test_a_new_signal_ends_a_quarantine(tmp_path: Path) -> None:
    async def scenario(host: OldHost) -> None:
        host.scene.world.issuer.bad = False
        await host.scene.plane.certificates.renew(USER, POISON)
        await host.scene.until(lambda: host.scene.live(POISON), 900)
        assert "poison1.example" not in str((await host.status())["quarantined"])

    resume(tmp_path / "etc", scenario)


def test_what_is_staged_is_switched_in_the_window_except_what_is_held(tmp_path: Path) -> None:
    waiting = (KEYSTORE, BROKEN, WAITING, WILD, UNPROVEN)

    async def scenario(host: OldHost) -> None:
        await host.sleep_until(WINDOW_OPENS - 10)
        rows = {row["id"]: row["serial_number"] for row in host.scene.plane.certificates.page(DEVICE, 0, 100)}
        for cert_id in (KEYSTORE, BROKEN, WAITING, WILD):
            assert host.scene.record(cert_id).facts.serial == certificate(cert_id)["serial"] != rows[cert_id]
        await host.sleep_until(WINDOW_OPENS + 600)
        for cert_id in waiting:
            assert host.scene.record(cert_id).facts.serial == rows[cert_id]
        held = host.scene.record(HELD)
        assert held.held and held.staged
        assert (held.generation, held.facts.serial) == (certificate(HELD)["generation"], certificate(HELD)["serial"])
        await host.scene.ask("release", domain="held.example")
        assert host.scene.record(HELD).facts.serial == rows[HELD]

    resume(tmp_path / "etc", scenario)


# --- what is remembered -----------------------------------------------------------------------------------------


def test_nothing_that_was_known_is_forgotten(tmp_path: Path) -> None:
    kept = files(tmp_path / "etc")

    async def scenario(host: OldHost) -> None:
        layout = host.scene.world.layout
        await host.sleep_until(WINDOW_OPENS + 600)
        for path in (layout.device_id, layout.device_secret_key, layout.device_public_key, layout.refresh_token):
            assert host.read(path) == kept[str(path)]["data"], path
        assert host.scene.host.starts == 1
        assert not [one for _, one in host.requests if "register" in one.path]
        assert sorted(host.state("cas.json")["cas"]) == facts()["cas"]
        pins = host.read(layout.pins).decode().replace(str(layout.root), "{ROOT}")
        assert json.loads(pins)["pins"] == facts()["pins"]
        assert host.state("install_config.json")["config"]["high_water"] == facts()["high_water"]
        assert set(facts()["activations"]) <= set(host.state("activations.json")["activations"])
        history = layout.history
        assert host.read(history).startswith(kept[str(history)]["data"])
        assert set(facts()["done"]) <= set(host.state("pending_acks.json")["done"])
        assert str(REVOKED) in host.state("certificates.json")["certificates"]

    resume(tmp_path / "etc", scenario)


def test_a_keystore_keeps_its_password(tmp_path: Path) -> None:
    password = files(tmp_path / "etc")[str(tmp_path / "etc/state/passwords/keystore.example.pfx")]["data"]

    async def scenario(host: OldHost) -> None:
        before = load_pkcs12(host.read(f"{COPIES}/{KEYSTORE}.pfx"), password).cert
        await host.sleep_until(WINDOW_OPENS + 600)
        after = load_pkcs12(host.read(f"{COPIES}/{KEYSTORE}.pfx"), password).cert
        assert before is not None and after is not None
        assert before.certificate.serial_number != after.certificate.serial_number

    resume(tmp_path / "etc", scenario)


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_install_config_is_refused(tmp_path: Path, version: int) -> None:
    async def scenario(host: OldHost) -> None:
        await trio.sleep(60)
        assert facts()["high_water"] == {"1": 3}
        host.scene.plane.database.run("UPDATE install_configs SET version = ?, installs_hash_b64 = 'x'", version)
        await host.scene.operators.ask_for_resync()
        await trio.sleep(900)
        stored = host.state("install_config.json")["config"]
        assert stored["version"] == 3 and stored["high_water"] == {"1": 3}
        assert "install config" in str((await host.status())["problems"]).lower()

    resume(tmp_path / "etc", scenario)
