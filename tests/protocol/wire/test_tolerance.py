"""The table of tolerances in docs/protocol.md: each row has a test, here or in a file that is named here."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest
from wire_answers import SIGNAL, answer, error
from wire_items import CA, COPY, EXEC, config, one, refusal

from certctrl.errors import PlaneError
from certctrl.model.plan import ExecAction, Outcome, OutcomeKind, UnknownAction, VerifyCommand
from certctrl.model.signals import CertRenewed, InstallUpdated, identity
from certctrl.protocol.device_flow import GrantDenied, GrantExpired, GrantPending, GrantUnusable
from certctrl.protocol.events import BadAnswer, NoUpdates, TokenExpired, Updates
from certctrl.protocol.wire.certificates import certificate_from_wire, materials_from_wire
from certctrl.protocol.wire.device_grant import grant_event
from certctrl.protocol.wire.install_config import install_config_from_wire
from certctrl.protocol.wire.poll import cursor_of_etag, poll_event
from certctrl.protocol.wire.signals import ack_event, signal_from_wire

ROOT = Path(__file__).resolve().parents[3]
ROWS: dict[str, Callable[[], None] | str] = {
    "refresh": "tests/net/test_control_plane_enrol.py",
    "materials, path": "tests/net/test_control_plane_certs.py",
    "materials, schemes": "tests/protocol/wire/test_certificates.py",
    "materials, keys": "tests/install/material/test_bundle.py",
    "materials, PEM fields": "tests/net/test_control_plane_certs.py",
    "absent endpoints": "tests/net/test_control_plane.py tests/net/test_control_plane_certs.py",
    "renewal request": "tests/net/test_control_plane_certs.py",
}
DONE = Outcome(kind=OutcomeKind.APPLIED)
ZERO_HASH = base64.b64encode(bytes(32)).decode()


def row(where: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register the test of one row, by the row's first column."""

    def register(check: Callable[[], None]) -> Callable[[], None]:
        ROWS[where] = check
        return check

    return register


@row("device grant, status")
def _grant_status() -> None:
    for status, event in (("pending", GrantPending()), ("denied", GrantDenied()), ("expired_token", GrantExpired())):
        assert grant_event(answer(200, {"data": {"status": status}})) == event
        assert grant_event(error(400, status)) == event


@row("device grant, approval")
def _grant_approval() -> None:
    for more in ({}, {"registration_code": ""}, {"registration_code": "x", "user_id": 0}):
        event = grant_event(answer(200, {"data": {"status": "ready", "user_id": 14} | more}))
        assert isinstance(event, GrantUnusable) and "approved" in event.why


@row("updates, nothing new")
def _no_signals() -> None:
    for data in ({"cursor": "c"}, {"cursor": "c", "signals": []}, {"cursor": "c", "signals": None}):
        assert isinstance(poll_event(answer(200, {"data": data}), 20), NoUpdates)


@row("updates, cursor")
def _cursor() -> None:
    for data in ({"signals": [SIGNAL]}, {"signals": [SIGNAL], "cursor": None}):
        event = poll_event(answer(200, {"data": data}, etag='W/"c9"'), 20)
        assert isinstance(event, Updates) and event.cursor == "c9"
    assert {cursor_of_etag(etag) for etag in ("c9", '"c9"', 'W/"c9"')} == {"c9"}


@row("updates, page")
def _page() -> None:
    def page(count: int) -> object:
        signals = [SIGNAL | {"ref": {"cert_id": n + 1}} for n in range(count)]
        return poll_event(answer(200, {"data": {"cursor": "c", "signals": signals}}), 20)

    full = page(1000)
    assert isinstance(full, Updates) and len(full.signals) == 1000
    for count in (1001, 5000):
        assert page(count) == BadAnswer("data.signals: more than 1000 items", status=200)


@row("signals, alias")
def _alias() -> None:
    sent = {"type": "cert.updated", "ts_ms": 5, "ref": {"cert_id": "7", "serial": "", "reason": "renewal"}}
    signal = signal_from_wire(sent)
    assert signal == CertRenewed(5, 7) and identity(signal) == "cert.renewed|cert_id=7|5"
    assert ack_event(signal, DONE, 1)["signal"] == sent
    assert ack_event(signal_from_wire(ack_event(signal, DONE, 1)["signal"]), DONE, 1)["signal"] == sent


@row("signals, `install.updated`")
def _install_updated() -> None:
    for ref in ({}, {"version": 3}, {"config_id": 0}):
        sent = {"type": "install.updated", "ts_ms": 5, "ref": ref}
        signal = signal_from_wire(sent)
        assert signal == InstallUpdated(5, ref.get("config_id"), ref.get("version"))
        assert ack_event(signal, DONE, 1)["signal"] == sent


@row("numbers")
def _numbers() -> None:
    assert certificate_from_wire({"id": "7", "domain_name": "a"}).id == 7
    found = install_config_from_wire(config([COPY | {"ob_id": "7"}], id="9", version="6"))
    assert (found.id, found.version, found.items[0].ob_id) == (9, 6, 7)


