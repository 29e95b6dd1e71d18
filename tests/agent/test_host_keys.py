"""Keys that are made on this host, by the orders of the plane and the keys that are here."""

from __future__ import annotations

import errno
import logging
import stat
from contextlib import suppress
from pathlib import Path

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from handler_world import AFTER, APPLIED, BEFORE, FACTS, IGNORED, LIVE, NOW, THERE, TS, UNCHANGED, World, refused

from certctrl.agent.handlers import on_cert_renewed, on_cert_revoked, on_cert_unassigned
from certctrl.agent.host_keys import CSR_CONFLICT, awaited, forget_live_keys, on_csr_wanted
from certctrl.agent.reconcile import plan_resync
from certctrl.errors import DiskError, LaggingError, MaterialError, PlaneError, PolicyRefusedError
from certctrl.install.material.key_request import new_key_pem, public_key_sha256
from certctrl.model.certificate import DEVICE_KEY, CertificateSummary, CsrOrder, DeployMaterials
from certctrl.model.policy import HostPolicy, KeyType
from certctrl.model.records import CertRecord
from certctrl.model.signals import CertRenewed, CertRevoked, CertUnassigned, CsrWanted
from certctrl.store.disk.fs import RealFs
from certctrl.store.state.staged_keys import StagedKey, StagedKeys

WANTED = CsrWanted(ts_ms=TS, cert_id=1, order_id=7)
NAMES = ("a.example", "192.0.2.7", "*.a.example")
ORDER = CsrOrder(id=7, state="csr_wanted", key_type="ecdsa-p256", names=NAMES)
OPEN = attrs.evolve(THERE, serial_number="", fingerprint_sha256="", status="pending", key_origin="device", order=ORDER)
SENT = attrs.evolve(OPEN, order=attrs.evolve(ORDER, state="ready"))
KEY = StagedKey(1, 7, "a.example")
RENEWED = CertRenewed(ts_ms=TS, cert_id=1, serial="0a")


@pytest.fixture
def scene(tmp_path: Path) -> World:
    return World(tmp_path / "agent")


def staged(scene: World) -> tuple[StagedKey, ...]:
    """Return the staged keys as the next start finds them."""
    return StagedKeys(scene.layout, RealFs()).all()


def pem_of(scene: World, key: StagedKey = KEY) -> bytes:
    return (scene.layout.staged_keys / key.file).read_bytes()


def sent(scene: World) -> x509.CertificateSigningRequest:
    return x509.load_pem_x509_csr(scene.plane.csrs[-1][2].encode())


def orders(scene: World, **changes: object) -> None:
    scene.shows(attrs.evolve(OPEN, order=attrs.evolve(ORDER, **changes)))


# --- orders ---------------------------------------------------------------------------------------------------------


async def test_an_order_gets_the_request_of_a_key_that_stays_here(
    scene: World, caplog: pytest.LogCaptureFixture
) -> None:
    scene.shows(OPEN)
    with caplog.at_level(logging.DEBUG):
        outcome = await on_csr_wanted(scene.agent, WANTED)
    assert outcome.kind is APPLIED
    assert (staged(scene), scene.plane.csrs[0][:2]) == ((KEY,), (1, 7))
    request = sent(scene)
    assert request.is_signature_valid
    sans = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in sans] == list(NAMES)
    path = scene.layout.staged_keys / KEY.file
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    secret = path.read_text().splitlines()[1]
    assert secret not in caplog.text + scene.plane.csrs[0][2] + repr(outcome) + repr(
        scene.agent.store.staged_keys.all()
    )


async def test_the_same_order_gets_the_same_key_again(scene: World) -> None:
    """A lost answer, a duplicate of the signal, a restart."""
    scene.shows(OPEN)
    await on_csr_wanted(scene.agent, WANTED)
    first = sent(scene).public_key()
    scene.plane.fails["csr"] = refused(503)
    with pytest.raises(PlaneError):
        await on_csr_wanted(scene.agent, WANTED)
    again = World(scene.layout.root)
    again.shows(OPEN)
    await on_csr_wanted(again.agent, WANTED)
    assert sent(again).public_key() == first


