"""`--dry-run` of the commands of operators, against a served plane."""

from __future__ import annotations

from typing import Any

import pytest
from nacl.public import PrivateKey
from plane_commands import PlaneSite
from proving import registration
from typer.main import get_command

from certctrl.cli.plane.commands import plane
from certctrl.cli.plane.connection import WITHOUT_TRIAL, OperatorCommand
from certctrl.errors import ExitStatus


def commands(group: Any, path: str = "") -> list[tuple[str, Any]]:
    """Return the commands of operators below a group, with their paths."""
    found = []
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            found += commands(one, f"{path}{name} ")
        elif isinstance(one, OperatorCommand):
            found.append((f"{path}{name}", one))
    return found


def test_every_command_that_changes_something_has_a_dry_run() -> None:
    found = {
        path: any("--dry-run" in param.opts for param in command.params)
        for path, command in commands(get_command(plane))
    }
    assert {path for path, has in found.items() if not has} == {
        path for path in found if path.rpartition(" ")[2] in WITHOUT_TRIAL
    }
    assert found["rollout abort"] and found["tag"] and found["profile put"] and not found["devices"]
    assert not found["alerts test"], "its request is refused as a dry run"


@pytest.mark.integration
def test_commands_say_what_would_change(site: PlaneSite) -> None:
    token = site("enrolment-token", "--uses", "0").output.strip()
    body = registration("id-of-t-1", PrivateKey.generate(), "t-1") | {"enrolment_token": token}
    device = str(site.register(body)["device"]["id"])
    number = str(site("issue", "tried.example.com", "--device", device, "--json").json["id"])
    row = next(one for one in site("certificates", "--json").json if str(one["id"]) == number)
    said = site("renew", number, "--dry-run").output.splitlines()
    assert said[0].startswith(f"certificate {number} (tried.example.com): ")
    assert said[-1] == "dry run of certificate.renew: nothing was changed"
    said = site("revoke", number, "--dry-run").output
    assert "status active -> revoked" in said
    tried = site("tag", "t-1", "--add", "blue", "--dry-run", "--json").json
    assert (tried["action"], tried["changes"][0]["after"]) == ("device.tag", {"tags": ["blue"]})
    new, end = site("issue", "other.example.com", "--dry-run").output.splitlines()
    assert new.startswith('new certificate (other.example.com): names ["other.example.com"]; status active; ')
    assert end == "dry run of certificate.issue: nothing was changed"
    refused = site("revoke", "99999", "--dry-run")
    assert (refused.status, "No such certificate" in refused.err) == (ExitStatus.FAILED, True)
    assert next(one for one in site("certificates", "--json").json if str(one["id"]) == number) == row
