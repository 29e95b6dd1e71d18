"""Which certificate has which name in ``certs/``: by the certificates that are here, never by the order of events."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from install_host import APPLIED, Host, ScriptedFs, leftovers
from trio.testing import MockClock

from certctrl.agent.operations import record_for
from certctrl.install.deploy.names import own_name, plain_name, public_names
from certctrl.install.plan.dependencies import bind
from certctrl.install.plan.values import DesiredCert
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import CopyAction
from certctrl.model.records import Standing
from certctrl.store.disk.fs import Fs
from certctrl.store.state.installed import InstalledState


async def deliver(host: Host, cert_id: int, domain: str = "www.example") -> str:
    """Deploy fresh material for a certificate; return its fingerprint."""
    bundle = host.bundle(cert_id, domain)
    prepared = await host.installer.stage(bundle, ())
    assert (await host.installer.converge([prepared], ()))[cert_id].kind is APPLIED
    return bundle.facts.fingerprint_sha256


def found_at(host: Host, name: str) -> str:
    """Return the fingerprint under a public name, after checking key and chain; empty: there is nothing."""
    certs = host.layout.certs
    if not (certs / f"{name}.crt").exists():
        assert not (certs / f"{name}.key").exists()
        return ""
    pem = (certs / f"{name}.crt").read_bytes()
    leaf = x509.load_pem_x509_certificates(pem)[0]
    key = load_pem_private_key((certs / f"{name}.key").read_bytes(), None)
    assert key.public_key() == leaf.public_key(), "key and certificate do not match"
    assert pem.endswith((host.layout.chains / f"{name}.pem").read_bytes())
    return leaf.fingerprint(hashes.SHA256()).hex()


@pytest.mark.parametrize("order", [*itertools.permutations((3, 5, 7))])
async def test_certificates_for_one_domain_have_the_same_names_on_every_host(
    clock: MockClock, host: Host, order: tuple[int, ...]
) -> None:
    made = {cert_id: await deliver(host, cert_id) for cert_id in order}
    for again in range(2):
        assert found_at(host, "www.example") == made[3]
        assert [found_at(host, f"www.example+{n}") for n in (5, 7)] == [made[5], made[7]]
        for cert_id, name in ((3, "www.example"), (5, "www.example+5"), (7, "www.example+7")):
            assert str(host.layout.certs / f"{name}.key") in host.installer.records[cert_id].targets
            assert record_for(host.installer.records.values(), name).cert_id == cert_id
        if not again:  # renewed, in another order, and started again
            made = {cert_id: await deliver(host, cert_id) for cert_id in reversed(order)}
            host.start()
            await host.installer.recover()
    for gone, next_one in ((3, 5), (5, 7)):
        await host.installer.withdraw(gone, revoked=False, items=())
        assert found_at(host, "www.example") == made[next_one]
    assert found_at(host, "www.example+7") == made[7], "what a service may read stays"
    await host.installer.withdraw(7, revoked=False, items=())
    assert [path for path in host.layout.certs.rglob("*") if path.is_symlink()] == []
    assert await deliver(host, 9) == found_at(host, "www.example")


@pytest.mark.parametrize("order", [*itertools.permutations(((1, "db"), (3, "db"), (7, "db-3")))])
async def test_a_name_with_an_id_is_no_name_of_a_domain(
    clock: MockClock, host: Host, order: tuple[tuple[int, str], ...]
) -> None:
    made = {cert_id: await deliver(host, cert_id, domain) for cert_id, domain in order}
    assert [found_at(host, name) for name in ("db", "db+3", "db-3")] == [made[1], made[3], made[7]]
    assert len({record.name for record in host.installer.records.values()}) == 3
    await deliver(host, 3, "db")
    assert found_at(host, "db-3") == made[7]


@pytest.mark.parametrize("order", [(1, 5), (5, 1)])
async def test_a_name_passes_to_the_successor_in_one_instant(
    clock: MockClock, host: Host, order: tuple[int, int]
) -> None:
    """After each change of the disk, the name leads to a whole pair of one of the two."""
    seen: list[str] = []
    real = host.fs

    class Watched:
        def __getattr__(self, verb: str) -> Callable[..., Any]:
            call = getattr(real, verb)

            def watched(*args: object, **how: object) -> Any:
                result = call(*args, **how)
                if verb in ("rename", "unlink", "symlink", "rmdir"):
                    seen.append(found_at(host, "www.example"))
                return result

            return watched

    made = {order[0]: await deliver(host, order[0])}
    host.fs = cast(Fs, Watched())
    host.start()
    made[order[1]] = await deliver(host, order[1])
    await host.installer.withdraw(1, revoked=False, items=())
    assert [one for one, _ in itertools.groupby(seen)] == [made[n] for n in ((1, 5) if order[0] == 1 else (5, 1, 5))]


@pytest.mark.parametrize("verb", ["symlink", "rename", "unlink", "fsync", "syncfs", "readlink"])
async def test_a_passing_that_fails_is_finished_later(clock: MockClock, host: Host, verb: str) -> None:
    for nth in range(1, 80):
        root = host.root / f"{verb}{nth}"
        root.mkdir()
        one = Host(root=root, maker=host.maker, policy=host.policy)
        made = {5: await deliver(one, 5), 1: await deliver(one, 1)}
        assert found_at(one, "www.example") == made[1]
        failing = ScriptedFs(one.fs, verb, nth)
        one.fs = cast(Fs, failing)
        one.start()
        first = await one.installer.withdraw(1, revoked=False, items=())
        one.fs = failing.fs
        one.start()
        await one.installer.recover()
        await one.installer.withdraw(1, revoked=False, items=())
        assert found_at(one, "www.example") == made[5], f"{nth}: {first.detail}"
        assert leftovers(one) == []
        if failing.counts.get(verb, 0) < nth:
            return
    pytest.fail("it never ended")


async def test_a_name_that_an_earlier_release_lost_is_found_again(clock: MockClock, host: Host) -> None:
    """There the second certificate of a domain was ``www.example-5``, and when the first was removed, so was the name."""
    made = await deliver(host, 5, "www.example-5")
    record = host.installer.records[5]
    old = attrs.evolve(record, facts=attrs.evolve(record.facts, domains=("www.example",)))
    InstalledState(host.layout, host.fs).save_certificates({5: old})
    await host.start().recover()
    assert [found_at(host, name) for name in ("www.example", "www.example-5")] == [made, made]


async def test_two_certificates_in_one_directory_are_distinguished(clock: MockClock, host: Host) -> None:
    """An earlier release gave certificate 3 of ``db`` the directory of the domain ``db-3``."""
    first = await deliver(host, 7, "db-3")
    record = host.installer.records[7]
    collided = attrs.evolve(
        record, generation="0" * 32, activated="0" * 32, facts=attrs.evolve(record.facts, cert_id=3, domains=("db",))
    )
    InstalledState(host.layout, host.fs).save_certificates({3: collided, 7: record})
    await host.start().recover()
    assert not host.installer.records[3].generation, "it is fetched again"
    second = await deliver(host, 3, "db")
    assert [found_at(host, name) for name in ("db-3", "db")] == [first, second]


async def test_the_successor_of_a_revoked_certificate_has_its_name(clock: MockClock, host: Host) -> None:
    host.allow(on_revoked="placeholder")
    await deliver(host, 1)
    made = await deliver(host, 5)
    assert (await host.installer.withdraw(1, revoked=True, items=())).ok
    assert found_at(host, "www.example") == made
    assert found_at(host, "www.example+1") not in ("", made)
    renewed = await deliver(host, 1)
    assert [found_at(host, name) for name in ("www.example", "www.example+5")] == [renewed, made]


@pytest.mark.parametrize("standing", [Standing.UNASSIGNED, Standing.FOREIGN])
async def test_a_certificate_of_another_plane_or_on_its_way_out_comes_last(
    clock: MockClock, host: Host, standing: Standing
) -> None:
    old = await deliver(host, 1)
    await host.installer.update([attrs.evolve(host.installer.records[1], standing=standing)])
    assert found_at(host, "www.example") == old, "until another one is here"
    new = await deliver(host, 5)
    assert [found_at(host, name) for name in ("www.example", "www.example+1")] == [new, old]


def test_an_item_that_names_twins_means_the_first() -> None:
    item = CopyAction(id="c", ob_name="www", sources=("chain.pem",), targets=("/x/y",))
    twins = [
        DesiredCert(facts=CertFacts(cert_id=n, name=f"www+{n}", domains=("www",)), generation="g") for n in (5, 3, 7)
    ]
    for some in itertools.permutations(twins):
        certs = {cert.cert_id: cert for cert in some}
        assert bind([item], certs, {})["c"].certs == (3,)
        assert bind([item], certs | {3: attrs.evolve(certs[3], outgoing=True)}, {})["c"].certs == (5,)
        assert bind([item], certs | {3: attrs.evolve(certs[3], generation="")}, {})["c"].certs == (5,)


def test_plain_names() -> None:
    facts = CertFacts(cert_id=5, name="", domains=("www.example",))
    names = {"www.example": "www.example", "www.example+5": "www.example", "www.example-5": "www.example",
             "www.example+6": "www.example+6", "other-5": "other-5", "renamed": "renamed"}  # fmt: skip
    assert {name: plain_name(attrs.evolve(facts, name=name)) for name in names} == names
    assert public_names([]) == {}
    assert own_name("a", 3) == "a+3"


async def test_directories(clock: MockClock, host: Host) -> None:
    name_for = host.installer.name_for
    assert [name_for(6, ()), name_for(6, ("",)), name_for(8, ("certificate-6",))] == [
        "certificate+6", "certificate+6", "certificate-6",
    ]  # fmt: skip


def spoil(link: Path, what: str) -> None:
    link.unlink()
    if what == "a file":
        link.write_text("x")
    elif what == "another link":
        link.symlink_to("nowhere")


@pytest.mark.parametrize("what", ["removed", "a file", "another link"])
@pytest.mark.parametrize("file", ["www.example.crt", "www.example+5.key", "chains/www.example.pem"])
async def test_public_names_that_were_removed_are_restored(clock: MockClock, host: Host, what: str, file: str) -> None:
    """Found by trying: without ``certs/www.example.crt`` the host was healthy, and `apply` left it so."""
    made = {5: await deliver(host, 5), 3: await deliver(host, 3)}  # both names lead through aliases
    link = host.layout.certs / file
    spoil(link, what)
    assert await host.installer.repair_links(change=False) == [str(link)]
    assert await host.installer.repair_links() == [str(link)]
    assert [found_at(host, "www.example"), found_at(host, "www.example+5")] == [made[3], made[5]]
    assert await host.installer.repair_links() == []


async def test_a_public_name_is_left_to_the_call_that_works_on_its_certificate(clock: MockClock, host: Host) -> None:
    made = await deliver(host, 3)
    (host.layout.certs / "www.example.crt").unlink()
    with trio.fail_after(1):
        async with host.installer._locks.held({"cert:3"}):
            assert await host.installer.repair_links() == []
    await host.installer.repair_links()
    assert found_at(host, "www.example") == made
