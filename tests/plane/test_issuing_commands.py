"""`cert-ctrl plane issuers|orders|issue --issuer`: each against a real plane with a program as its CA."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
from plane_commands import Cli, PlaneSite, served_plane

from certctrl.errors import ExitStatus
from certctrl.plane.commands import DIRECTORIES_VARIABLE

pytestmark = pytest.mark.integration

PROGRAM = """#!{python}
import os, sys, time
from pathlib import Path
from cryptography import x509
from certctrl.plane.ca.x509 import new_intermediate, new_root, pem_of, sign_leaf

home = Path(sys.argv[1])
script = (home / "script").read_text().split() if (home / "script").exists() else []
if sys.argv[2] == "check":
    print("keys left: 7" if not script else script[0])
    sys.exit(1 if script and script[0] == "refuse" else 0)
if script:
    (home / "script").write_text(" ".join(script[1:]))
    print(script[0], file=sys.stderr)
    if script[0] == "slow":
        time.sleep(60)
    sys.exit({{"refuse": 65, "wait": 75, "fail": 1}}[script[0]])
csr = x509.load_pem_x509_csr(sys.stdin.buffer.read())
now = time.time()
root = new_root("program", not_before=now - 60, not_after=now + 1e6)
ca = new_intermediate(root, "program CA", not_before=now - 60, not_after=now + 1e6)
names = os.environ["CERTCTRL_NAMES"].split()
print(pem_of(sign_leaf(ca, csr.public_key(), names, not_before=now - 60, not_after=now + 3600)) + ca.pem)
"""


@attrs.define
class Site(PlaneSite):
    """A plane whose CA is a program that follows a script."""

    home: Path

    def script(self, *steps: str) -> None:
        (self.home / "script").write_text(" ".join(steps))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, Path]]:
    """The plane's data directory, its URL, and the directory of the program."""
    home = tmp_path_factory.mktemp("ca")
    (home / "ca").write_text(PROGRAM.format(python=sys.executable))
    (home / "ca").chmod(0o755)
    data = tmp_path_factory.mktemp("plane") / "data"
    with served_plane(data, **{DIRECTORIES_VARIABLE: str(home)}) as url:
        yield data, url, home


@pytest.fixture
def site(served: tuple[Path, str, Path], cli: Cli) -> Site:
    data, url, home = served
    site = Site(data, url, cli, home)
    site.script()
    if "house" not in [row["name"] for row in site("issuers", "list", "--json").json]:
        command = json.dumps([str(site.home / "ca"), str(site.home)])
        added = site("issuers", "add", "house", "--kind", "command", "--set", f"command={command}")
        assert (added.status, "added issuer house (command)" in added.out) == (0, True), added
        assert "keys left: 7" in added.out
    return site


def test_issue_renew_and_change_of_the_issuer(site: Site) -> None:
    row = site("issue", "www.shop.example", "--issuer", "house", "--json").json
    assert (row["status"], row["issuer"], row["order_id"]) == ("active", "house", None)
    assert "serial" in site("renew", "www.shop.example").out
    assert "is renewed by issuer builtin" in site("set-issuer", "www.shop.example", "builtin").out
    assert site("renew", "www.shop.example", "--json").json["status"] == "done"
    shown = {found["id"]: found for found in site("certificates", "--json").json}
    assert shown[row["id"]]["issuer"] == "builtin"
    assert "builtin" in site("certificates").out


def test_a_refusal_is_told_in_one_line(site: Site) -> None:
    site.script("refuse")
    result = site("issue", "refused.example", "--issuer", "house")
    assert result.status == ExitStatus.FAILED
    assert result.err.splitlines()[0].startswith("cert-ctrl: error: order ")
    assert "ended with status 65: refuse" in result.err.splitlines()[0]
    assert result.err.splitlines()[1].startswith("fix: run it by hand")
    (order,) = [
        row for row in site("orders", "list", "--all", "--json").json if row["domain_name"] == "refused.example"
    ]
    assert order["state"] == "failed"
    assert "refuse" in site("orders", "list", "--all").out
    assert "state: failed" in site("orders", "show", str(order["id"])).out
    assert "is issued" in site("orders", "retry", str(order["id"])).out


