"""``plane operator``, ``plane token``, ``plane operator-key`` and ``plane rotate`` against a running plane."""

from __future__ import annotations

from pathlib import Path

import pytest
from plane_commands import PlaneSite, Result


def with_token(site: PlaneSite, file: Path, *argv: str) -> Result:
    """Run a command as it is run on another machine."""
    ca = str(site.data / "ca.pem")
    return site.cli("plane", *argv, "--server", site.url, "--ca", ca, "--token-file", str(file))


def token_file(site: PlaneSite, path: Path, of: str, *options: str) -> Path:
    made = site("token", "create", path.name, "--operator", of, "--expires-in", "1d", *options)
    assert f"({path.name}) of {of}" in made.err and len(made.output.splitlines()) == 1
    path.write_text(made.out)
    path.chmod(0o600)
    return path


def test_operators_and_tokens(site: PlaneSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "operator carol is viewer" in site("operator", "add", "carol", "--role", "viewer").output
    assert "carol" in site("operator", "list").output
    file = token_file(site, tmp_path / "carols", "carol")
    assert with_token(site, file, "whoami").output.startswith("carol, viewer, by token carols, from 127.0.0.1")
    assert with_token(site, file, "devices").status == 0
    refused = with_token(site, file, "enrolment-token")
    assert refused.status == 77
    assert "needs the role operator; carol has the role viewer" in refused.err and "plane operator role" in refused.err
    assert "is operator" in site("operator", "role", "carol", "operator").output
    assert with_token(site, file, "enrolment-token").status == 0
    shown = site("audit", "--who", "carol")
    assert "enrolment-token.create" in shown.output and "carol (token carols)" in shown.output
    monkeypatch.setenv("CERTCTRL_PLANE_TOKEN_FILE", str(file))
    assert site("whoami").output.startswith("carol")
    monkeypatch.delenv("CERTCTRL_PLANE_TOKEN_FILE")
    assert "is disabled" in site("operator", "disable", "carol").output
    refused = with_token(site, file, "devices")
    assert refused.status == 77 and "Operator carol is disabled" in refused.err and "operator enable" in refused.err
    assert "1 valid" in site("operator", "enable", "carol").output
    assert "carols" in site("token", "list", "--operator", "carol").output
    scoped = token_file(site, tmp_path / "ci", "carol", "--tag", "web", "--tag", "env=prod")
    only = "carol, operator, by token ci, for devices with env=prod and web, from 127.0.0.1"
    assert with_token(site, scoped, "whoami").output.strip() == only
    assert with_token(site, scoped, "devices").status == 0
    for of_their_time in (("certificates", "--expiring", "30d"), ("renew", "--due")):
        assert with_token(site, scoped, *of_their_time).status == 0
    refused = with_token(site, scoped, "enrolment-token")
    assert (
        refused.status == 77 and "outside the scope of token ci of carol: devices with env=prod and web" in refused.err
    )
    assert "plane token create" in refused.err
    assert "env=prod web" in site("token", "list").output
    assert (
        "is not a tag" in site("token", "create", "x", "--operator", "carol", "--expires-in", "1d", "--tag", "Web").err
    )
    assert "is revoked" in site("token", "revoke", "ci").output
    assert "is revoked" in site("token", "revoke", "carols").output
    assert "was revoked at" in with_token(site, file, "devices").err
    assert site("token", "list").output.strip() == "no tokens"
    assert site("token", "revoke", "carols").status == 2
    assert "is deleted" in site("operator", "delete", "carol", "--yes").output
    assert site("operator", "delete", "carol", "--yes").status == 1


def test_token_files(site: PlaneSite, tmp_path: Path) -> None:
    file = tmp_path / "token"
    assert "cannot read an operator token" in with_token(site, file, "devices").err
    file.write_text("two words")
    file.chmod(0o600)
    assert "does not contain an operator token" in with_token(site, file, "devices").err
    file.write_text("ot_unknown")
    assert "not a token of an operator" in with_token(site, file, "devices").err
    file.chmod(0o644)
    assert "is readable by other users" in with_token(site, file, "devices").err
    both = site("devices", "--token-file", str(file), "--operator-key-file", str(file))
    assert "leave one of them out" in both.err


def test_an_operator_key_that_others_can_read_is_warned_of_once(site: PlaneSite, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes((site.data / "operator.key").read_bytes())
    for mode, err in ((0o600, ""), (0o644, f"warning: other users can read {file}; see chmod 0600\n")):
        file.chmod(mode)
        done = site("issue", "warned.example", "--no-wait", "--operator-key-file", str(file))
        assert (done.status, done.err) == (0, err)
    bulk = site("device", "retry", "--tag", "none", "--operator-key-file", str(file))
    assert bulk.err.count("warning: other users") == 1, "with several connections, too"


def test_the_key_is_turned_off_and_on_and_replaced(site: PlaneSite, tmp_path: Path) -> None:
    refused = site("operator-key", "off", "--yes")
    assert refused.status == 1 and "No admin could sign in" in refused.err and "plane operator add" in refused.err
    site("operator", "add", "dave", "--role", "admin")
    file = token_file(site, tmp_path / "daves", "dave")
    assert "is off" in site("operator-key", "off", "--yes").output
    refused = site("devices")
    assert refused.status == 77 and "turned off" in refused.err and "plane operator-key on" in refused.err
    assert "is off" in with_token(site, file, "operator-key", "show").output
    for _ in range(2):
        assert site("operator-key", "on").output.strip() == "the operator key is on"
    assert site("devices").status == 0

    old = tmp_path / "old"
    old.write_bytes((site.data / "operator.key").read_bytes())
    said = site("rotate", "operator-key").output
    assert "the operator key is new" in said
    assert (site.data / "operator.key").stat().st_mode & 0o777 == 0o600
    assert site("devices").status == 0, "the running plane knows the new key"
    assert "not the operator key" in site("devices", "--operator-key-file", str(old)).err
    rows = site("audit", "--what", "operator-key", "--json").json
    assert [row["action"] for row in rows] == ["operator-key.rotate", "operator-key.on", "operator-key.off"]
    assert rows[0]["via"] == "data directory" and " on " in rows[0]["who"]


@pytest.mark.parametrize("argv", [("rotate", "operator-key"), ("operator-key", "on")])
def test_a_directory_that_is_not_a_planes(site: PlaneSite, tmp_path: Path, argv: tuple[str, ...]) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        found = site.cli("plane", *argv, "--data", str(directory))
        assert found.status != 0 and "fix:" in found.err and list(tmp_path.iterdir()) == []
    assert "no data directory" in site.cli("plane", *argv).err
