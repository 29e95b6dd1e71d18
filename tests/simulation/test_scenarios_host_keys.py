"""Keys that are made on the host: orders, crashes at every step of the disk, lost answers, lost keys."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from simulation.disk import file_in, names_in
from simulation.scene import DAY, Scene, play
from simulation.world import DEVICE, USER

from certctrl.errors import TransportError
from certctrl.plane.issuers.builtin import BuiltinIssuer
from certctrl.plane.issuers.issuer import CertificateRequest, IssuedChain, IssuerError
from certctrl.store.disk.atomic import write_atomic

NAME = "www.example"


async def ordered(scene: Scene, **options: Any) -> int:
    """Order a certificate whose key is made on the host, of the type that the auditor reads; return its id."""
    await scene.until(lambda: scene.polls)
    row = await scene.plane.certificates.issue(
        USER, [NAME], validity_seconds=int(90 * DAY), device_ids=[DEVICE], key_type="ed25519", key_origin="device",
        **options,
    )  # fmt: skip
    return int(row["id"])


def staged(scene: Scene) -> list[str]:
    return [name for name in names_in(scene.host.disk.now, scene.world.layout.staged_keys) if name.endswith(".key")]


def served(scene: Scene) -> str:
    """Return the serial of the live pair, after checking that it is one; empty: none."""
    nodes, live = scene.host.disk.now, scene.world.layout.live / NAME
    key, leaf = file_in(nodes, live / "private.key"), file_in(nodes, live / "certificate.pem")
    if key is None or leaf is None:
        return ""
    certificate = x509.load_pem_x509_certificate(leaf)
    assert load_pem_private_key(key, None).public_key() == certificate.public_key()
    return f"{certificate.serial_number:x}"


def current(scene: Scene, cert_id: int) -> str:
    """Return the serial at the plane; empty: not issued yet."""
    return str(scene.plane.certificates.show(USER, cert_id)["serial_number"]).replace(":", "").lstrip("0")


def done(scene: Scene, cert_id: int) -> bool:
    """Return whether the host serves the plane's certificate, and keeps no other key."""
    row = scene.plane.certificates.show(USER, cert_id)
    return bool(row["serial_number"]) and row["order_id"] is None and served(scene) == current(scene, cert_id)


def plays(scenario: Callable[[Scene], Awaitable[None]]) -> None:
    """Play a scenario with a plane that works on its orders."""

    async def with_orders(scene: Scene) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.plane.order_runner.run)
            await scenario(scene)
            nursery.cancel_scope.cancel()

    play(with_orders, environ={"CERTCTRL_RECONCILE_INTERVAL_SECONDS": "3600"})


def keys_at_plane(scene: Scene) -> int:
    sql = "SELECT count(*) AS n FROM certificates WHERE length(private_key_enc) > 0"
    row = scene.plane.database.one(sql)
    assert row is not None
    return int(row["n"])


def test_a_certificate_is_served_with_a_key_that_never_left_the_host() -> None:
    async def scenario(scene: Scene) -> None:
        cert_id = await ordered(scene)
        await scene.until(lambda: done(scene, cert_id))
        await scene.until(lambda: not staged(scene))
        first = served(scene)
        assert keys_at_plane(scene) == 0
        await scene.plane.certificates.renew(USER, cert_id)
        await scene.until(lambda: done(scene, cert_id) and served(scene) != first)
        await scene.until(lambda: not staged(scene))
        assert ("cert.csr_wanted", "applied") in scene.outcomes()
        wire = "".join(json.dumps([one.json, one.query, one.path, str(one.answer)]) for one in scene.sent)
        generations = scene.world.layout.generations / NAME
        keys = [
            file_in(scene.host.disk.now, generations / one / "private.key")
            for one in names_in(scene.host.disk.now, generations)
        ]
        secrets = [key.decode().splitlines()[1] for key in keys if key is not None]
        assert len(secrets) == 2
        assert [one for one in secrets if one in wire or one[:40] in scene.log] == []
        assert wire.count("BEGIN CERTIFICATE REQUEST") == 2, "the search reads what is sent"

    plays(scenario)