def test_orders_can_wait_be_tried_and_cancelled(site: Site) -> None:
    site.script("fail", "fail")
    row = site("issue", "later.example", "--issuer", "house", "--no-wait", "--json").json
    assert row["status"] == "pending"
    order = str(row["order_id"])
    assert wait_until(lambda: site("orders", "show", order, "--json").json["problem"])
    assert "later.example" in site("orders", "list").out
    assert [row["id"] for row in site("orders", "list", "--issuer", "house", "--problems", "--json").json] == [
        int(order)
    ]
    assert site("orders", "list", "--certificate", "later.example", "--after-id", order, "--json").json == []
    misspelt = site("orders", "list", "--issuer", "hose", "--json")
    assert (misspelt.json, misspelt.err) == ([], "note: no order has 'hose'; did you mean house?\n")
    first = site("orders", "list", "--all", "--limit", "1", "--json")
    assert (len(first.json), first.err) == (1, f"note: there may be more: add --after-id {first.json[0]['id']}\n")
    shown = site("orders", "retry", order, "--no-wait", "--json").json
    assert shown["id"] == row["order_id"]
    assert wait_until(lambda: site("orders", "show", order, "--json").json["attempts"] == 2)
    assert "is cancelled" in site("orders", "cancel", order).out
    assert site("orders", "cancel", order).status == ExitStatus.FAILED
    assert order not in [str(found["id"]) for found in site("orders", "list", "--json").json]


def test_an_interrupt_ends_the_wait_but_not_the_order(site: Site) -> None:
    site.script("fail")
    argv = [sys.executable, "-m", "certctrl", "plane", "issue", "--data", str(site.data), "stopped.example"]
    interruptible = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
    process = subprocess.Popen(
        [*argv, "--issuer", "house"], stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    )
    assert process.stderr is not None
    noted = process.stderr.readline()
    assert noted.startswith("note: order ") and "next attempt at" in noted, noted
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(20) == ExitStatus.INTERRUPTED
    order = noted.split()[2]
    assert f"note: order {order} continues; see cert-ctrl plane orders show {order}" in rest
    assert "is issued" in site("orders", "retry", order).out


def test_a_failed_attempt_is_noted_with_what_to_do(site: Site) -> None:
    site.script("fail")
    noted = site("issue", "again.example", "--issuer", "house").err.splitlines()
    assert "next attempt at" in noted[0], noted
    fix = site("orders", "list", "--all", "--json").json[-1]["fix"]
    assert fix == "" or noted[1] == f"fix: {fix}", noted
    assert noted[1].startswith("fix: "), noted


def test_a_certificate_without_a_device_for_its_key_is_not_called_ordered(site: Site) -> None:
    said = site("issue", "nowhere.example", "--key", "device").out
    assert said.startswith("recorded certificate ") and "cert-ctrl plane assign " in said, said
    assert "nowhere.example" not in site("orders", "list", "--all").out


def test_unknown_and_known_issuers_are_refused_with_what_to_do(site: Site) -> None:
    for argv in (("issue", "x.example", "--issuer", "nobody"), ("issuers", "show", "nobody")):
        assert "There is no issuer 'nobody'; see plane issuers list" in site(*argv).err
    assert "change it with --replace" in site("issuers", "add", "house", "--kind", "command").err
    assert "choose another name" in site("issuers", "add", "house", "--kind", "acme").err


