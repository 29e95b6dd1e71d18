"""Items that this version cannot carry out: the others run, and the outcome for the plane names those that did not."""

from __future__ import annotations

from install_host import APPLIED, FAILED, RELOAD, Host, commands, reload
from trio.testing import MockClock
from wire_items import installs_hash

from certctrl.install.plan.render import plan_text
from certctrl.model.plan import InstallItem
from certctrl.protocol.wire.install_config import install_config_from_wire, items_from_local

STARTTLS = {"type": "tls", "host": "127.0.0.1", "port": 1, "starttls": "telnet"}


def planes(*rows: dict[str, object]) -> tuple[InstallItem, ...]:
    """Return items as the plane sends them."""
    data = {"id": 1, "version": 1, "installs": list(rows), "installs_hash_b64": installs_hash(list(rows))}
    return install_config_from_wire(data).items


async def test_a_refused_item_of_a_certificate_fails_it_and_the_others_run(clock: MockClock, host: Host) -> None:
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    items = [*reload(1), *planes({"id": "probe", "type": "copy", "ob_id": 1, "from": ["meta.json"], "to": ["/x"],
                                  "verify": STARTTLS})]  # fmt: skip
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is FAILED and "carry out item probe: verify.starttls: expected one of" in outcome.detail
    retry = host.installer.retries.of("cert:1")
    assert retry is not None and retry.last_error == outcome.detail, "shown by status"
    assert service.reloads == 1 and service.served == host.live(1)


async def test_a_refused_item_of_one_certificate_leaves_another_alone(clock: MockClock, host: Host) -> None:
    items = planes({"id": "new", "type": "reboot", "ob_type": "cert", "ob_id": 2})
    assert (await host.deliver(1, items=items))[1].kind is APPLIED
    outcome = (await host.deliver(2, items=items))[2]
    assert outcome.kind is FAILED and "carry out item new: type: unknown item type reboot" in outcome.detail
    assert host.live(2) == host.installer.records[2].facts.fingerprint_sha256


async def test_a_refused_item_of_no_certificate_is_in_the_plan(clock: MockClock, host: Host) -> None:
    after = {"id": "after", "type": "copy", "ob_id": 1, "from": ["meta.json"], "to": [str(host.out / "m")]}
    items = planes({"id": "new", "type": "reboot"}, after | {"depends_on": ["new"]})
    text = plan_text(await host.installer.plan(items))
    assert "! refused  carry out item new: type: unknown item type reboot" in text
    assert "! left out item after: depends on item new, which is left out" in text


async def test_a_refused_local_item_leaves_the_other_local_ones_alone(clock: MockClock, host: Host) -> None:
    strange = {"id": "probe", "type": "copy", "ob_id": 2, "from": ["meta.json"], "to": [str(host.out / "p")]}
    good = {"id": "good", "type": "copy", "ob_id": 1, "from": ["meta.json"], "to": [str(host.out / "m")]}
    after = {"id": "after", "type": "copy", "ob_id": 2, "from": ["ca.pem"], "to": ["/x"], "depends_on": ["probe"]}
    items = items_from_local([strange | {"verify": STARTTLS}, good, after])
    outcomes = await host.deliver(1, 2, items=items)
    assert outcomes[1].kind is APPLIED and (host.out / "m").exists()
    assert outcomes[2].kind is FAILED and "carry out item local:probe: verify.starttls" in outcomes[2].detail
    assert not (host.out / "p").exists()
