"""Orders on both engines: pending certificates, attempts, retries for days, crashes, cancelled and repeated orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed448
from engine_plane import new_device, plane_on
from scripted_issuer import WALL, ScriptedCa, ScriptedKind, scripted

from certctrl.errors import PlaneError
from certctrl.plane.ca.csr import key_digest
from certctrl.plane.ca.x509 import new_intermediate, new_root
from certctrl.plane.core import Plane
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.issuers.issuer import CertificateRequest, IssuedChain, IssuerError
from certctrl.plane.issuers.registry import NewIssuer
from certctrl.plane.orders import requests
from certctrl.plane.orders.attempts import FIRST_PAUSE, GIVE_UP_SECONDS, REFUSED_PAUSE
from certctrl.plane.orders.runner import LEASE_SECONDS
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

DAY = 86_400.0


@attrs.define
class Scene:
    """A plane with an issuer ``le``, and a clock."""

    open_database: Callable[[], Database]
    kind: ScriptedKind
    keyring: Keyring
    now: float = WALL
    plane: Plane = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.kind.ca.now = lambda: self.now
        self.plane = self.another()

    @property
    def ca(self) -> ScriptedCa:
        return self.kind.ca

    def another(self) -> Plane:
        """Return another plane on the database, or the next one after a crash."""
        return plane_on(self.open_database(), self.keyring, lambda: self.now)

    async def add(self) -> None:
        await self.plane.work(self.plane.issuers.put, NewIssuer(name="le", kind="scripted", settings={}))

    async def issue(self, *names: str, **more: Any) -> dict[str, Any]:
        return await self.plane.certificates.issue(1, names or ["www.example.com"], issuer="le", **more)

    async def issued(self, *names: str, **more: Any) -> dict[str, Any]:
        row = await self.issue(*names, **more)
        assert await self.plane.order_runner.run_once() == 1
        return await self.certificate(row["id"])

    async def certificate(self, cert_id: int) -> dict[str, Any]:
        return await self.plane.work(self.plane.certificates.show, 1, cert_id)

    async def order(self, order_id: int) -> dict[str, Any]:
        return await self.plane.work(self.plane.orders.show, 1, order_id)

    async def signals(self, device_id: int) -> list[tuple[str, Any]]:
        page = await self.plane.work(self.plane.stream.read, device_id, None, 100)
        return [(signal["type"], signal["ref"]) for signal in page.signals]


@pytest.fixture
async def scene(open_database: Callable[[], Database]) -> Any:
    with scripted() as kind:
        scene = Scene(open_database, kind, Keyring.open(None))
        await scene.add()
        yield scene


async def test_a_certificate_is_pending_until_its_order_is_done(scene: Scene) -> None:
    device = await new_device(scene.plane)
    row = await scene.issue("www.example.com", "*.example.com", "192.0.2.1", device_ids=[device])
    assert (row["status"], row["serial_number"], row["not_after"], row["issuer"]) == ("pending", "", None, "le")
    assert await scene.signals(device) == []
    with pytest.raises(PlaneError) as refused:
        await scene.plane.work(scene.plane.certificates.materials, device, row["id"])
    assert (refused.value.status, refused.value.key) == (409, "WRAP_PENDING")
    assert await scene.plane.work(scene.plane.certificates.page, device, 0, 10) == []

    assert await scene.plane.order_runner.run_once() == 1
    done = await scene.certificate(row["id"])
    assert (done["status"], done["order_id"]) == ("active", None)
    assert await scene.signals(device) == [("cert.renewed", {"cert_id": row["id"], "serial": done["serial_number"]})]
    order = await scene.order(row["order_id"])
    assert (order["state"], order["attempts"], order["problem"]) == ("done", 1, "")
    (request,) = scene.ca.requests
    assert request.names == ("www.example.com", "*.example.com", "192.0.2.1")
    assert request.device_ids == (device,)
    assert x509.load_der_x509_csr(request.csr_der).is_signature_valid


async def test_key_and_certificate_belong_together_and_the_order_keeps_no_key(scene: Scene) -> None:
    row = await scene.issued()
    plane = scene.plane
    stored = await plane.work(plane.database.one, "SELECT * FROM certificates WHERE id = ?", row["id"])
    assert stored is not None
    key = serialization.load_der_private_key(
        plane.keyring.unseal(f"certificate {row['id']}", bytes(stored["private_key_enc"])), None
    )
    leaf = x509.load_pem_x509_certificate(stored["certificate_pem"].encode())
    assert key_digest(leaf.public_key()) == key_digest(key.public_key()) == stored["public_key_sha256"]  # type: ignore[arg-type]
    order = await plane.work(plane.database.one, "SELECT * FROM orders")
    assert order is not None
    assert (order["key_enc"], order["memo_enc"]) == (None, None)
    assert await plane.work(plane.database.all, "SELECT * FROM jobs WHERE kind = 'order'") == []


@pytest.mark.parametrize("renewal", [False, True])
async def test_failures_are_retried_with_growing_pauses(scene: Scene, renewal: bool) -> None:
    row = await scene.issued() if renewal else await scene.issue()
    before = await scene.certificate(row["id"])
    order_id = row["order_id"]
    if renewal:
        order_id = (await scene.plane.certificates.renew(1, row["id"]))["order_id"]
    scene.ca.script = [IssuerError(f"the CA is down ({number})", fix="wait") for number in range(5)]
    pauses = []
    for number in range(5):
        assert await scene.plane.order_runner.run_once() == 1
        order = await scene.plane.work(scene.plane.database.one, "SELECT * FROM orders WHERE id = ?", order_id)
        assert order is not None
        assert (order["state"], order["attempts"]) == ("ready", number + 1)
        assert (order["problem"], order["fix"]) == (f"the CA is down ({number})", "wait")
        pauses.append(order["next_at"] - scene.now)
        assert await scene.plane.order_runner.run_once() == 0
        scene.now = order["next_at"]
    assert all(FIRST_PAUSE * 2**n / 2 <= pause <= FIRST_PAUSE * 2**n for n, pause in enumerate(pauses))
    of_the_order = {"order_id": order_id, "order_state": "ready", "problem": "the CA is down (4)"}
    assert await scene.certificate(row["id"]) == before | of_the_order, "the certificate in use is untouched"
    shown = await scene.plane.work(scene.plane.issuers.show, "le")
    assert shown["problem"] == "the CA is down (4)"
    await scene.plane.order_runner.run_once()
    assert (await scene.certificate(row["id"]))["status"] == "active"
    assert (await scene.plane.work(scene.plane.issuers.show, "le"))["problem"] == ""
    csrs = {request.csr_der for request in scene.ca.requests[-6:]}
    assert len(csrs) == 1, "all attempts of an order have one key"


async def test_retry_after_counts(scene: Scene) -> None:
    row = await scene.issue()
    scene.ca.script = [IssuerError("too many orders", retry_after=7200.0)]
    await scene.plane.order_runner.run_once()
    order = await scene.plane.work(scene.plane.database.one, "SELECT next_at FROM orders WHERE id = ?", row["order_id"])
    assert order is not None
    assert 7200 <= order["next_at"] - scene.now <= 7200 * 1.05


async def test_a_refusal_ends_a_first_order(scene: Scene) -> None:
    row = await scene.issue()
    scene.ca.script = [IssuerError("CAA forbids it", fix="change the CAA record", is_permanent=True)]
    await scene.plane.order_runner.run_once()
    order = await scene.order(row["order_id"])
    assert (order["state"], order["problem"], order["fix"]) == ("failed", "CAA forbids it", "change the CAA record")
    assert (await scene.certificate(row["id"]))["status"] == "pending"
    again = await scene.plane.work(scene.plane.orders.retry, 1, order["id"])
    assert (again["state"], again["id"] > order["id"]) == ("ready", True)
    await scene.plane.order_runner.run_once()
    assert (await scene.certificate(row["id"]))["status"] == "active"


async def test_a_refused_renewal_is_tried_again_daily_with_a_new_key(scene: Scene) -> None:
    row = await scene.issued()
    await scene.plane.certificates.renew(1, row["id"])
    scene.ca.script = [IssuerError("refused", is_permanent=True), IssuerError("refused", is_permanent=True)]
    for _ in range(2):
        assert await scene.plane.order_runner.run_once() == 1
        assert (await scene.certificate(row["id"]))["serial_number"] == row["serial_number"]
        scene.now += REFUSED_PAUSE
    await scene.plane.order_runner.run_once()
    assert (await scene.certificate(row["id"]))["serial_number"] != row["serial_number"]
    assert len({request.csr_der for request in scene.ca.requests[1:]}) == 3


async def test_a_first_order_is_given_up_after_a_week(scene: Scene) -> None:
    row = await scene.issue()
    scene.ca.script = [IssuerError("down")] * 2
    await scene.plane.order_runner.run_once()
    scene.now += GIVE_UP_SECONDS + 1
    await scene.plane.order_runner.run_once()
    assert (await scene.order(row["order_id"]))["state"] == "failed"


def wrong_key(scene: Scene) -> Any:
    async def act(request: CertificateRequest) -> IssuedChain:
        from certctrl.plane.orders.requests import new_request

        _, csr = new_request("ecdsa-p256", request.names, False, b"")
        return scene.ca.signed(attrs.evolve(request, csr_der=csr))

    return act


def wrong_names(scene: Scene) -> Any:
    async def act(request: CertificateRequest) -> IssuedChain:
        return scene.ca.signed(request, names=("other.example.com",))

    return act


def expired(scene: Scene) -> Any:
    async def act(request: CertificateRequest) -> IssuedChain:
        return scene.ca.signed(request, not_before=WALL - 100, not_after=WALL - 1)

    return act


def of_another_ca(scene: Scene) -> Any:
    async def act(request: CertificateRequest) -> IssuedChain:
        root = new_root("other", not_before=WALL - 10, not_after=WALL + 1e8)
        return scene.ca.signed(
            request, by=new_intermediate(root, "other CA", not_before=WALL - 10, not_after=WALL + 1e8)
        )

    return act


def for_the_plane(scene: Scene) -> Any:
    async def act(request: CertificateRequest) -> IssuedChain:
        return scene.ca.signed(request, names=(*request.names, "plane.example.com"))

    return act


def unreadable(scene: Scene) -> Any:
    async def act(request: CertificateRequest) -> IssuedChain:
        return IssuedChain(certificate_pem="-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", chain_pem="")

    return act


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (wrong_key, "another key"), (wrong_names, "lacks the name www.example.com"), (expired, "not now"),
        (of_another_ca, "of another CA"), (for_the_plane, "a name of this control plane"),
        (unreadable, "cannot be read"),
    ],
)  # fmt: skip
async def test_what_an_issuer_returns_is_checked(scene: Scene, answer: Any, problem: str) -> None:
    await scene.plane.work(scene.plane.certificates.reserve, ["plane.example.com"])
    row = await scene.issue()
    scene.ca.script = [answer(scene)]
    await scene.plane.order_runner.run_once()
    order = await scene.order(row["order_id"])
    assert (order["state"], problem in order["problem"]) == ("failed", True), order["problem"]
    assert (await scene.certificate(row["id"]))["status"] == "pending"


async def test_a_bug_of_an_issuer_harms_no_other_order(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    first, second = await scene.issue("a.example"), await scene.issue("b.example")
    scene.ca.script = [ZeroDivisionError("secret")]
    assert await scene.plane.order_runner.run_once() == 2
    orders = [await scene.order(row["order_id"]) for row in (first, second)]
    assert sorted(order["state"] for order in orders) == ["done", "ready"]
    problems = [order["problem"] for order in orders if order["state"] == "ready"]
    assert problems == ["unexpected ZeroDivisionError in issuer le"]


@pytest.mark.parametrize("crash", ["before the memo", "after the memo", "after the issue"])
async def test_an_order_survives_a_crash_of_the_plane(scene: Scene, crash: str) -> None:
    row = await scene.issue()
    reached = trio.Event()

    async def interrupted(request: CertificateRequest) -> IssuedChain:
        if crash != "before the memo":
            await request.remember("https://ca.example/order/7")
        reached.set()
        await trio.sleep_forever()
        raise AssertionError

    scene.ca.script = [interrupted]
    job = (await scene.plane.work(scene.plane.order_runner._claim, 1))[0][0]
    attempt = await scene.plane.work(scene.plane.order_runner._attempts.begin, job)
    assert attempt is not None
    async with trio.open_nursery() as nursery:  # it never gets to give its claim back
        nursery.start_soon(scene.plane.order_runner._attempt, attempt)
        await reached.wait()
        nursery.cancel_scope.cancel()

    other = scene.another()
    assert await other.order_runner.run_once() == 0, "the lease of the dead plane"
    scene.now += LEASE_SECONDS + 1
    assert await other.order_runner.run_once() == 1
    assert (await scene.certificate(row["id"]))["status"] == "active"
    first, second = scene.ca.requests
    assert second.memo == ("" if crash == "before the memo" else "https://ca.example/order/7")
    assert first.csr_der == second.csr_der


async def test_a_plane_that_lost_its_claim_stores_nothing(scene: Scene) -> None:
    row = await scene.issue()
    go_on, reached = trio.Event(), trio.Event()

    async def slow(request: CertificateRequest) -> IssuedChain:
        reached.set()
        await go_on.wait()
        return scene.ca.signed(request)

    scene.ca.script = [slow]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.plane.order_runner.run_once)
        await reached.wait()
        scene.now += LEASE_SECONDS + 1
        assert await scene.another().order_runner.run_once() == 1
        serial = (await scene.certificate(row["id"]))["serial_number"]
        go_on.set()
    assert serial
    assert (await scene.certificate(row["id"]))["serial_number"] == serial


async def test_a_stopping_plane_gives_its_orders_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certctrl.plane.orders.runner.DRAIN_SECONDS", 0.05)
    row = await scene.issue()
    reached = trio.Event()

    async def slow(request: CertificateRequest) -> IssuedChain:
        await request.remember("memo")
        reached.set()
        await trio.sleep_forever()
        raise AssertionError

    scene.ca.script = [slow]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.plane.order_runner.run)
        await reached.wait()
        nursery.cancel_scope.cancel()
    assert await scene.another().order_runner.run_once() == 1, "at once, without waiting for the lease"
    assert (await scene.certificate(row["id"]))["status"] == "active"
    assert scene.ca.requests[-1].memo == "memo"


async def test_a_stopping_plane_lets_an_attempt_end(scene: Scene) -> None:
    row = await scene.issue()
    reached, go_on = trio.Event(), trio.Event()

    async def slow(request: CertificateRequest) -> IssuedChain:
        reached.set()
        await go_on.wait()
        return scene.ca.signed(request)

    scene.ca.script = [slow]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.plane.order_runner.run)
        await reached.wait()
        nursery.cancel_scope.cancel()
        go_on.set()
    assert (await scene.certificate(row["id"]))["status"] == "active"


async def test_a_runner_notices_new_orders_and_a_database_that_is_away(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    from certctrl.plane.errors import DatabaseAwayError

    monkeypatch.setattr("certctrl.plane.orders.runner.STORE_PAUSE", 0.01)
    row_of: dict[str, Any] = {}
    work, away = scene.plane.database.work_long, 3

    async def flaky(unit: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal away
        if away and row_of:
            away -= 1
            raise DatabaseAwayError("away")
        return await work(unit, *args, **kwargs)

    async def issue(request: CertificateRequest) -> IssuedChain:
        scene.plane.database.work_long = flaky  # type: ignore[method-assign]
        row_of["away"] = True
        return scene.ca.signed(request)

    scene.ca.script = [issue]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.plane.order_runner.run)
        await trio.testing.wait_all_tasks_blocked(0.05)
        row = await scene.issue()
        with trio.fail_after(30):
            while (await work(lambda: scene.plane.certificates.show(1, row["id"])))["status"] == "pending":
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert away == 0, "the certificate waited for the database"
    assert len(scene.ca.requests) == 1


async def test_there_is_one_open_order_per_certificate(scene: Scene) -> None:
    row = await scene.issued()
    first = await scene.plane.certificates.renew(1, row["id"])
    assert first == {
        "id": first["id"], "cert_id": row["id"], "action": "renew", "status": "pending", "serial_number": "",
        "order_id": first["id"], "state": "ready",
    }  # fmt: skip
    assert (await scene.plane.certificates.renew(1, row["id"]))["order_id"] == first["order_id"]
    assert await scene.plane.order_runner.run_once() == 1


async def test_a_device_gets_the_order_of_its_request(scene: Scene) -> None:
    device = await new_device(scene.plane)
    row = await scene.issued(device_ids=[device])
    answer = await scene.plane.certificates.renew(1, row["id"], device_id=device)
    assert (answer["status"], (await scene.order(answer["order_id"]))["device_id"]) == ("pending", device)
    scene.ca.script = [IssuerError("down")]
    await scene.plane.order_runner.run_once()
    due = (await scene.order(answer["order_id"]))["next_at"]
    await scene.plane.certificates.renew(1, row["id"], device_id=device)
    assert (await scene.order(answer["order_id"]))["next_at"] == due, "devices do not shorten the pause"
    await scene.plane.certificates.renew(1, row["id"])
    assert (await scene.order(answer["order_id"]))["next_at"] != due, "operators do"


async def test_a_cancelled_order_stops_and_keeps_the_certificate(scene: Scene) -> None:
    row = await scene.issued()
    order_id = (await scene.plane.certificates.renew(1, row["id"]))["order_id"]
    cancelled = await scene.plane.work(scene.plane.orders.cancel, 1, order_id)
    assert (cancelled["state"], cancelled["problem"]) == ("failed", "cancelled by an operator")
    assert await scene.plane.order_runner.run_once() == 0
    assert (await scene.certificate(row["id"]))["serial_number"] == row["serial_number"]
    with pytest.raises(PlaneError, match="has ended"):
        await scene.plane.work(scene.plane.orders.cancel, 1, order_id)


async def test_a_revocation_ends_the_order(scene: Scene) -> None:
    row = await scene.issued()
    order_id = (await scene.plane.certificates.renew(1, row["id"]))["order_id"]
    await scene.plane.certificates.revoke(1, row["id"])
    assert (await scene.order(order_id))["state"] == "failed"


async def test_a_certificate_keeps_its_id_with_another_issuer(scene: Scene) -> None:
    row = await scene.issued()
    changed = await scene.plane.certificates.change(1, row["id"], issuer="builtin")
    assert (changed["id"], changed["issuer"], changed["serial_number"]) == (row["id"], "builtin", row["serial_number"])
    renewed = await scene.plane.certificates.renew(1, row["id"])
    assert (renewed["status"], renewed["serial_number"] != row["serial_number"]) == ("done", True)
    await scene.plane.certificates.change(1, row["id"], issuer="le")
    assert (await scene.plane.certificates.renew(1, row["id"]))["status"] == "pending"
    await scene.plane.order_runner.run_once()
    assert (await scene.certificate(row["id"]))["serial_number"] != renewed["serial_number"]


@pytest.mark.parametrize("reuse", [False, True])
async def test_keys_are_used_again_by_choice_only(scene: Scene, reuse: bool) -> None:
    row = await scene.issued(reuse_key=reuse)
    await scene.plane.certificates.renew(1, row["id"])
    await scene.plane.order_runner.run_once()
    first, second = (x509.load_der_x509_csr(request.csr_der).public_key() for request in scene.ca.requests)
    assert (first == second) is reuse
    assert scene.ca.requests[1].replaces_pem.startswith("-----BEGIN CERTIFICATE-----")


async def test_the_builtin_ca_takes_orders_too(scene: Scene) -> None:
    row = await scene.plane.certificates.issue(1, ["a.example"], reuse_key=True)
    assert row["status"] == "pending"
    await scene.plane.order_runner.run_once()
    done = await scene.certificate(row["id"])
    assert (done["status"], done["issuer"]) == ("active", "builtin")


async def test_names_of_the_plane_are_refused_for_every_issuer(scene: Scene) -> None:
    row = await scene.issue("x.plane.example.com")
    await scene.plane.work(scene.plane.certificates.reserve, ["x.plane.example.com"])
    with pytest.raises(PlaneError) as refused:
        await scene.issue("*.plane.example.com")
    assert refused.value.key == "NAME_RESERVED"
    with pytest.raises(PlaneError):
        await scene.plane.certificates.change(1, row["id"], issuer="builtin")
    await scene.plane.order_runner.run_once()
    assert (await scene.order(row["order_id"]))["state"] == "failed", "also if it was ordered before"
    assert scene.ca.requests == []


async def test_failing_orders_are_a_problem_until_they_are_done(scene: Scene) -> None:
    await scene.issue()
    problems = scene.plane.order_runner._problems
    scene.ca.script = [IssuerError("down")] * 3
    for count in range(3):
        assert ProblemName.ORDERS not in scene.plane.problems, count
        await scene.plane.order_runner.run_once()
        scene.now += DAY
        problems._next = 0.0
        await problems.update()
    (problem,) = scene.plane.problems.now()
    assert (problem.name, problem.what) == (ProblemName.ORDERS, "order 1 (www.example.com, issuer le): down")
    await scene.plane.order_runner.run_once()
    problems._next = 0.0
    await problems.update()
    assert scene.plane.problems.now() == []


async def test_ended_orders_are_deleted_after_three_months(scene: Scene) -> None:
    row = await scene.issued()
    await scene.plane.work(scene.plane.orders.delete_expired)
    assert len(await scene.plane.work(scene.plane.orders.page_of_user, 1, 0, 10)) == 1
    scene.now += 91 * DAY
    await scene.plane.work(scene.plane.orders.delete_expired)
    assert await scene.plane.work(scene.plane.orders.page_of_user, 1, 0, 10) == []
    assert (await scene.certificate(row["id"]))["order_id"] is None


async def test_a_pending_certificate_is_ordered_from_its_new_issuer(scene: Scene) -> None:
    scene.ca.script = [IssuerError("no", is_permanent=True)]
    refused = await scene.issue("a.example")
    await scene.plane.order_runner.run_once()
    waiting = await scene.issue("b.example")
    for row in (refused, waiting):
        changed = await scene.plane.certificates.change(1, row["id"], issuer="builtin")
        assert (changed["status"], changed["order_state"]) == ("pending", "ready")
    assert await scene.plane.order_runner.run_once() == 2
    for row in (refused, waiting):
        done = await scene.certificate(row["id"])
        assert (done["status"], done["issuer"]) == ("active", "builtin")


async def test_a_clock_that_was_set_back_delays_no_order(scene: Scene) -> None:
    row = await scene.issued()
    scene.now += 365 * DAY
    await scene.plane.certificates.renew(1, row["id"])
    scene.ca.script = [IssuerError("down")]
    assert await scene.plane.order_runner.run_once() == 1
    scene.now -= 365 * DAY
    assert await scene.plane.order_runner.run_once() == 1
    assert (await scene.certificate(row["id"]))["serial_number"] != row["serial_number"]


async def test_a_clock_that_was_set_back_keeps_no_claim_of_a_plane_that_ended(scene: Scene) -> None:
    row = await scene.issued()
    await scene.plane.certificates.renew(1, row["id"])
    scene.now += DAY
    assert (await scene.plane.work(scene.plane.order_runner._claim, 10))[0] != [], "and then it is killed"
    scene.now -= DAY
    assert await scene.another().order_runner.run_once() == 1


async def test_an_order_that_cannot_be_begun_harms_no_other_order(
    scene: Scene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await scene.issue("a.example"), await scene.issue("b.example")

    def new_request(key_type: str, names: tuple[str, ...], must_staple: bool, old_key: bytes) -> tuple[bytes, bytes]:
        if "a.example" in names:
            raise AssertionError
        return requests.new_request(key_type, names, must_staple, old_key)

    with monkeypatch.context() as patch:
        patch.setattr("certctrl.plane.orders.attempts.new_request", new_request)
        assert await scene.plane.order_runner.run_once() == 2
    assert "order 1 cannot be begun: unexpected AssertionError" in caplog.text
    assert [(await scene.certificate(row["id"]))["status"] for row in (first, second)] == ["pending", "active"]
    scene.now += LEASE_SECONDS + 1
    assert await scene.plane.order_runner.run_once() == 1
    assert (await scene.certificate(first["id"]))["status"] == "active"


def test_an_old_key_of_another_type_is_replaced() -> None:
    key = ed448.Ed448PrivateKey.generate().private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    made, csr = requests.new_request("ecdsa-p256", ("a.example",), False, key)
    assert made != key
    assert x509.load_der_x509_csr(csr).is_signature_valid


async def test_a_refused_renewal_of_a_short_life_is_tried_again_before_its_end(scene: Scene) -> None:
    row = await scene.issued(validity_seconds=86_400)
    order_id = (await scene.plane.certificates.renew(1, row["id"]))["order_id"]
    scene.now += DAY / 2
    tries = 0
    while scene.now < WALL + DAY:
        scene.ca.script = [IssuerError("forbidden", is_permanent=True)]
        assert await scene.plane.order_runner.run_once() == 1
        due = await scene.plane.work(scene.plane.database.one, "SELECT next_at FROM orders WHERE id = ?", order_id)
        assert due is not None
        assert due["next_at"] > scene.now + FIRST_PAUSE
        scene.now, tries = due["next_at"] + 1, tries + 1
    assert 5 < tries < 30
    for _ in range(10):
        scene.ca.script = [IssuerError("forbidden", is_permanent=True)]
        scene.now += DAY
        assert await scene.plane.order_runner.run_once() == 1
    due = await scene.plane.work(scene.plane.database.one, "SELECT next_at FROM orders WHERE id = ?", order_id)
    assert due is not None
    assert due["next_at"] >= scene.now + REFUSED_PAUSE / 2, "and not so often after its end"


async def test_what_a_ca_has_issued_outlives_a_database_that_is_away_for_longer_than_a_claim(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    from certctrl.plane.errors import DatabaseAwayError

    for name, seconds in (("STORE_PAUSE", 0.01), ("LEASE_SECONDS", 0.2), ("EXTEND_SECONDS", 0.1)):
        monkeypatch.setattr(f"certctrl.plane.orders.runner.{name}", seconds)
    work, returns = scene.plane.database.work_long, 0.0

    async def flaky(unit: Any, *args: Any, **kwargs: Any) -> Any:
        if trio.current_time() < returns:
            raise DatabaseAwayError("away")
        return await work(unit, *args, **kwargs)

    async def issue(request: CertificateRequest) -> IssuedChain:
        nonlocal returns
        returns = trio.current_time() + 0.8
        return scene.ca.signed(request)

    row = await scene.issue()
    monkeypatch.setattr(scene.plane.database, "work_long", flaky)
    scene.ca.script = [issue]
    with trio.fail_after(30):
        assert await scene.plane.order_runner.run_once() == 1
    assert (await scene.certificate(row["id"]))["status"] == "active"
    assert len(scene.ca.requests) == 1
    assert scene.plane.order_runner._unstored == set()