def test_rules_choose_the_issuer(site: Site) -> None:
    assert "rule.example" in site("issuers", "rule", "rule.example", "house").out
    assert site("issue", "www.rule.example", "--json").json["issuer"] == "house"
    assert site("issue", "www.rule.example", "--issuer", "builtin", "--json").json["issuer"] == "builtin"
    assert site("issuers", "rule", "rule.example", "nobody").status == ExitStatus.USAGE
    assert "rule.example" not in site("issuers", "rule", "rule.example", "--remove").out
    assert site("issuers", "rule", "rule.example", "--remove").status == ExitStatus.FAILED
    assert site("issuers", "rule", "rule.example").status == ExitStatus.USAGE


def test_issuers_are_listed_with_their_health_and_removed_if_unused(site: Site) -> None:
    listed = site("issuers", "list").out
    assert "keys left: 7" in listed and "OK" in listed
    site.script("refuse")
    checked = site("issuers", "check", "house")
    assert (checked.status, "problem: " in checked.err) == (ExitStatus.UNAVAILABLE, True)
    assert "failed" in site("issuers", "list").out
    site.script()
    assert site("issuers", "check", "house").status == 0
    assert 'command = ["' in site("issuers", "show", "house").out
    assert site("issuers", "show", "nobody").status == ExitStatus.FAILED
    command = json.dumps([str(site.home / "ca"), str(site.home)])
    site("issuers", "add", "other", "--kind", "command", "--set", f"command={command}")
    row = site("issue", "used.example", "--issuer", "other", "--json").json
    refused = site("issuers", "remove", "other")
    assert (refused.status, "Issuer other renews 1 certificate:" in refused.err) == (ExitStatus.FAILED, True)
    site("set-issuer", str(row["id"]), "builtin")
    assert "removed issuer other" in site("issuers", "remove", "other").out


def test_secrets_come_from_files_that_others_cannot_read(site: Site, tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("very secret\n")
    command = json.dumps([str(site.home / "ca"), str(site.home)])
    add = ("issuers", "add", "keyed", "--kind", "command", "--set", f"command={command}")
    secret.chmod(0o644)
    refused = site(*add, "--secret", f"token={secret}")
    assert (refused.status, "readable by other users" in refused.err) == (ExitStatus.USAGE, True)
    mistaken = site(*add, "--secret", "token=very secret")
    assert (mistaken.status, "very secret" in mistaken.err) == (ExitStatus.USAGE, False)
    secret.chmod(0o600)
    shown = site(*add, "--secret", f"token={secret}", "--json").json
    assert (shown["secrets"], "very secret" in json.dumps(shown)) == (["token"], False)
    assert "secret token is set" in site("issuers", "show", "keyed").out
    assert site("issuers", "remove", "keyed").status == 0


def test_a_secret_comes_from_standard_input(site: Site) -> None:
    command = json.dumps([str(site.home / "ca"), str(site.home)])
    argv = [sys.executable, "-m", "certctrl", "plane", "issuers", "add", "piped", "--kind", "command"]
    argv += ["--data", str(site.data), "--set", f"command={command}", "--secret", "token=-"]
    done = subprocess.run(argv, input=b"very secret\n", capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert site("issuers", "show", "piped", "--json").json["secrets"] == ["token"]
    twice = site("issuers", "add", "x", "--kind", "command", "--secret", "a=-", "--secret", "b=-")
    assert (twice.status, "once only" in twice.err) == (ExitStatus.USAGE, True)
    assert site("issuers", "remove", "piped").status == 0


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["--kind", "command", "--set", "command=/bin/true"], "is not a program that the control plane may run"),
        (["--kind", "nothing"], "The kind of an issuer is one of"), (["--kind", "command", "--set", "x"], "KEY=VALUE"),
        (["--kind", "command", "--settings", "/absent"], "cannot read"), (["--kind", "command", "--secret", "x"], "KEY=FILE"),
    ],
)  # fmt: skip
def test_mistakes_are_told(site: Site, argv: list[str], what: str) -> None:
    result = site("issuers", "add", "wrong", *argv)
    assert (result.status, what in result.err) == (ExitStatus.USAGE, True), result.err


def wait_until(condition: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
