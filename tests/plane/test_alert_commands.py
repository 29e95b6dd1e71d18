"""`plane alerts`, against a served plane and a real receiver."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alert_receivers import HttpsReceiver, https_receiver
from plane_commands import PlaneSite

from certctrl.errors import ExitStatus
from certctrl.plane.alerts.texts import test_message as message_of_test


@pytest.fixture
def receiver() -> Iterator[HttpsReceiver]:
    with https_receiver() as found:
        yield found


@pytest.fixture
def ca(receiver: HttpsReceiver, tmp_path: Path) -> str:
    file = tmp_path / "receiver.pem"
    file.write_text(receiver.ca_pem)
    return str(file)


def secret_file(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text + "\n")
    path.chmod(mode)
    return str(path)


@pytest.mark.integration
def test_a_channel_from_its_check_to_its_removal(site: PlaneSite, receiver: HttpsReceiver, ca: str) -> None:
    assert site("alerts", "list").output == "no alert channels: nothing is sent\n"
    add = ("alerts", "add", "ops", "--kind", "webhook", "--url", receiver.url, "--receiver-ca", ca, "--allow-local")
    place = receiver.url.removesuffix("/hooks/secret-path")
    assert site(*add, "--dry-run").output == f"channel ops (webhook) would lead to {place}\n"
    assert site("alerts", "list", "--json").json == []
    added = site(*add, "--event", "revocation", "--quiet-hours", "22:00-06:00", "--time-zone", "Europe/Berlin")
    secret = added.output.splitlines()[-1]
    assert secret.startswith("whsec_")
    assert "next: cert-ctrl plane alerts test ops" in added.err
    assert site("alerts", "test", "ops").output == f"channel ops: delivered to {place}\n"
    (request,) = receiver.received
    signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    digest = hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256)
    assert request.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
    assert request.json["kind"] == "test"
    receiver.script = ["500"]
    failed = site("alerts", "test", "ops")
    assert (failed.status, "answered with 500" in failed.err) == (ExitStatus.UNAVAILABLE, True)
    shown = site("alerts", "show", "ops").output
    for line in ("events = revocation", "quiet = 22:00-06:00", "secret signing_secret is set", "secret url is set"):
        assert line in shown.splitlines()
    audit = site("audit", "--json").out
    for text in (shown, audit, site("alerts", "list", "--json").out):
        assert secret not in text
        assert "secret-path" not in text
    assert {"alert-channel.put", "alert-channel.test"} <= {row["action"] for row in json.loads(audit)}
    assert site("alerts", "outbox").output == "no messages\n"
    again = site(*add)
    assert (again.status, "change it with --replace" in again.err) == (ExitStatus.FAILED, True)
    assert "signing_secret" not in site(*add, "--replace", "--json").json, "the secret stays"
    assert site("alerts", "remove", "ops", "--yes").output == "removed alert channel ops\n"


@pytest.mark.integration
def test_a_revocation_reaches_a_channel(site: PlaneSite, receiver: HttpsReceiver, ca: str) -> None:
    add = ("alerts", "add", "now", "--kind", "webhook", "--url", receiver.url, "--receiver-ca", ca, "--allow-local")
    site(*add, "--event", "revocation", "--wait", "0s")
    site("issue", "gone.example", "--json")
    site("revoke", "gone.example", "--yes", "--reason", "key lost")
    assert receiver.arrived.wait(90), "the plane compares every 15 s"
    assert receiver.received[0].json["title"] == "certificate revoked: gone.example"
    assert site("alerts", "remove", "now", "--yes").status == 0


def add_dead(data: Path, channel: str, count: int) -> list[str]:
    """Store messages that could not be delivered, and return their ids."""
    with closing(sqlite3.connect(data / "plane.db", timeout=30)) as database, database:
        (channel_id,) = database.execute("SELECT id FROM alert_channels WHERE name = ?", (channel,)).fetchone()
        sql = (
            "INSERT INTO alert_messages (channel_id, group_name, kind, body, state, attempts, problem, created_at, retry_from,"
            " ended_at) VALUES (?, 'test', 'test', ?, 'dead', 30, 'answered with 410', ?, ?, ?)"
        )
        now = time.time()
        body = json.dumps(message_of_test(channel, now))
        return [str(database.execute(sql, (channel_id, body, now, now, now)).lastrowid) for _ in range(count)]


@pytest.mark.integration
def test_dead_messages_are_dismissed(site: PlaneSite, tmp_path: Path) -> None:
    url = secret_file(tmp_path / "url", "https://chat.invalid/hook")
    for name in ("gone", "other"):
        site("alerts", "add", name, "--kind", "slack", "--url-file", url, "--event", "rollout-halted")
    first, second, third = add_dead(site.data, "gone", 3)
    (fourth,) = add_dead(site.data, "other", 1)
    assert "give up: plane alerts dismiss" in site("alerts", "outbox", "--state", "dead").output
    tried = site("alerts", "dismiss", first, "--dry-run").output
    assert tried == f"would dismiss message {first}: test of alert channel gone\n"
    assert site("alerts", "dismiss", first).output == f"dismissed message {first}: test of alert channel gone\n"
    tried = site("alerts", "dismiss", "--dead", "--channel", "gone", "--dry-run").output
    assert [line.split()[3] for line in tried.splitlines()] == [f"{second}:", f"{third}:"]
    done = site("alerts", "dismiss", "--dead", "--channel", "gone", "--json").json
    assert [(row["id"], row["state"]) for row in done] == [(int(second), "dismissed"), (int(third), "dismissed")]
    dead = site("alerts", "outbox", "--state", "dead", "--json").json
    assert [row["id"] for row in dead] == [int(fourth)]
    shown = site("alerts", "outbox", first).output
    assert "state: dismissed" in shown and "dismissed: 20" in shown
    listed = site("alerts", "list", "--json").json
    assert [(row["name"], row["dead"]) for row in listed] == [("gone", 0), ("other", 1)]
    entries = site("audit", "--what", "alert-message.dismiss", "--json").json
    assert [one["objects"][0]["id"] for one in entries] == [third, second, first]
    for name in ("gone", "other"):
        site("alerts", "remove", name, "--yes")


@pytest.mark.integration
def test_mistakes_are_named(site: PlaneSite, tmp_path: Path) -> None:
    url = secret_file(tmp_path / "url", "https://hooks.example.com/services/T0/B0/XXX")
    open_file = secret_file(tmp_path / "open", "https://hooks.example.com/", 0o644)
    empty = secret_file(tmp_path / "empty", "")
    mail = ("add", "m", "--kind", "mail", "--smtp", "mail.example.com", "--from", "a@b.test", "--to", "c@d.test")
    slack = ("add", "s", "--kind", "slack", "--url-file", url)
    for argv, status, says in (
        (("add", "x", "--kind", "slak"), ExitStatus.USAGE, "'slak' is not a kind of channel"),
        (("add", "x", "--kind", "slak"), ExitStatus.USAGE, "did you mean slack?"),
        (("add", "x", "--kind", "slack", "--url", "https://a.test/"), ExitStatus.USAGE, "is a secret"),
        (("add", "x", "--kind", "slack"), ExitStatus.USAGE, "url: is not set"),
        (("add", "x", "--kind", "slack", "--url-file", open_file), ExitStatus.USAGE, "readable by other users"),
        (("add", "x", "--kind", "slack", "--url-file", empty), ExitStatus.USAGE, "is empty"),
        (("add", "x", "--kind", "slack", "--url-file", "/nonexistent"), ExitStatus.USAGE, "cannot read"),
        (("add", "x", "--kind", "webhook", "--url", "http://a.test/"), ExitStatus.USAGE, "url: is not an https URL"),
        (("add", "x", "--kind", "webhook", "--url", "https://127.0.0.1/"), ExitStatus.USAGE, "add --allow-local"),
        (("add", "X Y", "--kind", "webhook", "--url", "https://a.test/"), ExitStatus.USAGE, "name has up to 64"),
        ((*slack, "--event", "revokation"), ExitStatus.USAGE, "use 'revocation'"),
        ((*slack, "--quiet-hours", "22-6"), ExitStatus.USAGE, "quiet: contains a text that is not a time of the day"),
        ((*slack, "--time-zone", "Europe/Berlim"), ExitStatus.USAGE, "time_zone: "),
        ((*slack, "--time-zone", "../../etc/passwd"), ExitStatus.USAGE, "time_zone: "),
        ((*slack, "--wait", "soon"), ExitStatus.USAGE, "'soon' is not a time"),
        ((*slack, "--wait", "2d"), ExitStatus.USAGE, "wait_seconds: is 172800"),
        ((*slack, "--to", "a@b.test"), ExitStatus.USAGE, "--to belongs to channels of kind mail"),
        ((*slack, "--receiver-ca", url), ExitStatus.USAGE, "ca_pem: is not a PEM certificate"),
        ((*mail, "--smtp-user", "u"), ExitStatus.USAGE, "password: must be given together with a user"),
        ((*mail, "--smtp-tls", "ssl"), ExitStatus.USAGE, "is not a way to use TLS"),
        ((*mail, "--to", "no address"), ExitStatus.USAGE, "which is not a mail address"),
        (("add", "m", "--kind", "mail", "--smtp", "mail.example.com:x"), ExitStatus.USAGE, "is not HOST[:PORT]"),
        (("add", "m", "--kind", "mail", "--smtp", "mail.example.com"), ExitStatus.USAGE, "sender: is not set"),
        (("add", "m", "--kind", "mail", *mail[6:], "--smtp", "127.0.0.1"), ExitStatus.USAGE, "host: is an address of"),
        (("show", "opz"), ExitStatus.FAILED, "There is no alert channel 'opz'; see plane alerts list"),
        (("remove", "opz", "--yes"), ExitStatus.FAILED, "There is no alert channel"),
        (("test", "opz"), ExitStatus.FAILED, "There is no alert channel"),
        (("outbox", "--state", "deed"), ExitStatus.USAGE, "did you mean dead?"),
        (("outbox", "--channel", "opz"), ExitStatus.FAILED, "There is no alert channel"),
        (("outbox", "999"), ExitStatus.FAILED, "There is no alert message 999"),
        (("resend", "999"), ExitStatus.FAILED, "There is no alert message 999"),
        (("resend",), ExitStatus.USAGE, "give either the ID of a message or --dead"),
        (("resend", "1", "--dead"), ExitStatus.USAGE, "give either the ID of a message or --dead"),
        (("dismiss", "999"), ExitStatus.FAILED, "There is no alert message 999"),
        (("dismiss",), ExitStatus.USAGE, "give either the ID of a message or --dead"),
        (("dismiss", "1", "--channel", "m"), ExitStatus.USAGE, "--channel belongs to --dead"),
    ):
        done = site("alerts", *argv)
        assert (done.status, says in done.err) == (status, True), (argv, done)
        assert "hooks.example.com/services" not in done.err
    assert site("alerts", "list", "--json").json == []
    assert site("alerts", *slack).status == 0
    near = site("alerts", "show", "t")
    assert "There is no alert channel 't'" in near.err
    assert site("alerts", "resend", "--dead").output == "no dead messages\n"
    assert site("alerts", "dismiss", "--dead").output == "no dead messages\n"
    assert site("alerts", "remove", "s", "--yes").status == 0