@row("times")
def _times() -> None:
    for time in (1_700_000_000, 1_700_000_000_000, 1_700_000_000_999):
        assert install_config_from_wire(config([], updated_at=time)).updated_at == "2023-11-14T22:13:20Z"
        assert certificate_from_wire({"id": 1, "domain_name": "a", "not_after": time}).not_after[:10] == "2023-11-14"


@row("unset values")
def _unset() -> None:
    bare = {"id": 1, "type": "exec", "cmd_argv": ["/x"]}
    for blank in (None, "", []):
        unset = dict.fromkeys(("cmd", "env", "verify", "depends_on"), blank)
        assert one(bare | unset | {"ob_id": 0, "run_as": None, "ob_name": ""}) == one(bare)


@row("install config, none")
def _no_config() -> None:
    for more in ({}, {"installs_hash": ""}, {"installs_hash_b64": None}, {"installs": []}, {"installs": None}):
        for version in (0, 4):
            found = install_config_from_wire({"id": 0, "version": version} | more)
            assert found.absent and not found.items
    assert install_config_from_wire(config([], version=0)).absent
    assert not install_config_from_wire(config([], id=0, version=1)).absent
    assert not install_config_from_wire(config([CA], version=0)).absent
    assert refusal({"id": 0, "version": 0, "installs": [CA]}).reason == "hash"
    assert refusal({"id": 0, "version": 0, "installs": [], "installs_hash": ZERO_HASH}).reason == "hash"


@row("install config, id and time")
def _config_without_id() -> None:
    for more in ({"id": None}, {"id": ""}, {"updated_at": "last week"}, {"updated_at": []}, {"updated_at": -1}):
        found = install_config_from_wire(config([COPY]) | more)
        assert (found.id, len(found.items)) == (0 if "id" in more else 9, 1)


@row("install config, hash")
def _config_hash() -> None:
    data = config([COPY])
    digest = data.pop("installs_hash_b64")
    for spelling in (digest, digest.rstrip("="), digest.replace("+", "-").replace("/", "_")):
        assert install_config_from_wire(data | {"installs_hash": spelling}).items


@row("items, unknown")
def _unknown_items() -> None:
    starttls = {"type": "tls", "host": "a", "port": 1, "starttls": "telnet"}
    strange = [CA | {"id": 4, "type": "reboot"}, EXEC | {"id": 5, "verify": {"type": "prayer"}}]
    strange += [EXEC | {"id": 6, "verify": starttls}, COPY | {"id": 7, "mode": {"key": "0600"}}]
    copy, unknown, command, probe, files = install_config_from_wire(config([COPY, *strange])).items
    assert not copy.refused
    assert isinstance(unknown, UnknownAction) and "unknown item type reboot" in unknown.refused
    assert isinstance(command, ExecAction) and "unknown verify type prayer" in command.refused
    assert "starttls" in probe.refused and "mode" in files.refused


@row("items, commands")
def _commands() -> None:
    assert one({"type": "exec", "cmd": ["/x", "y"]}) == one({"type": "exec", "cmd_argv": ["/x", "y"]})
    for command in ({"cmd": ["/check", "y"]}, {"cmd": ["/check", "y"], "cmd_argv": []}):
        assert one(EXEC | {"verify": {"type": "command"} | command, "depends_on": []}).verify == VerifyCommand(
            cmd_argv=("/check", "y")
        )


@row("items, copy")
def _copy_without_targets() -> None:
    for to in (None, "", []):
        item = one(COPY | {"to": to})
        assert (item.sources, item.targets, item.pairs, item.refused) == (tuple(COPY["from"]), (), (), "")  # type: ignore[arg-type]


@row("materials, pending")
def _pending() -> None:
    for blank in (bytes(48), bytes(80)):
        with pytest.raises(PlaneError) as caught:
            materials_from_wire({"enc_data_key_b64": base64.b64encode(blank).decode()})
        assert (caught.value.status, caught.value.key) == (409, "WRAP_PENDING")
    for sealed in ("", base64.b64encode(bytes(47) + b"\1").decode(), "!"):
        materials_from_wire({"enc_data_key_b64": sealed})


@row("401 without a body")
def _bearer_challenge() -> None:
    assert poll_event(answer(401, www_authenticate='Bearer realm="x"'), 20) == TokenExpired()
    assert isinstance(poll_event(answer(401), 20), BadAnswer)


@pytest.mark.parametrize("where", ROWS)
def test_a_row(where: str) -> None:
    check = ROWS[where]
    if callable(check):
        check()
    else:
        assert all((ROOT / path).exists() for path in check.split())


def test_every_row_has_a_test() -> None:
    section = (ROOT / "docs/protocol.md").read_text().partition("\n## Tolerance\n")[2]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in section.splitlines() if line.startswith("| ")]
    assert rows[1:] and sorted(rows[1:]) == sorted(ROWS)
