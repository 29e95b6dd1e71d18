"""Rollouts over many real agents, watched in a real browser: one to its end, another to its halt and beyond.

``nox -s watched`` watches fifty agents; the default run has a sample of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Person
from fleet import Fleet, run_cli
from rollout_watcher import View, Watcher
from watched_hosts import DOMAIN, PATIENCE, Host, Site

from certctrl.text import counted

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]
AGENTS = int(os.environ.get("CERTCTRL_TEST_WATCHED", "8"))
PICTURES = os.environ.get("CERTCTRL_TEST_PICTURES", "")
LOCKED = "changes are locked on this host: database migration, ask lin"


@pytest.fixture(scope="module")
def site(shared_fleet: Fleet, need: Callable[[str], str]) -> Iterator[Site]:
    """Yield hosts that serve their first certificate."""
    yield Site(shared_fleet, AGENTS, need("nginx"))


@pytest.fixture
def watch(start_browser: Callable[..., Any], site: Site, tmp_path: Path) -> Callable[[str, int], Watcher]:
    """``watch(name, rollout_id)`` signs an operator in at the page of a rollout."""

    def begin(name: str, rollout_id: int) -> Watcher:
        pictures = Path(PICTURES) if PICTURES else tmp_path
        browser = start_browser()
        browser.set_page_load_timeout(PATIENCE)
        browser.set_script_timeout(PATIENCE)
        person = Person(browser, pictures, name, PATIENCE)
        url = f"{site.plane.url}/fleet/rollouts/{rollout_id}"
        person.open(url)
        person.type((site.plane.data / "operator.key").read_text().strip())
        watcher = Watcher(person, pictures, name, url)
        watcher.open()
        return watcher

    return begin


def renew(site: Site, *rules: str) -> int:
    """Start a rollout of the renewal of the certificate, as an operator does; return its id."""
    rules = ("--canary", "canary", *rules)
    done = run_cli("plane", "renew", "--data", site.plane.data, DOMAIN, "--json", *rules)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["id"])


def let_go(hosts: list[Host]) -> None:
    for host in hosts:
        host.let_go()


def waits(view: View, count: int, wave: int) -> bool:
    """Return whether the page says that the next wave waits for so many devices."""
    return view.says == f"Waits for the proof of {counted(count, 'device')} of wave {wave}"


def serves(hosts: list[Host], serial: str) -> None:
    """Check handshakes and files of hosts."""
    assert {host.name: (host.served(), host.on_disk()) for host in hosts} == {
        host.name: (serial, serial) for host in hosts
    }


def share(percent: int) -> int:
    return -(-AGENTS * percent // 100)


def test_to_its_end(site: Site, watch: Callable[[str, int], Watcher]) -> None:
    first, second, rest = waves = site.waves([share(10)])
    former = site.serial()
    for host in site.hosts:
        host.hold()
    page = watch("end", renew(site, "--rollout", "10%"))
    view = page.sees(lambda view: waits(view, 1, 1), "the canary is under way")
    assert [wave.name for wave in view.waves] == ["Wave 1, canary", "Wave 2", "Wave 3, the rest"]
    assert [wave.devices for wave in view.waves] == [len(wave) for wave in waves]
    assert view.names("released") == {site.canary.name} and view.total("held") == AGENTS - 1
    assert view.buttons == ["Pause…", "Abort…"]
    page.pictures("canary")
    serves(second + rest, former)
    let_go(first)

    view = page.sees(lambda view: waits(view, len(second), 2), "the second wave is under way")
    assert view.names("released") == {host.name for host in second}
    assert [wave.state for wave in view.waves] == ["proven", "released", "held"]
    serves(first, renewed := site.serial())
    serves(rest, former)
    let_go(second[1:])
    if second[1:]:
        page.sees(lambda view: waits(view, 1, 2), "the last of the second wave is under way")
        serves(rest, former)
    page.pictures("second")
    let_go(second)

    view = page.sees(lambda view: waits(view, len(rest), 3), "the rest is under way")
    assert view.explains == "No device is held: it is done when these have reported."
    half = rest[: len(rest) // 2]
    let_go(half)
    view = page.sees(lambda view: waits(view, len(rest) - len(half), 3), "half of the rest has proven it")
    assert view.waves[2].counts == {"proven": len(half), "released": len(rest) - len(half)}
    serves(first + second + half, renewed)
    page.pictures("half")
    let_go(rest)

    view = page.sees(lambda view: view.state == "done", "the end")
    assert view.says == "Done" and view.explains == f"{AGENTS} devices proved the change."
    assert [wave.counts for wave in view.waves] == [{"proven": len(wave)} for wave in waves]
    assert view.devices == [] and view.buttons == []
    page.pictures("done")
    serves(site.hosts, renewed)
    assert page.person.complaints() == []


def test_to_its_halt(site: Site, watch: Callable[[str, int], Watcher]) -> None:
    first, second, third, rest = site.waves([share(10), share(40)])
    locked, down = third[:2], third[2]
    good = third[3:]
    former = site.serial()
    for host in first + good + rest:
        host.hold()
    for host in locked:
        host.lock("database migration, ask lin")
    down.stop_nginx()
    page = watch("halt", renew(site, "--rollout", "10%,40%", "--max-failures", "2"))

    view = page.sees(lambda view: waits(view, 1, 1), "the canary is under way")
    assert view.explains.startswith(
        "The next wave goes out when all before it have proven the change, or have failed within the limit of 2."
    )
    let_go(first)
    view = page.sees(lambda view: view.state == "halted", "the halt")
    assert view.says == "Halted: 3 devices failed, 2 may fail" and "3 devices fail at present" in view.explains
    assert view.buttons == ["Resume…", "Abort…"]
    failed = {device[0]: device[3] for device in view.devices if device[1] == "failed"}
    assert set(failed) == {host.name for host in third[:3]}
    assert all(LOCKED in failed[host.name] for host in locked)
    assert "the service is not running" in failed[down.name]
    assert [wave.state for wave in view.waves] == ["proven", "proven", "halted", "held"]
    page.pictures("halted")
    renewed = site.serial()
    serves(first + second, renewed)
    serves(rest + locked, former)
    assert (down.served(), down.on_disk()) == (
        "",
        renewed,
    )  # it has nothing to lose: it reads the new files when it starts

    let_go(good)  # what was released goes on, and is seen
    view = page.sees(lambda view: not view.total("released"), "all that were released have reported")
    assert view.state == "halted" and view.names("failed") == {host.name for host in third[:3]}
    serves(good, renewed)
    down.start_nginx()  # one host is repaired, and tried again from its page
    person = page.person
    person.open(f"{site.plane.url}/fleet/devices/{down.agent.device_id}")
    person.press("Try again now")
    page.open()
    view = page.sees(lambda view: view.total("failed") == 2, "the repaired host has proven it")
    assert view.names("failed") == {host.name for host in locked} and "2 devices fail at present" in view.explains
    serves([down], renewed)
    serves(rest, former)
    page.pictures("repaired")

    with person._new_page():
        person.browser.find_element("link text", "Resume…").click()
    asked = person.text()
    assert "2 devices failed:" in asked and all(f"{host.name}: " in asked for host in locked) and LOCKED in asked
    person.browser.find_element("id", "read").click()
    page.pictures("resume")
    person.press("Resume it")
    page.mark()
    view = page.sees(lambda view: view.state == "running" and view.total("released") == len(rest), "the rest")
    assert view.total("accepted") == 2 and "Resumed." in person.text()
    let_go(rest)
    view = page.sees(lambda view: view.state == "done", "the end")
    assert view.explains == f"{AGENTS - 2} devices proved the change, 2 failed and were accepted."
    assert view.names("accepted") == {host.name for host in locked}
    assert [wave.state for wave in view.waves] == ["proven", "proven", "settled", "proven"]
    assert "Resumed." not in person.text()
    page.pictures("done")
    serves(first + second + good + rest + [down], renewed)
    serves(locked, former)
    assert person.complaints() == []
