"""`adopt`: what it prints, when it asks, and that it writes two files and nothing else."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adopt_files import certificate, private_key
from helper_world import direct, rule, write_policy

from certctrl.cli import adopting
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

from .conftest import Ran, record

Run = Callable[..., Ran]
NAMES = ("www.example.com", "example.com")
SITE = """\
server {{
    listen 443 ssl;
    server_name www.example.com;
    ssl_certificate {tls}/c.pem;
    ssl_certificate_key {tls}/c.key;
}}
"""


class Host:
    """A configuration of nginx with one certificate."""

    def __init__(self, place: Path) -> None:
        self.place, self.tls, self.conf = place, place / "tls", place / "nginx.conf"
        self.tls.mkdir()
        (self.tls / "c.pem").write_bytes(certificate(*NAMES))
        (self.tls / "c.key").write_bytes(private_key())
        (self.tls / "c.key").chmod(0o600)
        self.conf.write_text("events {} http { include sites/*; }")
        (place / "sites").mkdir()
        (place / "sites" / "www").write_text(SITE.format(tls=self.tls))
        self.words = ("adopt", "--config", f"nginx={self.conf}", "--reload", "nginx=/bin/true reload")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def adopt(host: Host, layout: ConfigDir, ran: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``adopt("--yes")`` runs the command for that host, without a terminal."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return lambda *words: ran("-c", layout.root, *host.words, *words)


def tree(place: Path) -> dict[str, object]:
    """Return the contents, mode and owner of all files below a directory."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        facts = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (facts.st_mode, facts.st_uid, facts.st_mtime_ns if path.is_file() else 0, data)
    return found