@pytest.mark.parametrize(
    ("kind", "cls", "size"),
    [
        (KeyType.P256, ec.EllipticCurvePublicKey, 256),
        (KeyType.P384, ec.EllipticCurvePublicKey, 384),
        (KeyType.RSA_2048, rsa.RSAPublicKey, 2048),
        (KeyType.ED25519, ed25519.Ed25519PublicKey, 0),
    ],
)
async def test_each_type_of_key_can_be_ordered(scene: World, kind: KeyType, cls: type, size: int) -> None:
    orders(scene, key_type=kind.value, must_staple=True)
    await on_csr_wanted(scene.agent, WANTED)
    public = sent(scene).public_key()
    assert isinstance(public, cls)
    assert getattr(public, "key_size", 0) == size
    assert sent(scene).is_signature_valid
    feature = sent(scene).extensions.get_extension_for_class(x509.TLSFeature).value
    assert list(feature) == [x509.TLSFeatureType.status_request]


async def test_the_host_decides_which_keys_it_makes(scene: World) -> None:
    scene.agent.policy = HostPolicy(key_types=(KeyType.P384, KeyType.P256))
    orders(scene, key_type="rsa-2048")
    with pytest.raises(PolicyRefusedError) as caught:
        await on_csr_wanted(scene.agent, WANTED)
    assert caught.value.fix == 'policy.json needs "key_types": ["ecdsa-p384", "ecdsa-p256", "rsa-2048"]'
    orders(scene, key_type="")
    await on_csr_wanted(scene.agent, WANTED)
    assert sent(scene).public_key().key_size == 384, "the first of the policy"
    orders(scene, key_type="ml-dsa-65")
    with pytest.raises(MaterialError, match="cannot make keys of type ml-dsa-65"):
        await on_csr_wanted(scene.agent, WANTED)


async def test_a_key_of_another_type_is_replaced(scene: World) -> None:
    scene.shows(OPEN)
    await on_csr_wanted(scene.agent, WANTED)
    orders(scene, key_type="ecdsa-p384")
    await on_csr_wanted(scene.agent, WANTED)
    assert sent(scene).public_key().key_size == 384
    assert staged(scene) == (KEY,)


@pytest.mark.parametrize("damage", [b"", b"\0" * 200, b"-----BEGIN PRIVATE KEY-----\nAAAA\n", None])
async def test_a_damaged_key_is_replaced(scene: World, damage: bytes | None) -> None:
    scene.shows(OPEN)
    await on_csr_wanted(scene.agent, WANTED)
    path = scene.layout.staged_keys / KEY.file
    path.unlink() if damage is None else path.write_bytes(damage)
    again = World(scene.layout.root)
    again.shows(OPEN)
    await on_csr_wanted(again.agent, WANTED)
    assert public_key_sha256(pem_of(again))
    assert sent(again).public_key() != sent(scene).public_key()


@pytest.mark.parametrize(
    ("shown", "waits"),
    [
        (None, True),
        (attrs.evolve(THERE, updated_at=BEFORE), True),
        (attrs.evolve(THERE, updated_at=AFTER), False),
        (attrs.evolve(OPEN, order=attrs.evolve(ORDER, id=6), updated_at=BEFORE), True),
    ],
)
async def test_an_order_that_is_not_shown_may_only_lag(
    scene: World, shown: CertificateSummary | None, waits: bool
) -> None:
    scene.shows(shown)
    if waits:
        with pytest.raises(LaggingError):
            await on_csr_wanted(scene.agent, WANTED)
        scene.waited(WANTED)
    outcome = await on_csr_wanted(scene.agent, WANTED)
    assert (outcome.kind, outcome.detail) == (UNCHANGED, "order 7 has ended")
    assert (staged(scene), scene.plane.csrs) == ((), [])


