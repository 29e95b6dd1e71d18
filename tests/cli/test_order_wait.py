"""Waiting for an order: what it waits for is said once, and the wait is bounded. The clock is virtual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from certctrl.cli.plane import orders
from certctrl.cli.plane.orders import MAX_ANSWER_SECONDS, MAX_CSR_SECONDS, NOTE_SECONDS, OrderError
from certctrl.errors import ExitStatus

ROW: dict[str, Any] = {
    "id": 7, "cert_id": 3, "domain_name": "www.example", "issuer": "le", "action": "issue", "state": "ready",
    "attempts": 1, "problem": "", "fix": "", "next_at": None,
}  # fmt: skip


@attrs.define
class Api:
    """The answers of a plane; ``row`` returns the order after so many seconds."""

    row: Callable[[float], dict[str, Any]]
    device: dict[str, Any] = attrs.field(factory=lambda: {"name": "web-1", "last_seen_at": "2026-11-29T10:00:00Z"})
    device_ids: list[int] = attrs.field(factory=lambda: [5])
    began: float = attrs.field(factory=trio.current_time)

    async def call(self, method: str, path: str) -> Any:
        answers = {"certificates/3": {"device_ids": self.device_ids}, "devices/5": self.device}
        return answers[path] if path in answers else ROW | self.row(trio.current_time() - self.began)


async def follow(api: Api, *, is_explained: bool = True) -> dict[str, Any]:
    return await orders._follow(api, 7, 0, lambda text: None, is_explained=is_explained)  # type: ignore[arg-type]


async def test_a_device_that_is_down_is_named(autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]) -> None:
    api = Api(lambda seconds: {"state": "csr_wanted", "attempts": 0})
    with pytest.raises(OrderError, match="waits for the key of a device") as caught:
        await follow(api)
    assert MAX_CSR_SECONDS <= trio.current_time() - api.began <= MAX_CSR_SECONDS + 10
    assert (caught.value.exit_status, "orders show 7" in (caught.value.fix or "")) == (ExitStatus.UNAVAILABLE, True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "note: order 7 for www.example waits up to 120 s for the key of device web-1 (last seen 2026-11-29T10:00:00Z);"
        " check that its agent runs; cert-ctrl plane orders show 7"
    )


@pytest.mark.parametrize(("name", "said"), [("web\x1b[2J", "of device web"), ("", "of its device (")])
async def test_the_name_of_a_device_is_one_line_of_text(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    api = Api(lambda seconds: {"state": "csr_wanted", "attempts": 0}, {"name": name, "last_seen_at": None})
    with pytest.raises(OrderError):
        await follow(api)
    (line,) = capsys.readouterr().err.splitlines()
    assert (said in line, "(never seen)" in line, "\x1b" in line) == (True, True, False)


async def test_a_ca_that_hangs_is_named_and_not_waited_for_all_day(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    api = Api(lambda seconds: {})
    with pytest.raises(OrderError, match="still waits for issuer le, and continues") as caught:
        await follow(api)
    assert MAX_ANSWER_SECONDS <= trio.current_time() - api.began <= MAX_ANSWER_SECONDS + 10
    assert (caught.value.exit_status, caught.value.fix) == (
        ExitStatus.UNAVAILABLE, "cert-ctrl plane issuers check le; cert-ctrl plane orders show 7",
    )  # fmt: skip
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "note: order 7 for www.example waits up to 10 min for an answer of issuer le;"
        " cert-ctrl plane issuers check le; cert-ctrl plane orders show 7"
    )


async def test_each_step_has_its_own_time(autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]) -> None:
    """The issuer gets its time after the device has taken its own."""

    def row(seconds: float) -> dict[str, Any]:
        if seconds < 100:
            return {"state": "csr_wanted", "attempts": 0}
        if seconds < 110:
            return {"attempts": 0}
        return {} if seconds < 110 + MAX_ANSWER_SECONDS - 20 else {"state": "done"}

    assert (await follow(Api(row)))["state"] == "done"
    device, turn, issuer = capsys.readouterr().err.splitlines()
    assert "for the key of device web-1" in device
    assert "waits for its turn" in turn
    assert "issuer le" in issuer


@pytest.mark.parametrize(("seconds", "is_explained"), [(NOTE_SECONDS - 3, True), (60, False)])
async def test_a_short_wait_and_a_shown_one_are_not_explained(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str], seconds: float, is_explained: bool
) -> None:
    api = Api(lambda passed: {} if passed < seconds else {"state": "done"})
    await follow(api, is_explained=is_explained)
    assert capsys.readouterr().err == ""


async def test_what_an_attempt_failed_with_says_enough(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = {"problem": "the CA is down", "fix": "wait", "next_at": None}
    api = Api(lambda passed: failed if passed < 60 else {"state": "done"})
    await follow(api)
    note, fix = capsys.readouterr().err.splitlines()
    assert "the CA is down" in note
    assert fix == "fix: wait"
