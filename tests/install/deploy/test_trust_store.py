"""CAs are imported into and removed from the system trust store, and nothing else changes there."""

from __future__ import annotations

import errno
import hashlib
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from bundle_maker import Issuer, Maker
from bundle_maker import pem as pem_of
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from install_host import Host
from trio.testing import MockClock

from certctrl.errors import DiskError, MaterialError
from certctrl.install.deploy.trust_store import checked_ca
from certctrl.install.plan.inputs import RED_HAT
from certctrl.install.plan.render import plan_lines
from certctrl.model.plan import CopyAction, ExecAction, ImportCaAction, ObjectType, OutcomeKind
from certctrl.model.policy import NamedCommand, TrustStore

UPDATE = ("/bin/true", "update")
APPLIED, UNCHANGED, FAILED = OutcomeKind.APPLIED, OutcomeKind.UNCHANGED, OutcomeKind.FAILED


@pytest.fixture
def store(host: Host) -> Path:
    directory = host.root / "trust"
    directory.mkdir(mode=0o755)
    host.allow(trust_store=TrustStore(directory=str(directory), command=UPDATE))
    return Path(directory)


@pytest.fixture
def pem(maker: Maker) -> str:
    return str(maker.issuer.chain_pem)


async def test_a_ca_is_imported_and_removed(clock: MockClock, host: Host, store: Path, pem: str) -> None:
    assert (await host.installer.import_ca(3, "Private CA", pem)).kind is APPLIED
    (file,) = store.iterdir()
    assert (file.suffix, file.read_text()) == (".crt", pem)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert host.proc.calls == [UPDATE]
    record = host.installer._context.state.load_cas()["3"]
    assert (record.path, record.sha256) == (str(file), hashlib.sha256(pem.encode()).hexdigest())
    host.start()
    assert (await host.installer.import_ca(3, "Private CA", pem)).kind is UNCHANGED
    assert host.proc.calls == [UPDATE]
    assert (await host.installer.remove_ca(3)).kind is APPLIED
    assert list(store.iterdir()) == [] and host.proc.calls == [UPDATE, UPDATE]
    assert (await host.installer.remove_ca(3)).kind is UNCHANGED
    assert host.installer._context.state.load_cas() == {}
    came, went = host.installer._context.state.load_history()
    assert (came["name"], came["outcome"], came["from"]) == ("CA Private CA", "applied", "")
    assert came["to"] == record.sha256[:32]
    assert (went["from"], went["to"], went["targets"]) == (record.sha256[:32], "", [str(file)])
    assert came["fingerprint_sha256"] == went["fingerprint_sha256"] == record.fingerprint_sha256


async def test_a_refusing_store_is_restored(
    clock: MockClock, host: Host, store: Path, pem: str, make_issuer: type[Issuer]
) -> None:
    host.proc.does[UPDATE] = lambda: 1
    outcome = await host.installer.import_ca(3, "Private CA", pem)
    assert outcome.kind is FAILED and "exited with 1" in outcome.detail
    assert list(store.iterdir()) == []
    assert host.proc.calls == [UPDATE, UPDATE], "once more, so that store and file agree"
    host.proc.does.clear()
    await host.installer.import_ca(3, "Private CA", pem)
    host.proc.does[UPDATE] = lambda: 1
    newer = make_issuer("other", make_issuer("root")).chain_pem
    assert (await host.installer.import_ca(3, "Private CA", newer)).kind is FAILED
    (file,) = store.iterdir()
    assert file.read_text() == pem
    assert list(host.layout.journal.iterdir()) == []
    reported = host.installer._context.state.load_history()
    assert [entry["outcome"] for entry in reported] == ["failed", "applied", "failed"]
    assert "exited with 1" in reported[-1]["detail"] and reported[-1]["from"] == reported[1]["to"]


async def test_a_changed_file_is_not_removed(clock: MockClock, host: Host, store: Path, pem: str) -> None:
    await host.installer.import_ca(3, "Private CA", pem)
    (file,) = store.iterdir()
    file.write_text("the operator's own")
    outcome = await host.installer.remove_ca(3)
    assert outcome.kind is APPLIED and "is not the file that was put there" in outcome.detail
    assert file.read_text() == "the operator's own"