@pytest.mark.parametrize("shown", [None, attrs.evolve(THERE, updated_at=BEFORE)])
async def test_an_order_that_this_process_has_served_does_not_lag(
    scene: World, shown: CertificateSummary | None
) -> None:
    """The comparison at the start may be faster than the signal, and both within one second."""
    scene.shows(OPEN)
    await on_csr_wanted(scene.agent, WANTED)
    scene.shows(shown)
    outcome = await on_csr_wanted(scene.agent, WANTED)
    assert (outcome.kind, outcome.detail) == (UNCHANGED, "order 7 has ended")
    with pytest.raises(LaggingError):
        await on_csr_wanted(scene.agent, attrs.evolve(WANTED, order_id=8))
    assert len(scene.plane.csrs) == 1


async def test_a_newer_order_counts(scene: World) -> None:
    orders(scene, id=9)
    await on_csr_wanted(scene.agent, WANTED)
    assert [csr[:2] for csr in scene.plane.csrs] == [(1, 9)]
    assert staged(scene) == (StagedKey(1, 9, "a.example"),)


async def test_a_request_that_has_arrived_is_not_sent_again(scene: World) -> None:
    scene.shows(SENT)
    assert (await on_csr_wanted(scene.agent, WANTED)).kind is UNCHANGED
    assert scene.plane.csrs == []


@pytest.mark.parametrize("status", [404, 410])
async def test_the_key_of_an_ended_order_is_removed(scene: World, status: int) -> None:
    scene.shows(OPEN)
    scene.plane.fails["csr"] = refused(status)
    assert (await on_csr_wanted(scene.agent, WANTED)).kind is UNCHANGED
    assert staged(scene) == ()


async def test_an_order_with_another_key_is_given_up(scene: World) -> None:
    """Its key was lost after its request had arrived: nothing can bring it back."""
    scene.shows(OPEN)
    scene.plane.fails["csr"] = PlaneError("another key", status=409, key=CSR_CONFLICT)
    outcome = await on_csr_wanted(scene.agent, WANTED)
    assert (outcome.kind, scene.plane.renewals) == (IGNORED, [(14, 1, True)])
    assert "order 7 has a key that is not on this host" in outcome.detail
    assert staged(scene) == ()


async def test_another_conflict_is_retried(scene: World) -> None:
    scene.shows(OPEN)
    scene.plane.fails["csr"] = PlaneError("busy", status=409, key="CONFLICT")
    with pytest.raises(PlaneError):
        await on_csr_wanted(scene.agent, WANTED)
    assert staged(scene) == (KEY,)


async def test_nothing_leaves_a_host_that_cannot_store_the_key(scene: World) -> None:
    scene.shows(OPEN)
    scene.disk.errno = errno.ENOSPC
    with pytest.raises(DiskError):
        await on_csr_wanted(scene.agent, WANTED)
    assert (scene.plane.csrs, staged(scene)) == ([], ())
    scene.disk.errno = 0
    await on_csr_wanted(scene.agent, WANTED)
    assert len(scene.plane.csrs) == 1


async def test_a_key_of_an_earlier_run_is_made_durable_first(scene: World) -> None:
    """That run may have been killed between renaming the file and syncing its directory."""
    scene.agent.store.staged_keys.save(1, 7, "a.example", new_key_pem(KeyType.P256))
    again = World(scene.layout.root)
    again.shows(OPEN)
    again.disk.errno = errno.EIO
    with pytest.raises(DiskError):
        await on_csr_wanted(again.agent, WANTED)
    assert (again.plane.csrs, staged(again)) == ([], (KEY,))


# --- the certificate arrives ----------------------------------------------------------------------------------------


