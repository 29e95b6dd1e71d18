"""`plane profile`, against a served plane."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nacl.public import PrivateKey
from plane_commands import PlaneSite
from proving import registration

from certctrl.errors import ExitStatus

FILES = {
    "id": "files", "type": "copy", "ob_name": "www.example.com", "from": ["combined.pem"], "to": ["/etc/tls/www.pem"],
}  # fmt: skip
NAME = {"id": "name", "type": "exec", "cmd_argv": ["note", "{device.name}"], "depends_on": ["files"]}


def new_device(site: PlaneSite, name: str, *tags: str) -> None:
    given = [word for tag in tags for word in ("--tag", tag)]
    token = site("enrolment-token", *given).output.strip()
    site.register(registration(f"id-of-{name}", PrivateKey.generate(), name) | {"enrolment_token": token})


@pytest.mark.integration
def test_a_profile_from_its_preview_to_its_end(site: PlaneSite, tmp_path: Path) -> None:
    for name in ("pweb-1", "pweb-2"):
        new_device(site, name, "pweb")
    new_device(site, "pdb-1", "pdb")
    file = tmp_path / "nginx.json"
    file.write_text(json.dumps([FILES]))
    assert site("profile", "list").output == "no profiles\n"
    diff = site("profile", "diff", "nginx", str(file), "--devices", "pweb").output.splitlines()
    assert diff == [
        "2 devices (pweb-1, pweb-2): + files",
        "profile nginx would have version 1 on 2 devices; the config of 2 devices would change",
    ]
    assert site("profile", "list").output == "no profiles\n"
    done = site("profile", "put", "nginx", str(file), "--devices", "pweb", "--note", "for nginx").output.splitlines()
    assert done[-1] == "profile nginx has version 1 on 2 devices; the config of 2 devices changed"
    file.write_text(json.dumps([FILES, NAME]))
    changed = site("profile", "put", "nginx", str(file), "--json").json
    assert [(row["name"], row["added"]) for row in changed["changes"]["devices"]] == [
        ("pweb-1", ["name"]),
        ("pweb-2", ["name"]),
    ]
    shown = site("install-config", "show", "--device", "pweb-2", "--json").json
    assert shown["installs"][1]["cmd_argv"] == ["note", "pweb-2"]
    assert site("install-config", "show", "--device", "pweb-2", "--own").output == "[]\n"
    file.write_text(site("profile", "show", "nginx", "--json").output)
    again = site("profile", "put", "nginx", str(file)).output
    assert again == "profile nginx is already so; nothing is changed\n"
    back = site("profile", "put", "nginx", "--version", "1").output.splitlines()
    assert back[0] == "2 devices (pweb-1, pweb-2): - name"
    history = site("profile", "history", "nginx", "--json").json
    assert [(row["version"], row["current"], row["note"]) for row in history] == [
        (3, True, ""), (2, False, ""), (1, False, "for nginx"),
    ]  # fmt: skip
    assert "pweb" in site("profile", "list").output
    planned = site("profile", "delete", "nginx", "--dry-run").output
    assert planned.endswith("profile nginx would be deleted; the config of 2 devices would change\n")
    assert site("profile", "delete", "nginx", "--yes").status == 0
    assert (
        site("profile", "delete", "nginx", "--yes").output == "profile nginx is already deleted; nothing is changed\n"
    )
    assert site("install-config", "show", "--device", "pweb-1", "--json").json["installs"] == []


@pytest.mark.integration
def test_mistakes_are_named(site: PlaneSite, tmp_path: Path) -> None:
    new_device(site, "pweb-9", "pweb9")
    file = tmp_path / "p.json"
    file.write_text(json.dumps([FILES]))
    for command in (("profile", "put"), ("rollout", "start")):
        typo = site(*command, "q", str(file), "--devices", "(pweb9 AND not pewb9) or env=*", "--dry-run")
        assert "note: no device has the tag 'pewb9'; did you mean pweb9?" in typo.err
        assert typo.err.count("no device has the tag") == 1
    file.write_text(json.dumps([FILES | {"to": ["/etc/{device.nmae}.pem"]}]))
    for argv, status, says in (
        (("put", "p", str(file), "--devices", "pweb"), ExitStatus.USAGE, "installs[0].to[0]: unknown placeholder {device.nmae}; did you mean {device.name}?"),
        (("put", "p", str(file), "--devices", "pweb && db"), ExitStatus.USAGE, "devices: character 6: expected and, or, or the end instead of '&&'; write and"),
        (("put", "p", str(file)), ExitStatus.USAGE, "Profile p is new: give the devices"),
        (("put", "p", str(file), "--version", "1"), ExitStatus.USAGE, "both a FILE and --version"),
        (("put", "p"), ExitStatus.USAGE, "nothing to change"),
        (("put", "p/../q", str(file), "--devices", "pweb"), ExitStatus.USAGE, "is not the name of a profile"),
        (("show", "p"), ExitStatus.FAILED, "No such profile: p"),
        (("delete", "p", "--yes"), ExitStatus.FAILED, "No such profile: p"),
    ):  # fmt: skip
        done = site("profile", *argv)
        assert (done.status, says in done.err) == (status, True), (argv, done)
    file.write_text("{")
    assert "is not JSON" in site("profile", "put", "p", str(file), "--devices", "pweb").err
    file.write_text("{}")
    assert "does not contain a list of items" in site("profile", "put", "p", str(file), "--devices", "pweb").err