async def test_a_file_that_cannot_be_read_is_not_forgotten(
    clock: MockClock, host: Host, store: Path, pem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.installer.import_ca(3, "Private CA", pem)

    def broken(path: object, at: object = None) -> Any:
        raise DiskError("Input/output error", path=str(path), errno=errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr(host.installer._context.fs, "open_file", broken, raising=False)
        for _ in range(2):
            assert (await host.installer.remove_ca(3)).kind is FAILED
    assert (await host.installer.remove_ca(3)).kind is APPLIED
    assert list(store.iterdir()) == [] and host.proc.calls == [UPDATE, UPDATE]


async def test_a_removal_that_the_store_missed_is_repeated(clock: MockClock, host: Host, store: Path, pem: str) -> None:
    await host.installer.import_ca(3, "Private CA", pem)
    host.proc.does[UPDATE] = lambda: 1
    assert (await host.installer.remove_ca(3)).kind is FAILED
    assert list(store.iterdir()) == []
    host.proc.does.clear()
    assert (await host.installer.remove_ca(3)).kind is APPLIED
    assert host.proc.calls == [UPDATE] * 3


async def test_a_changed_file_is_restored(clock: MockClock, host: Host, store: Path, pem: str) -> None:
    await host.installer.import_ca(3, "Private CA", pem)
    (file,) = store.iterdir()
    file.unlink()
    assert (await host.installer.import_ca(3, "Private CA", pem)).kind is APPLIED
    assert file.read_text() == pem


async def test_names_from_the_plane_stay_inside_the_directory(
    clock: MockClock, host: Host, store: Path, pem: str
) -> None:
    await host.installer.import_ca(3, "../../etc/cron.d/x\n", pem)
    (file,) = store.iterdir()
    assert file.name.startswith("certctrl-") and file.name.endswith("-3.crt")


async def test_without_a_trust_store_an_import_is_refused_with_the_policy_line(
    clock: MockClock, host: Host, pem: str
) -> None:
    outcome = await host.installer.import_ca(3, "Private CA", pem)
    assert outcome.kind is FAILED
    assert '"trust_store": {"directory": "/usr/local/share/ca-certificates"' in outcome.detail


async def test_the_policy_line_fits_the_systems_trust_store(
    clock: MockClock, host: Host, pem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchors = host.root / "anchors"
    anchors.mkdir()
    monkeypatch.setattr("certctrl.install.deploy.observe.RED_HAT", attrs.evolve(RED_HAT, directory=str(anchors)))
    assert (
        f'{{"directory": "{anchors}", "command": ["/usr/bin/update-ca-trust"]}}'
        in (await host.installer.import_ca(3, "Private CA", pem)).detail
    )
    (refusal,) = (await host.installer.plan([ImportCaAction(id="ca", ob_type=ObjectType.CA, ob_id=3)])).refusals
    assert refusal.value["directory"] == str(anchors)


async def test_copy_items_get_a_ca_with_or_without_a_trust_store(clock: MockClock, host: Host, pem: str) -> None:
    target = host.out / "ca.pem"
    reload = ("/bin/true", "reload")
    items = [
        CopyAction(id="c", ob_type=ObjectType.CA, ob_id=3, sources=("ca.pem",), targets=(str(target),)),
        ExecAction(id="r", cmd_argv=reload, depends_on=("c",)),
    ]
    host.allow(commands={"r": NamedCommand(argv=reload)})
    assert (await host.installer.converge_all(items)).kind is UNCHANGED, "it waits for the CA"
    assert (await host.installer.import_ca(3, "Private CA", pem, items)).kind is APPLIED
    assert target.read_text() == pem
    assert host.proc.calls == [reload]
    assert (await host.installer.converge_all(items)).kind is UNCHANGED


async def test_an_import_item_adds_a_known_ca_to_a_store_named_later(clock: MockClock, host: Host, pem: str) -> None:
    items = [ImportCaAction(id="i", ob_id=3)]
    await host.installer.import_ca(3, "Private CA", pem)
    directory = host.root / "trust"
    directory.mkdir()
    host.allow(trust_store=TrustStore(directory=str(directory)))
    assert [step.kind for step in plan_lines(await host.installer.plan(items))] == ["import_ca"]
    assert (await host.installer.converge_all(items)).kind is APPLIED
    assert [path.read_text() for path in directory.iterdir()] == [pem]
    assert (await host.installer.converge_all(items)).kind is UNCHANGED


def test_only_a_fit_ca_is_accepted(maker: Maker, make_issuer: type[Issuer], now: float) -> None:
    clean, fingerprint, ends = checked_ca(f"text\n{maker.issuer.chain_pem}", now)
    assert clean == maker.issuer.chain_pem and len(fingerprint) == 64 and ends > now
    weak = make_issuer("weak", key=rsa.generate_private_key(65537, 1024))
    leaf = maker.materials().certificate_pem
    for pem, reason in [
        ("", "ca-unreadable"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "ca-unreadable"),
        (maker.issuer.chain_pem * 2, "ca-unreadable"),
        (leaf, "ca-unfit"),
        (weak.chain_pem, "ca-unfit"),
    ]:
        with pytest.raises(MaterialError) as caught:
            checked_ca(pem, now)
        assert caught.value.reason == reason
    with pytest.raises(MaterialError, match="expired"):
        checked_ca(maker.issuer.chain_pem, ends)
    brainpool = make_issuer("b", key=ec.generate_private_key(ec.BrainpoolP256R1())).certificate
    with pytest.raises(MaterialError, match="curve brainpoolP256r1, which this host's policy does not allow") as caught:
        checked_ca(pem_of(brainpool), now)
    assert caught.value.reason == "ca-unfit"
    assert checked_ca(pem_of(brainpool), now, brainpool=True)[0] == pem_of(brainpool)


@pytest.mark.integration
def test_debians_command_accepts_the_file(
    need: Callable[[str], str], tmp_path: Path, maker: Maker, make_issuer: type[Issuer]
) -> None:
    command = need("update-ca-certificates")
    local, bundle = tmp_path / "local", tmp_path / "etc"
    local.mkdir()
    bundle.mkdir()
    (tmp_path / "ca.conf").write_text("")
    (local / "another.crt").write_text(make_issuer("another").chain_pem)
    (local / "certctrl-private-3.crt").write_text(maker.issuer.chain_pem)
    run = [
        command, "--localcertsdir", str(local), "--etccertsdir", str(bundle), "--certsconf", str(tmp_path / "ca.conf"),
        "--hooksdir", str(tmp_path / "none"), "--certsdir", str(tmp_path / "none"),
    ]  # fmt: skip
    subprocess.run(run, check=True, capture_output=True)
    assert maker.issuer.chain_pem.strip() in (bundle / "ca-certificates.crt").read_text()
    (local / "certctrl-private-3.crt").unlink()
    subprocess.run([*run, "--fresh"], check=True, capture_output=True)
    assert maker.issuer.chain_pem.strip() not in (bundle / "ca-certificates.crt").read_text()
    assert [path.name for path in bundle.iterdir() if "certctrl" in path.name] == []