def issues(scene: World, pem: bytes) -> None:
    """Let the plane offer the certificate of a key."""
    scene.sends()
    sha256 = public_key_sha256(pem)
    scene.plane.materials[1] = DeployMaterials(enc_scheme=DEVICE_KEY, public_key_sha256=sha256.upper())
    scene.shows(attrs.evolve(THERE, key_origin="device", public_key_sha256=sha256))


async def test_a_certificate_finds_its_key_among_the_staged_ones(scene: World) -> None:
    scene.shows(OPEN)
    await on_csr_wanted(scene.agent, WANTED)
    scene.agent.store.staged_keys.save(1, 8, "a.example", new_key_pem(KeyType.P256))
    issues(scene, pem_of(scene))
    await on_cert_renewed(scene.agent, RENEWED)
    assert "stage" in scene.did


async def test_a_certificate_finds_its_key_in_a_generation(scene: World) -> None:
    scene.has(LIVE)
    pem = new_key_pem(KeyType.P256)
    issues(scene, pem)
    scene.installer.host_keys[1] = {public_key_sha256(pem): pem}
    await on_cert_renewed(scene.agent, RENEWED)
    assert "stage" in scene.did


async def test_a_lost_key_is_replaced_once(scene: World) -> None:
    scene.has(LIVE)
    issues(scene, new_key_pem(KeyType.P256))
    outcome = await on_cert_renewed(scene.agent, RENEWED)
    assert not isinstance(outcome, tuple)
    assert (outcome.kind, scene.plane.renewals) == (IGNORED, [(14, 1, True)])
    shown = scene.plane.certificates[1]
    scene.shows(attrs.evolve(shown, order=ORDER))
    await on_cert_renewed(scene.agent, RENEWED)
    assert len(scene.plane.renewals) == 1, "the plane has asked for a new one"
    await on_csr_wanted(scene.agent, WANTED)
    scene.shows(attrs.evolve(shown, order=attrs.evolve(ORDER, state="ready")))
    await on_cert_renewed(scene.agent, RENEWED)
    assert len(scene.plane.renewals) == 1, "the plane has its request"
    (scene.layout.staged_keys / KEY.file).unlink()
    await on_cert_renewed(scene.agent, RENEWED)
    assert len(scene.plane.renewals) == 2, "this one is lost as well"


async def test_the_staged_key_is_forgotten_once_it_is_live(scene: World) -> None:
    scene.shows(OPEN)
    await on_csr_wanted(scene.agent, WANTED)
    keys = scene.agent.store.staged_keys
    older = keys.save(1, 5, "a.example", new_key_pem(KeyType.P256))
    newer = keys.save(1, 9, "a.example", new_key_pem(KeyType.P256))
    other = keys.save(2, 6, "b.example", new_key_pem(KeyType.P256))
    live = public_key_sha256(pem_of(scene))
    scene.installer.host_keys[1] = {live: pem_of(scene), "another": b""}
    await forget_live_keys(scene.agent, [1, 2])
    assert staged(scene) == (older, KEY, newer, other), "rolled back: it is not the live one"
    assert [row["order_id"] for row in awaited(scene.agent)] == [5, 7, 9, 6]
    scene.installer.host_keys[1] = {live: pem_of(scene)}
    await forget_live_keys(scene.agent, [2])
    assert KEY in staged(scene)
    await forget_live_keys(scene.agent)
    assert staged(scene) == (newer, other)


# --- comparisons ----------------------------------------------------------------------------------------------------


async def test_a_comparison_finds_orders_that_no_signal_announced(scene: World) -> None:
    scene.shows(OPEN)
    await plan_resync(scene.agent, "test")
    assert [one for one in scene.admitted if isinstance(one, CsrWanted)] == [
        CsrWanted(ts_ms=int(NOW * 1000), cert_id=1, order_id=7)
    ]


