"""Certificates from an issuer are checked; a broken issuer or order does not affect other orders."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from issuer_scene import Scene
from scripted_issuer import WALL

from certctrl.plane.ca.x509 import new_intermediate, new_root
from certctrl.plane.issuers.issuer import CertificateRequest, IssuedChain
from certctrl.plane.orders import requests
from certctrl.plane.orders.runner import LEASE_SECONDS


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
