"""`cert-ctrl plane …`: each command against a real plane, and its errors."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from earlier import earlier_data_dir
from nacl.public import PrivateKey
from plane_commands import Cli, PlaneSite, served_plane

from certctrl.cli.output import short_serial
from certctrl.cli.plane.connection import DATA_VARIABLE, SharedOptions, find_connection
from certctrl.errors import ExitStatus, UsageError


@pytest.mark.integration
def test_the_life_of_a_certificate(site: PlaneSite, device: str) -> None:
    row = site("issue", "www.life.example", "life.example", "--device", device, "--json").json
    assert row["sans"] == ["www.life.example", "life.example"]
    assert short_serial(row["serial_number"]) in site("certificates").output
    renewed = site("renew", "www.life.example", "--reason", "drill").output
    assert f"renewed certificate {row['id']}" in renewed
    assert short_serial(row["serial_number"]) not in site("certificates").output
    assert "is no longer assigned to device" in site("unassign", str(row["id"]), "--device", device).output
    assert "is assigned to device" in site("assign", "WWW.life.example", "--device", device).output
    assert "revoked certificate" in site("revoke", "www.life.example", "--reason", "leaked").output
    shown = {found["id"]: found for found in site("certificates", "--json").json}
    assert (shown[row["id"]]["status"], shown[row["id"]]["revoke_reason"]) == ("revoked", "leaked")
    again = site("issue", "www.life.example", "--key-type", "ecdsa-p384", "--validity-seconds", "600", "--json").json
    assert site("renew", "www.life.example", "--json").json["cert_id"] == again["id"], (
        "the name means the active certificate"
    )


@pytest.mark.integration
def test_devices_are_listed_shown_and_revoked(site: PlaneSite, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certctrl.cli.output.TABLE_WIDTH", 200)
    line = next(line for line in site("devices").output.splitlines() if device in line)
    assert "active" in line
    assert site("devices", "--outcomes", device).output.split()[0] == "AT"
    assert site("devices", "--outcomes", device, "--json").json == []
    (known,) = {row["app_version"] for row in site("devices", "--json").json if row["name"] == device}
    assert device in site("devices", "--agent-version", known).output
    assert site("devices", "--agent-version", "0.0.9", "--json").json == []
    assert site("devices", "--agent-version", known, "--outcomes", device).status == ExitStatus.USAGE
    assert "is revoked" in site("revoke-device", device, "--reason", "stolen").output
    (row,) = [row for row in site("devices", "--json").json if row["name"] == device]
    assert (row["status"], row["revoke_reason"]) == ("revoked", "stolen")


@pytest.mark.integration
def test_install_configs_come_from_a_file_or_a_pipe(
    site: PlaneSite, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [{"id": 1, "type": "exec", "cmd_argv": ["/bin/true"]}]
    file = tmp_path / "plan.json"
    for number, content in enumerate((items, {"installs": [*items, {"id": 2, "type": "exec", "cmd": "true"}]})):
        file.write_text(json.dumps(content))
        output = site("install-config", "put", str(file), "--device", device).output
        assert f"version {number + 2}" in output
    assert len(json.loads(site("install-config", "show", "--device", device).output)) == 2
    assert site("install-config", "show", "--device", device, "--json").json["version"] == 3
    for content, expected in (
        ("{", "is not JSON"),
        ('{"items": []}', "does not contain a list"),
        ('[{"id": 1}]', "installs[0].type"),
    ):
        file.write_text(content)
        result = site("install-config", "put", str(file), "--device", device)
        assert result.status == ExitStatus.USAGE
        assert expected in result.err
    assert site("install-config", "put", str(tmp_path / "absent"), "--device", device).status == ExitStatus.USAGE


@pytest.mark.integration
def test_items_are_checked_before_they_are_stored(site: PlaneSite, device: str, tmp_path: Path) -> None:
    item = {"id": "web", "type": "copy", "ob_name": "a.example", "from": ["private.key"], "to": ["/etc/x/a.key"]}
    file = tmp_path / "plan.json"
    for wrong, expected in (
        (item | {"form": ["x"]}, "installs[0].form: unknown key; did you mean from?"),
        (item | {"from": ["privat.key"]}, "installs[0].from[0]: unknown file privat.key; did you mean private.key?"),
        (item | {"mode": "0644"}, "installs[0].mode: 0644 is too open: a private key at most 0640"),
        (item | {"depends_on": ["wbe"]}, "depends on wbe, which does not exist; did you mean web?"),
    ):
        file.write_text(json.dumps([wrong]))
        result = site("install-config", "put", str(file), "--device", device)
        assert (result.status, expected in result.err) == (ExitStatus.USAGE, True), result
    assert site("install-config", "show", "--device", device, "--json").json["version"] == 1
    file.write_text(json.dumps([item | {"colour": "red"}]))
    result = site("install-config", "put", str(file), "--device", device)
    assert result.status == 0
    assert result.err == "note: installs[0].colour is unknown to this version; it is stored for newer agents\n"


@pytest.mark.integration
def test_enrolment_tokens_are_listed_and_ended(
    site: PlaneSite, form: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    listing = ("enrolment-token", "--list", "--label", "rack 9")
    assert site(*listing).output == "no enrolment tokens\n"
    text = site("enrolment-token", "--label", "rack 9", "--tag", "listed", "--uses", "2").output.strip()
    (row,) = site(*listing, "--tag", "listed", "--json").json
    assert (row["status"], row["max_uses"], "token" in row) == ("valid", 2, False)
    assert "0 of 2" in site(*listing).output
    ended = ("enrolment-token", "--end", str(row["id"]))
    assert "nothing was changed" in site(*ended, "--dry-run").output
    said = f"enrolment token {row['id']} is ended; devices that it let in stay\n"
    assert (site(*ended).output, site(*listing).output) == (said, "no enrolment tokens\n")
    (first,) = site(*listing, "--all", "--json").json
    assert (first["status"], site(*ended).output) == ("ended", said)
    assert site(*listing, "--all", "--json").json == [first], "the time of its end stays"
    with pytest.raises(HTTPError, match="HTTP Error 400"):
        site.register(form("id-late", PrivateKey.generate(), "late") | {"enrolment_token": text})
    for argv in (("--all",), ("--end", "1", "--list"), ("--end", "1", "--tag", "web")):
        assert site("enrolment-token", *argv).status == ExitStatus.USAGE
    assert site("enrolment-token", "--end", "999999").status == ExitStatus.FAILED


@pytest.mark.integration
def test_several_devices_and_duplicates(
    site: PlaneSite, device: str, form: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    token = site("enrolment-token").output.strip()
    site.register(form("id-second", PrivateKey.generate(), "second") | {"enrolment_token": token})
    both = ("--device", device, "--device", "second")
    issued = site("issue", "many.example", "Many.example.", "www.many.example", "--json")
    assert issued.err == "note: many.example is given 2 times; the certificate contains it once\n"
    row = site("assign", "many.example", *both, "--device", device.upper(), "--json")
    assert len(row.json["device_ids"]) == 2
    assert row.err.startswith("note: device ") and "is given twice" in row.err
    file = tmp_path / "plan.json"
    file.write_text("[]")
    assert len(site("install-config", "put", str(file), *both, "--json").json) == 2
    ca = site("ca", "add", "ca-of-both", "--json").json
    assert len(json.loads(site("ca", "assign", str(ca["id"]), *both, "--json").out)["device_ids"]) == 2
    assert len(site("ca", "unassign", str(ca["id"]), *both, "--json").json) == 2
    assert len(site("unassign", "many.example", *both, "--json").json) == 2
    assert site("assign", "many.example", "--device", "nobody", *both).status == ExitStatus.USAGE
    (found,) = [one for one in site("certificates", "--json").json if one["domain_name"] == "many.example"]
    assert found["device_ids"] == [], "all devices are found before one is changed"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.integration
def test_destructive_commands_ask_on_a_terminal(site: PlaneSite, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    site("issue", "ask.example", "--device", device)
    ca = str(site("ca", "add", "ca-to-ask", "--json").json["id"])
    site("ca", "assign", ca, "--device", device)
    commands = [
        (("unassign", "ask.example", "--device", device), "Unassign certificate "),
        (("ca", "unassign", ca, "--device", device), f"Remove CA {ca} from the trust store of device "),
        (("revoke", "ask.example"), "Revoke certificate "),
        (("revoke-device", device), "Revoke device "),
    ]
    for argv, question in commands:
        for answer in ("\n", "n\n"):
            monkeypatch.setattr("sys.stdin", Terminal(answer))
            result = site(*argv)
            assert (result.status, question in result.err) == (ExitStatus.FAILED, True), result
    for argv, _ in commands:
        monkeypatch.setattr("sys.stdin", Terminal("y\n"))
        assert site(*argv, "--json").json, "the question is not among the JSON"
    site("issue", "ask.example")
    monkeypatch.setattr("sys.stdin", Terminal(""))
    assert "revoked" in site("revoke", "ask.example", "--yes").output


@pytest.mark.integration
def test_the_question_names_the_device_that_an_id_means(
    site: PlaneSite, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong digit is a wrong device: the question shows whose id it is."""
    row = site("issue", "ids.example", "--device", device, "--json").json
    (device_id,) = row["device_ids"]
    (name,) = [one["name"] for one in site("devices", "--json").json if one["id"] == device_id]
    shown = f"{device_id} ({name}), whose agent then"
    for argv in (("unassign", str(row["id"]), "--device", str(device_id)), ("revoke-device", str(device_id))):
        monkeypatch.setattr("sys.stdin", Terminal("n\n"))
        result = site(*argv)
        assert result.status == ExitStatus.FAILED and shown in result.err, result
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert site("revoke-device", "999999").status != ExitStatus.DONE