async def test_a_comparison_does_not_ask_for_pending_material(scene: World) -> None:
    scene.shows(SENT)
    await plan_resync(scene.agent, "test")
    assert scene.admitted == []


@pytest.mark.parametrize(
    ("listed", "detail", "stays"),
    [
        (OPEN, OPEN, True),
        (SENT, SENT, True),
        (attrs.evolve(OPEN, order=attrs.evolve(ORDER, id=9)), attrs.evolve(OPEN, order=None), False),
        (attrs.evolve(OPEN, order=None), OPEN, True),
        (None, OPEN, True),
        (None, None, False),
        (attrs.evolve(OPEN, order=None), attrs.evolve(OPEN, order=None), False),
    ],
)
async def test_a_comparison_removes_keys_that_nothing_wants(
    scene: World, listed: CertificateSummary | None, detail: CertificateSummary | None, stays: bool
) -> None:
    scene.agent.store.staged_keys.save(1, 7, "a.example", new_key_pem(KeyType.P256))
    scene.shows(detail)
    scene.plane.listed = [] if listed is None else [listed]
    await plan_resync(scene.agent, "test")
    assert staged(scene) == ((KEY,) if stays else ())


async def test_the_key_of_an_issued_certificate_stays_until_it_is_live(scene: World) -> None:
    pem = new_key_pem(KeyType.P256)
    scene.agent.store.staged_keys.save(1, 7, "a.example", pem)
    issues(scene, pem)
    await plan_resync(scene.agent, "test")
    assert staged(scene) == (KEY,)
    scene.has(LIVE)
    scene.installer.host_keys[1] = {public_key_sha256(pem): pem}
    await plan_resync(scene.agent, "test")
    assert staged(scene) == ()


async def test_the_key_of_a_revoked_certificate_is_removed(scene: World) -> None:
    """It was issued, and revoked before it was deployed; that of a replacement, which is ordered, stays."""
    pem = new_key_pem(KeyType.P256)
    scene.agent.store.staged_keys.save(1, 7, "a.example", pem)
    newer = scene.agent.store.staged_keys.save(1, 9, "a.example", new_key_pem(KeyType.P256))
    issues(scene, pem)
    shown = attrs.evolve(scene.plane.certificates[1], status="revoked", order=attrs.evolve(ORDER, id=9))
    scene.shows(shown)
    await on_cert_revoked(scene.agent, CertRevoked(ts_ms=TS, cert_id=1))
    assert staged(scene) == (newer,)
    scene.shows(attrs.evolve(shown, order=None))
    await plan_resync(scene.agent, "test")
    assert staged(scene) == ()


@pytest.mark.parametrize("record", [None, LIVE])
async def test_the_keys_of_an_unassigned_certificate_are_removed(scene: World, record: CertRecord | None) -> None:
    """Those of others stay, and all as long as the plane does not confirm it."""
    pem = new_key_pem(KeyType.P256)
    scene.agent.store.staged_keys.save(1, 7, "a.example", pem)
    other = scene.agent.store.staged_keys.save(2, 8, "b.example", pem)
    if record is not None:
        scene.agent.policy = HostPolicy(unassign_grace=0)
        scene.has(record)
    signal = CertUnassigned(ts_ms=TS, cert_id=1)
    scene.shows(OPEN)
    with suppress(LaggingError):
        await on_cert_unassigned(scene.agent, signal)
    assert staged(scene) == (KEY, other)
    scene.shows(None)
    await on_cert_unassigned(scene.agent, signal)
    assert staged(scene) == (other,)


async def test_other_files_among_the_keys_are_left_alone(scene: World) -> None:
    for name in ("notes.txt", "1-x-a.key", "1-7.key", "-1-7-a.key"):
        (scene.layout.staged_keys / name).write_text("mine")
    assert staged(scene) == ()
    await plan_resync(scene.agent, "test")
    assert len([*scene.layout.staged_keys.iterdir()]) == 4
    assert FACTS.cert_id == 1