def test_a_host_makes_another_key_after_the_ca_has_refused_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, with a crash after each: the certificate in use is served all the time, and no refused key stays."""
    issue, refused = BuiltinIssuer.issue, []

    async def scenario(scene: Scene) -> None:
        cert_id = await ordered(scene)
        await scene.until(lambda: done(scene, cert_id) and not staged(scene))
        first = served(scene)

        async def refuse(issuer: BuiltinIssuer, request: CertificateRequest) -> IssuedChain:
            if len(refused) == 2:
                return await issue(issuer, request)
            assert served(scene) == first
            refused.append(request.csr_der)
            scene.host.kill_within(5, power=True)
            raise IssuerError("the CA refused the key", is_permanent=True, about_request=True)

        monkeypatch.setattr(BuiltinIssuer, "issue", refuse)
        await scene.plane.certificates.renew(USER, cert_id)
        await scene.until(lambda: done(scene, cert_id) and served(scene) != first, within=6 * DAY)
        await scene.until(lambda: not staged(scene), within=DAY)
        assert len(set(refused)) == 2
        assert len(scene.plane.database.all("SELECT * FROM known_keys")) == 4
        states = [row["state"] for row in scene.plane.database.all("SELECT state FROM orders ORDER BY id")]
        assert states == ["done", "failed", "failed", "done"]

    plays(scenario)


def survived(operations: int, *, power: bool) -> int:
    """Crash the host within so many changes of its disk, at the first certificate and at its renewal.

    From the signal to the removal of the staged key. Returns how many keys the plane has seen.
    """
    seen = []

    async def scenario(scene: Scene) -> None:
        cert_id = await ordered(scene)
        scene.host.kill_within(operations, power=power)
        await scene.until(lambda: done(scene, cert_id), within=DAY)
        first = served(scene)
        await scene.plane.certificates.renew(USER, cert_id)
        scene.host.kill_within(operations, power=power)
        await scene.until(lambda: done(scene, cert_id) and served(scene) != first, within=DAY)
        await scene.until(lambda: not staged(scene), within=DAY)
        assert (keys_at_plane(scene), scene.host.crashes) == (0, 2)
        seen.append(len(scene.plane.database.all("SELECT * FROM known_keys")))

    plays(scenario)
    return seen[0]


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("operations", range(1, 41, 3))
def test_a_crash_between_any_two_steps_of_the_disk_loses_no_key(operations: int, power: bool) -> None:
    assert survived(operations, power=power) == 2, "a key was lost whose request was sent"


def test_the_crashes_notice_a_key_that_is_not_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "certctrl.store.state.staged_keys.write_atomic", lambda *args: write_atomic(*args, durable=False)
    )
    assert any(survived(operations, power=True) > 2 for operations in range(1, 30))


@pytest.mark.parametrize("answer", [False, True])
def test_a_lost_request_or_answer_leads_to_the_same_key(answer: bool) -> None:
    async def scenario(scene: Scene) -> None:
        lost: list[float] = []
        heard, wanted = scene.network.after if answer else scene.network.before, 1 if answer else 3

        def cut(exchange: Any) -> None:
            heard(exchange)
            if exchange.path.endswith("/csr") and len(lost) < wanted:
                lost.append(trio.current_time())
                raise TransportError("the connection is cut")

        if answer:
            scene.network.after = cut
        else:
            scene.network.before = cut
        cert_id = await ordered(scene)
        await scene.until(lambda: done(scene, cert_id), within=DAY)
        assert len(lost) == wanted
        assert len(scene.plane.database.all("SELECT * FROM known_keys")) == 1

    plays(scenario)


def test_a_staged_key_that_vanishes_is_replaced() -> None:
    """After its request was sent, and before the certificate arrives."""

    async def scenario(scene: Scene) -> None:
        cert_id = await ordered(scene)
        await scene.until(lambda: scene.plane.certificates.show(USER, cert_id)["order_state"] == "ready")
        (key,) = scene.agent.store.staged_keys.all()
        scene.agent.store.staged_keys.remove(key)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.plane.order_runner.run)
            await scene.until(lambda: done(scene, cert_id), within=DAY)
            nursery.cancel_scope.cancel()
        assert len(scene.plane.database.all("SELECT * FROM known_keys")) == 2

    play(scenario)


def test_an_order_that_no_signal_announced_is_found() -> None:
    async def scenario(scene: Scene) -> None:
        cert_id = await ordered(scene)
        scene.plane.database.run("DELETE FROM signals")
        await scene.until(lambda: done(scene, cert_id), within=DAY)

    plays(scenario)