@pytest.mark.integration
def test_what_a_revoked_device_is_given_is_noted(site: PlaneSite, device: str, tmp_path: Path) -> None:
    """It is given all the same: the operator may be about to approve it again."""
    first = site("issue", "noted.example", "--device", device)
    assert first.err == ""
    (device_id,) = site("issue", "again.noted.example", "--device", device, "--json").json["device_ids"]
    ca = str(site("ca", "add", "ca-of-a-revoked-one", "--json").json["id"])
    site("issue", "third.noted.example")
    site("revoke-device", device, "--yes")
    (items := tmp_path / "items.json").write_text("[]")
    (rows := tmp_path / "rows.csv").write_text(f"domains,devices\nfourth.noted.example,{device}\n")
    note = f"note: device {device_id} ({device}) is revoked: it receives nothing until it is registered and approved again\n"
    for argv in (
        ("issue", "more.noted.example", "--device", device),
        ("issue", "--from-file", str(rows), "--yes"),
        ("assign", "third.noted.example", "--device", str(device_id)),
        ("ca", "assign", ca, "--device", device),
        ("install-config", "put", str(items), "--device", device),
        ("tag", str(device_id), "--add", "noted"),
    ):
        done = site(*argv)
        assert (done.status, done.err.count(note)) == (0, 1), (argv, done)
    assert site("unassign", "third.noted.example", "--device", device, "--yes").err == ""
    assert site("assign", "noted.example", "--device", "999999").status == ExitStatus.FAILED