def answers(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Answer the question on a terminal."""
    terminal = io.StringIO(text)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)


def items_in(layout: ConfigDir) -> list[dict[str, Any]]:
    return list(json.loads(layout.local_installs.read_text()))


@pytest.mark.parametrize(
    ("words", "status"), [(["--dry-run"], 0), ([], 2), (["--json", "--dry-run"], 0), (["--json"], 2)]
)
def test_nothing_is_written_without_consent(adopt: Run, host: Host, words: list[str], status: int) -> None:
    before = tree(host.place)
    done = adopt(*words)
    assert (done.status, tree(host.place)) == (status, before)
    assert "nginx www.example.com" in done.out  # the proposal is shown in any case
    assert ("add --yes" in done.err) is (status == 2)


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_the_answer_decides(
    adopt: Run, host: Host, layout: ConfigDir, monkeypatch: pytest.MonkeyPatch, answer: str, status: int
) -> None:
    before = tree(host.place)
    answers(monkeypatch, answer)
    done = adopt()
    assert done.status == status and "Nothing else is changed. [y/N]: " in done.err
    changed = {path for path, facts in tree(host.place).items() if before.get(path) != facts}
    assert changed == ({str(layout.policy), str(layout.local_installs)} if status == 0 else set())


def test_two_files_are_written_that_the_agent_accepts(adopt: Run, host: Host, layout: ConfigDir, ran: Run) -> None:
    done = adopt("--yes")
    assert done.status == 0 and f"Wrote {layout.policy}" in done.out and f"Wrote {layout.local_installs}" in done.out
    copy, reload = items_in(layout)
    assert copy["to"] == [str(host.tls / "c.pem"), str(host.tls / "c.key")]
    assert reload["cmd_argv"] == ["reload nginx"]
    assert json.loads(layout.policy.read_text())["commands"]["reload nginx"]["argv"] == ["/bin/true", "reload"]
    assert ran("-c", layout.root, "config", "check").status == 0


def test_again_nothing_is_added(adopt: Run, host: Host) -> None:
    adopt("--yes")
    before = tree(host.place)
    done = adopt("--yes")
    assert done.status == 0 and "Nothing to add." in done.out and tree(host.place) == before
    assert "already, by item local:nginx www.example.com" in done.out


def test_a_disabled_item_is_not_replaced_by_another(adopt: Run, layout: ConfigDir) -> None:
    adopt("--yes")
    items = items_in(layout)
    items[0]["enabled"] = False
    layout.local_installs.write_text(json.dumps(items))
    assert "already, by item local:nginx www.example.com (disabled)" in adopt("--yes").out


def test_what_is_there_is_kept(adopt: Run, layout: ConfigDir, ran: Run) -> None:
    mine = {"id": 1, "type": "exec", "cmd_argv": ["/bin/true"], "tags": ["mine"]}
    layout.local_installs.write_text(json.dumps({"installs": [mine], "comment": "kept"}))
    layout.local_installs.chmod(0o600)
    ran("-c", layout.root, "policy", "allow", "-y", "path", "/srv/x")
    assert adopt("--yes").status == 0
    found = json.loads(layout.local_installs.read_text())
    assert (found["installs"][0], found["comment"], len(found["installs"])) == (mine, "kept", 3)
    assert layout.local_installs.stat().st_mode & 0o777 == 0o600
    assert json.loads(layout.policy.read_text())["write_roots"] == ["/srv/x"]


@pytest.mark.parametrize("text", ["[{", '[{"id": 1}]', '[{"id": "a", "type": "exec", "cmd_argv": ["x"], "wrong": 1}]'])
def test_a_mistake_in_the_items_is_reported_before_a_question(
    adopt: Run, host: Host, layout: ConfigDir, text: str
) -> None:
    layout.local_installs.write_text(text)
    before = tree(host.place)
    done = adopt("--yes")
    assert done.status == 78 and "installs.local.json" in done.err and tree(host.place) == before


def test_the_certificate_of_the_control_plane_is_named(adopt: Run, layout: ConfigDir, store: StateStore) -> None:
    store.installed.save_certificates({7: record(7)})
    done = adopt("--dry-run")
    assert "becomes     certificate 7 (www.example.com, example.com)" in done.out
    assert "plane issue" not in done.out
    store.installed.save_certificates({7: record(7, revoked=True)})
    assert "plane issue www.example.com example.com --device" in adopt("--dry-run").out


def test_json(adopt: Run, layout: ConfigDir) -> None:
    shown = adopt("--json", "--dry-run").json()
    (row,) = shown["certificates"]
    assert (row["state"], row["names"], row["items"]) == (
        "proposed",
        list(NAMES),
        [one["id"] for one in shown["items"]],
    )
    assert row["read_by"][0]["endpoint"] == "127.0.0.1:443" and row["not_after"] == "2036-01-01T00:00:00Z"
    assert not shown["written"] and any(str(layout.root) in step for step in shown["next"])
    written = adopt("--json", "--yes").json()["written"]
    assert written == [str(layout.policy), str(layout.local_installs)]
    assert adopt("--json", "--yes").json() | {"next": []} == adopt("--json").json() | {"next": []}


def test_no_key_is_printed(adopt: Run, host: Host) -> None:
    secret = private_key().splitlines()[1].decode()
    for words in (["--dry-run"], ["--json", "--yes"], ["--debug", "--dry-run"]):
        done = adopt(*words)
        assert secret not in done.out + done.err


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "nginx"], ["--config", "iis=/etc"], ["--config", "nginx=/nonexistent"], ["--config", "nginx="],
        ["--reload", "nginx"], ["--reload", "nginx=systemctl reload"], ["--reload", "nginx='"], ["--reload", "certbot=/x"],
    ],
)  # fmt: skip
def test_wrong_options(words: list[str], layout: ConfigDir, ran: Run) -> None:
    done = ran("-c", layout.root, "adopt", *words)
    assert done.status == 2 and "fix: " in done.err


def test_a_configuration_that_names_missing_files(adopt: Run, host: Host) -> None:
    (host.tls / "c.pem").unlink()
    done = adopt("--yes")
    assert done.status == 1 and "cannot be read: No such file or directory" in done.out
    assert "Nothing to add." in done.out


def test_nothing_is_in_use(adopt: Run, host: Host) -> None:
    (host.place / "sites" / "www").unlink()
    done = adopt("--yes")
    assert done.status == 0 and "Certificates in use: 0" in done.out


def test_a_directory_that_others_can_write(adopt: Run, host: Host) -> None:
    host.tls.chmod(0o777)
    done = adopt("--yes")
    assert done.status == 1 and "can be written by" in done.out


def test_a_path_with_a_newline_stays_on_its_line(adopt: Run, host: Host) -> None:
    bad = host.place / "tls\nWrote it"
    host.tls.rename(bad)
    (host.place / "sites" / "www").write_text(SITE.replace("{tls}/c.pem", '"{tls}/c.pem"').format(tls=bad))
    done = adopt("--yes")
    assert done.status == 1 and "\nWrote" not in done.out and "not printable" in done.out


def test_certbot_is_told_to_stop(adopt: Run, host: Host, layout: ConfigDir, ran: Run) -> None:
    live, archive, renewal = (host.place / "le" / name for name in ("live", "archive", "renewal"))
    for place in (live, archive, renewal):
        place.mkdir(parents=True)
    for kind, data in {"cert": certificate(*NAMES), "chain": certificate("ca.example", ca=True),
                       "fullchain": certificate(*NAMES), "privkey": private_key()}.items():  # fmt: skip
        (archive / f"{kind}1.pem").write_bytes(data)
        (live / f"{kind}.pem").symlink_to(archive / f"{kind}1.pem")
    lines = [f"{kind} = {live}/{kind}.pem" for kind in ("cert", "chain", "fullchain", "privkey")]
    text = "\n".join([*lines, "[renewalparams]", "renew_hook = /bin/mine"])
    (renewal / "www.conf").write_text(text)
    (host.place / "sites" / "www").write_text(
        SITE.format(tls=live).replace("c.pem", "fullchain.pem").replace("c.key", "privkey.pem")
    )
    words = ("--dry-run", "--config", f"certbot={host.place}/le")
    done = adopt(*words)
    assert "systemctl disable --now certbot.timer" in done.out and "/bin/mine" in done.out
    (renewal / "other.conf").write_text(text.replace(str(live), "/other"))
    done = adopt(*words)
    assert "certbot.timer" not in done.out and f"a autorenew = False' {renewal}/www.conf" in done.out
    assert f"{archive}/fullchain1.pem (as fullchain.pem)" in done.out and "other, renewed by certbot" in done.out


def test_a_full_disk_leaves_both_files_as_they_were(
    adopt: Run, host: Host, layout: ConfigDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(host.place)
    write = RealFs.write

    def full(self: RealFs, handle: Any, data: bytes) -> None:
        if b"nginx www.example.com" in data:
            raise OSError(28, "No space left on device", str(layout.local_installs))
        write(self, handle, data)

    with monkeypatch.context() as patched:
        patched.setattr(RealFs, "write", full)
        done = adopt("--yes")
    assert done.status == 74
    changed = {path for path, facts in tree(host.place).items() if before.get(path) != facts}
    assert changed == {str(layout.policy)}  # its command is used by no item
    assert adopt("--yes").status == 0 and len(items_in(layout)) == 2


def test_the_recipes_commands_are_those_of_deploy() -> None:
    services = Path(__file__).parents[2] / "deploy" / "services"
    for service, helper in adopting.CHECKS.items():
        commands = json.loads((services / service / "policy.json").read_text())["commands"]
        assert commands[f"check {service}"]["argv"] == [f"{adopting.HELPERS}/{helper}", "{staged}"]
        unprivileged = adopting.reload_argv(service, is_root=False, is_red_hat=False, systemctl="/usr/bin/systemctl")
        assert commands[f"reload {service}"]["argv"] == unprivileged
    assert os.access(services / "lib" / "check-nginx", os.R_OK)


@pytest.mark.skipif(os.geteuid() != 0, reason="a directory of another user")
def test_files_of_the_root_helper_are_taken_over(
    host: Host, layout: ConfigDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unprivileged agent may not write there itself; the rights are those of the helper's policy."""
    tmp_path.chmod(0o755)
    host.tls.chmod(0o755)
    key, chain = str(host.tls / "c.key"), str(host.tls / "c.pem")
    policy = write_policy(tmp_path / "p.json", {"files": [rule(key, mode="0640")]})
    monkeypatch.setattr("certctrl.agent.setup.root_helper", lambda config: direct(policy=policy).client)
    monkeypatch.setattr(adopting.os, "access", lambda *args, **more: False)
    found = adopting.Found(read={}, certificates=(), lineages=(), remarks=())
    target = adopting.installation(layout, found, {}).facts.target
    assert (target(key).mode, target(key).fault) == (0o640, "")
    assert target(chain).fault.endswith(f"cannot write in {host.tls}") and "root helper" in target(chain).fix
    os.chown(host.tls, 65534, 65534)
    assert "belongs to user 65534" in target(key).fault