@pytest.mark.integration
def test_commands_on_the_plane_s_machine_do_not_use_its_public_name(tmp_path: Path, cli: Cli) -> None:
    data = tmp_path / "data"
    argv = [sys.executable, "-m", "certctrl", "plane", "serve", "--data", str(data), "--listen", "0.0.0.0:0"]
    with subprocess.Popen(
        [*argv, "--hostname", "plane.invalid"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert "https://plane.invalid:" in process.stdout.readline()
        try:
            assert cli("plane", "devices", "--data", str(data), "--json").json == []
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0


@pytest.mark.parametrize("url", ["http://", "https://", "plane.example", "ftp://x", "https://x:99999", "https://x/?a"])
def test_an_unusable_public_url_is_refused(url: str, tmp_path: Path, cli: Cli) -> None:
    result = cli("plane", "serve", "--data", str(tmp_path / "data"), "--public-url", url)
    assert (result.status, "is not a URL for browsers" in result.err) == (ExitStatus.USAGE, True)
    assert not (tmp_path / "data").exists()


@pytest.mark.integration
def test_private_cas(site: PlaneSite, device: str) -> None:
    row = site("ca", "add", f"ca-of-{device}", str(site.data / "ca.pem"), "--json").json
    assert row["ca_certificate_pem"] == (site.data / "ca.pem").read_text()
    assert "is assigned to device" in site("ca", "assign", row["name"], "--device", device).output
    assert row["name"] in site("ca", "list").output
    assert "is no longer assigned to" in site("ca", "unassign", str(row["id"]), "--device", device).output


@pytest.mark.integration
def test_approve_shows_who_asks_and_asks_before_it_decides(
    site: PlaneSite, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = {"action": "device_start", "name": "web-8", "device_public_id": f"id-{device}"[:64]}
    grant = site.post("/auth/device", start)
    monkeypatch.setattr("sys.stdin", Terminal("n\ny\n"))
    result = site("approve", grant["user_code"])
    assert (result.status, "Approve web-8 at 127.0.0.1 for user 1?" in result.err) == (ExitStatus.FAILED, True)
    assert f"id        id-{device}"[:74] in result.err
    assert "note: this is device" in result.err and "approving replaces its session" in result.err
    poll = {"action": "device_poll", "device_code": grant["device_code"]}
    assert site.post("/auth/device", poll)["status"] == "authorization_pending"
    assert "approved web-8" in site("approve", grant["user_code"]).output
    assert site("approve", grant["user_code"]).status == ExitStatus.FAILED, "decided, without asking again"


@pytest.mark.integration
def test_approve_and_deny(site: PlaneSite) -> None:
    for command, status in (("approve", "ready"), ("deny", "access_denied")):
        grant = site.post("/auth/device", {"action": "device_start", "name": "web-7"})
        assert "web-7 at 127.0.0.1" in site(command, grant["user_code"].lower()).output
        poll = {"action": "device_poll", "device_code": grant["device_code"]}
        assert site.post("/auth/device", poll)["status"] == status
    result = site("approve", "ZZZZ-ZZZZ")
    assert (result.status, "No device shows this code" in result.err) == (ExitStatus.FAILED, True)


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> Iterator[PlaneSite]:
    """Run a plane on a data directory of version 0.1, whose device 1 has confirmed nothing."""
    data = tmp_path / "older"
    earlier_data_dir(data, monkeypatch, wall=time.time() - 86_400)
    with served_plane(data) as url:
        yield PlaneSite(data, url, cli)


@pytest.mark.integration
def test_an_older_plane_is_switched_to_its_own_ca(older: PlaneSite, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (older.data / "ca.pem").read_text()
    shown = older("tls", "show").output
    assert "CA that also issues certificates" in shown and "web-1" in shown
    refused = older("tls", "switch")
    assert (refused.status, refused.out) == (ExitStatus.FAILED, "")
    assert "device 1 (web-1) has not confirmed the new CA, last seen never" in refused.err
    assert "or add --force" in refused.err
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    asked = older("tls", "switch", "--force")
    assert (asked.status, "Switch and lose 1 device?" in asked.err) == (ExitStatus.FAILED, True)
    assert (older.data / "ca.pem").read_text() == before
    done = older("tls", "switch", "--force", "--yes", "--json")
    assert [row["name"] for row in done.json["lost_devices"]] == ["web-1"]
    assert (older.data / "ca.pem").read_text() == done.json["anchor_pem"] != before
    assert older("tls", "show").output.startswith("CA in use  its own")
    assert "web-1" in older("devices").output, "by the new ca.pem"


@pytest.mark.integration
def test_errors_are_one_line_with_a_fix(site: PlaneSite, tmp_path: Path) -> None:
    wrong_key = tmp_path / "key"
    wrong_key.write_text("ok_not-the-key-at-all\n")
    other_ca = "/etc/ssl/certs/ca-certificates.crt"
    tries = [
        (site("renew", "nothing.example"), ExitStatus.USAGE, "has no certificate", "plane certificates"),
        (site("issue", "a.example", "not a name"), ExitStatus.USAGE, "'not a name' is not a DNS name", ""),
        (site("issue", "a.example", "--device", "nobody"), ExitStatus.USAGE, "has no device", "plane devices"),
        (site("renew", "999"), ExitStatus.FAILED, "No such certificate", ""),
        (site("devices", "--user", "9"), ExitStatus.FAILED, "No such user", ""),
        (site("devices", "--operator-key-file", str(wrong_key)), 77, "not the operator key", "operator.key"),
        (site("devices", "--server", "https://127.0.0.1:1"), ExitStatus.UNAVAILABLE, "127.0.0.1:1", "plane serve"),
        (site("devices", "--server", "ftp://x"), ExitStatus.USAGE, "is not a URL of a control plane", "https://HOST"),
        (site("devices", "--ca", other_ca), ExitStatus.UNAVAILABLE, "not signed by", "--ca"),
        (site("serve", "--listen", "127.0.0.1:0"), ExitStatus.BUSY, "is served by another plane", "--data"),
    ]
    for result, status, expected, fix in tries:
        assert (result.status, expected in result.err, fix in result.err) == (status, True, True), result
        assert "Traceback" not in result.err
        assert result.out == ""


@pytest.mark.integration
def test_an_ambiguous_certificate_name_is_refused(site: PlaneSite) -> None:
    ids = [site("issue", "twice.example", "--json").json["id"] for _ in range(2)]
    result = site("renew", "twice.example")
    assert result.status == ExitStatus.USAGE
    assert f"use one of the ids {ids[0]}, {ids[1]}" in result.err


def test_the_connection_comes_from_data_or_from_single_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    (tmp_path / "operator.key").write_text("ok_secret\n")
    (tmp_path / "address").write_text("https://127.0.0.1:8443\n")
    connection = find_connection(SharedOptions(data=str(tmp_path)))
    assert (connection.server, connection.ca, connection.key) == (
        "https://127.0.0.1:8443",
        tmp_path / "ca.pem",
        "ok_secret",
    )
    assert "ok_secret" not in repr(connection)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert find_connection(SharedOptions()) == connection
    other = find_connection(SharedOptions(server="https://plane.example", ca="/ca"))
    assert (other.server, str(other.ca), other.key) == ("https://plane.example", "/ca", "ok_secret")
    monkeypatch.delenv(DATA_VARIABLE)
    alone = find_connection(
        SharedOptions(server="https://plane.example", operator_key_file=str(tmp_path / "operator.key"))
    )
    assert alone.ca is None
    for options in (
        SharedOptions(),
        SharedOptions(server="https://x"),
        SharedOptions(operator_key_file=str(tmp_path / "operator.key")),
    ):
        with pytest.raises(UsageError) as caught:
            find_connection(options)
        assert caught.value.fix
    (tmp_path / "operator.key").write_text("two words")
    with pytest.raises(UsageError, match="does not contain the operator key"):
        find_connection(SharedOptions(data=str(tmp_path)))
    unreadable = PermissionError(13, "Permission denied")
    with monkeypatch.context() as patch, pytest.raises(UsageError, match="Permission denied") as caught:
        patch.setattr(Path, "open", lambda *_args: (_ for _ in ()).throw(unreadable))
        find_connection(SharedOptions(data=str(tmp_path)))
    assert caught.value.fix == "run as root or as the control plane's user"
    with pytest.raises(UsageError, match="cannot read"):
        find_connection(SharedOptions(data=str(tmp_path / "absent")))


def test_serve_needs_a_directory(cli: Cli) -> None:
    result = cli("plane", "serve")
    assert (result.status, "add --data DIR" in result.err) == (ExitStatus.USAGE, True)


@pytest.mark.parametrize(
    "command",
    [
        ["serve"], ["status"], ["issue"], ["renew"], ["revoke"], ["assign"], ["unassign"], ["causes"], ["certificates"], ["devices"],
        ["revoke-device"], ["approve"], ["deny"], ["enrolment-token"], ["tag"], ["install-config", "put"],
        ["install-config", "show"], ["ca", "add"], ["ca", "list"], ["ca", "assign"], ["ca", "unassign"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_command_has_help_with_an_example(cli: Cli, command: list[str]) -> None:
    text = cli("plane", *command, "--help").output
    assert f"cert-ctrl plane {' '.join(command)} --data /var/lib/plane" in text
    if command != ["serve"]:
        for option in ("--data", "--server", "--ca", "--operator-key-file", "--user", "--json"):
            assert option in text
