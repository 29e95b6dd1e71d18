"""`init` and `register`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from certctrl.cli.commands import register as register_module
from certctrl.cli.commands.register import MAX_TOKEN_BYTES, find_token, show_prompt
from certctrl.errors import DiskError, UsageError
from certctrl.model.records import Recommended
from certctrl.store.layout import ConfigDir

from .conftest import Ran

Run = Callable[..., Ran]

TOKEN = "et_mNCLTgVblu4jMZEGF"

# --- init ---------------------------------------------------------------------------------------------------------


def test_init_creates_the_directory_and_prints_the_next_command(tmp_path: Path, ran: Run) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(trustme.CA().cert_pem.bytes())
    root = tmp_path / "agent"
    done = ran("-c", root, "init", "--server", "https://plane.example/", "--ca", ca)
    assert done == (0, f"{root} is ready for https://plane.example\nnext: cert-ctrl -c {root} register\n", "")
    assert root.stat().st_mode & 0o777 == 0o700
    assert json.loads((root / "application.json").read_text()) == {"server_url": "https://plane.example"}
    assert ran("-c", root, "config", "check").status == 0


def test_init_is_idempotent_and_never_overwrites(layout: ConfigDir, ran: Run) -> None:
    before = layout.application.stat().st_mtime_ns
    assert ran("-c", layout.root, "init", "--server", "https://plane.example").status == 0
    assert layout.application.stat().st_mtime_ns == before
    other = ran("-c", layout.root, "init", "--server", "https://other.example")
    assert other.status == 78 and "already exists with other settings" in other.err


def test_init_adds_a_ca_to_a_configuration_without_one(layout: ConfigDir, tmp_path: Path, ran: Run) -> None:
    """The advice for an unknown CA, as printed."""
    ca, other = tmp_path / "ca.pem", tmp_path / "other.pem"
    ca.write_bytes(trustme.CA().cert_pem.bytes())
    other.write_bytes(trustme.CA().cert_pem.bytes())
    layout.httpclient.write_text('{"keepalive_seconds": 7.0}')
    for _ in range(2):
        assert ran("-c", layout.root, "init", "--ca", ca).status == 0
        assert json.loads(layout.httpclient.read_text()) == {"keepalive_seconds": 7.0, "ca_files": ["plane-ca.pem"]}
        assert layout.plane_ca.read_bytes() == ca.read_bytes()
    assert layout.httpclient.stat().st_mode & 0o777 == 0o600
    done = ran("-c", layout.root, "init", "--ca", other)
    assert done.status == 78 and "already contains another CA" in done.err
    assert f"replace {layout.plane_ca} with it and restart the agent" in done.err
    assert layout.plane_ca.read_bytes() == ca.read_bytes()


def test_init_without_a_url_needs_a_configured_one(tmp_path: Path, ran: Run) -> None:
    done = ran("-c", tmp_path / "new", "init")
    assert done == (2, "", "cert-ctrl: error: no control plane given\nfix: add --server URL\n")
    assert not (tmp_path / "new").exists()


def test_init_names_the_device(layout: ConfigDir, ran: Run) -> None:
    for _ in range(2):
        assert ran("-c", layout.root, "init", "--name", "web-1").status == 0
        assert json.loads(layout.application.read_text()) == {"server_url": "https://plane.example", "name": "web-1"}
    assert '"web-1"' in ran("-c", layout.root, "config", "show", "--changed").out
    done = ran("-c", layout.root, "init", "--name", "web-2")
    assert done.status == 78 and "already exists with other settings" in done.err


def test_init_and_config_check_print_json(tmp_path: Path, ran: Run) -> None:
    root = tmp_path / "new"
    shown = ran("-c", root, "init", "--server", "https://plane.example", "--json")
    assert shown.json() == {"directory": str(root), "server_url": "https://plane.example", "registered": False}
    checked = ran("-c", root, "config", "check", "--json").json()
    assert checked["directory"] == str(root) and "policy.json" in checked["files"]


def test_init_with_plain_http_warns(tmp_path: Path, ran: Run) -> None:
    done = ran("-c", tmp_path / "new", "init", "--server", "http://127.0.0.1:8080")
    assert done.status == 0 and done.err.startswith("warning: plain http is for tests")


@pytest.mark.parametrize(
    "url",
    ["http://", "plane.example", "http://plane.example", "ftp://x", "https://", "https://u:p@x", "https://x:99999"],
)
def test_init_rejects_an_invalid_url(url: str, tmp_path: Path, ran: Run) -> None:
    done = ran("-c", tmp_path / "agent", "init", "--server", url)
    assert done.status == 78 and done.err.count("\n") == 2
    assert not (tmp_path / "agent").exists()
    assert "u:p" not in done.err


@pytest.mark.parametrize(
    "content", [b"", b"not pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", None]
)
def test_init_rejects_an_invalid_ca_file(content: bytes | None, tmp_path: Path, ran: Run) -> None:
    ca = tmp_path / "ca.pem"
    if content is not None:
        ca.write_bytes(content)
    done = ran("-c", tmp_path / "agent", "init", "--server", "https://plane.example", "--ca", ca)
    assert done.status == (2 if content is None else 78)
    assert str(ca) in done.err and not (tmp_path / "agent").exists()


def test_init_copies_no_private_key(tmp_path: Path, ran: Run) -> None:
    """The copy of a CA file is public, and a file with certificate and key is easily mistaken for one."""
    ca, key = tmp_path / "ca.pem", trustme.CA().private_key_pem.bytes()
    ca.write_bytes(trustme.CA().cert_pem.bytes() + key)
    done = ran("-c", tmp_path / "agent", "init", "--server", "https://plane.example", "--ca", ca)
    assert done.status == 78 and f"{ca}: contains a private key" in done.err
    assert not (tmp_path / "agent").exists()


# --- register -----------------------------------------------------------------------------------------------------


def test_token_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "token"
    file.write_text(f"  {TOKEN}\n")
    credential = tmp_path / "certctrl.enrolment-token"
    credential.write_text("et_fromsystemd")
    systemd = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert find_token(None, None, {}) is None
    assert find_token(file, None, systemd) == TOKEN
    assert find_token(None, None, systemd) == "et_fromsystemd"
    assert find_token(None, None, {"CERTCTRL_ENROLMENT_TOKEN": "et_env", **systemd}) == "et_env"
    assert capsys.readouterr().err == ""
    assert find_token(None, TOKEN, {"CERTCTRL_ENROLMENT_TOKEN": "et_env"}) == TOKEN
    err = capsys.readouterr().err
    assert err.startswith("warning: ") and TOKEN not in err, "other users can read argv"


def test_a_token_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.write(write, f"{TOKEN}\n".encode())
    os.close(write)
    saved = os.dup(0)
    os.dup2(read, 0)
    try:
        assert find_token(Path("-"), None, {}) == TOKEN
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(read)


@pytest.mark.parametrize("text", ["", "  \n", "two words", "et_a\net_b", "ü", "x" * (MAX_TOKEN_BYTES + 1)])
def test_invalid_tokens(text: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(UsageError, match="does not contain an enrolment token") as caught:
        find_token(file, None, {})
    assert text.strip() == "" or text.strip() not in str(caught.value)


def test_two_token_options_are_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two enrolment tokens"):
        find_token(tmp_path / "a", "b", {})
    with pytest.raises(UsageError, match="No such file"):
        find_token(tmp_path / "missing", None, {})


class Prompt(NamedTuple):
    user_code: str = "ABCD-\x1b[31mEFGH"
    verification_uri: str = "https://plane.example/device"
    verification_uri_complete: str | None = "https://plane.example/device?user_code=ABCD-EFGH"
    expires_in: float = 600.0


def test_the_registration_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    show_prompt(Prompt())
    assert capsys.readouterr().out.splitlines() == [
        "Open     https://plane.example/device",
        "Code     ABCD-\\x1b[31mEFGH",
        "or open  https://plane.example/device?user_code=ABCD-EFGH",
        "Waiting for approval; the code expires in 10m 0s.",
    ]


class Registered(NamedTuple):
    user_id: int = 14
    device_id: int = 3
    name: str = "host\x1b"
    recommended: Recommended | None = None


@pytest.fixture
def registers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """``registers(recommended)``: registrations succeed; returns what they were called with."""

    def prepare(recommended: Recommended | None = None) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        class Http:
            async def aclose(self) -> None:
                seen["closed"] = True

        async def register(given: ConfigDir, *_args: object, **named: object) -> Registered:
            seen.update(named, root=given.root)
            return Registered(recommended=recommended)

        monkeypatch.setattr("certctrl.agent.setup.real_http", lambda *_args: Http())
        monkeypatch.setattr("certctrl.agent.register.register", register)
        monkeypatch.setenv(register_module.TOKEN_VARIABLE, TOKEN)
        return seen

    return prepare


def test_register_sets_the_poll_mode_that_the_plane_recommends(
    layout: ConfigDir, ran: Run, registers: Callable[..., Any]
) -> None:
    before = json.loads(layout.application.read_text())
    registers(Recommended("long-poll"))
    done = ran("-c", layout.root, "register")
    assert "\nset poll_mode to long-poll in application.json, as the control plane recommends\n" in done.out
    assert json.loads(layout.application.read_text()) == before | {"poll_mode": "long-poll"}
    assert ran("-c", layout.root, "config", "check").status == 0


def test_register_prints_the_poll_mode_as_json(layout: ConfigDir, ran: Run, registers: Callable[..., Any]) -> None:
    registers(Recommended("long-poll", 20))
    added = {"poll_mode": "long-poll", "long_poll_wait_seconds": 20}
    expected = {"device_id": 3, "name": "host\x1b", "user_id": 14, **added}
    assert ran("-c", layout.root, "register", "--json").json() == expected
    assert json.loads(layout.application.read_text()).items() >= added.items()


@pytest.mark.parametrize("how", ["nothing recommended", "chosen in the file", "chosen by environment", "known host"])
def test_register_leaves_the_poll_mode_alone(
    how: str, layout: ConfigDir, ran: Run, registers: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "chosen in the file":
        settings = json.loads(layout.application.read_text()) | {"poll_mode": "interval"}
        layout.application.write_text(json.dumps(settings))
    elif how == "chosen by environment":
        monkeypatch.setenv("CERTCTRL_POLL_MODE", "interval")
    elif how == "known host":
        layout.device_secret_key.write_bytes(bytes(range(32)))
        layout.device_secret_key.chmod(0o600)
    before = layout.application.read_bytes()
    registers(None if how == "nothing recommended" else Recommended("long-poll"))
    done = ran("-c", layout.root, "register")
    assert (done.status, "recommend" in done.out + done.err) == (0, False)
    assert layout.application.read_bytes() == before


def test_register_keeps_the_wait_that_an_operator_chose(
    layout: ConfigDir, ran: Run, registers: Callable[..., Any]
) -> None:
    settings = json.loads(layout.application.read_text()) | {"long_poll_wait_seconds": 10}
    layout.application.write_text(json.dumps(settings))
    registers(Recommended("long-poll", 20))
    ran("-c", layout.root, "register")
    assert json.loads(layout.application.read_text()) == settings | {"poll_mode": "long-poll"}


def test_no_recommendation_of_a_hostile_plane_breaks_the_configuration(
    layout: ConfigDir, ran: Run, registers: Callable[..., Any]
) -> None:
    from certctrl.protocol.wire.registration import registration_from_wire

    before, known = layout.application.read_bytes(), json.loads(layout.application.read_text())
    device = {"id": 3, "user_id": 14}
    session = {"access_token": "a", "refresh_token": "b"}
    modes = [
        "push",
        "long_poll",
        "interval",
        "long-poll",
        "PUSH",
        "push\n",
        "",
        "x" * 70_000,
        None,
        True,
        7,
        ["push"],
        {},
    ]
    waits = [1, 30, 0, -1, 31, 10**30, 1.5, 1e300, "20", True, None, [20], {"a": 1}]
    wanted = [{"poll_mode": mode} for mode in modes] + [
        {"poll_mode": "push", "poll_wait_seconds": one} for one in waits
    ]
    for sent in [*wanted, [], [[]], "push", {"poll_mode": {"poll_mode": "push"}}, {"poll_wait_seconds": 20}, 10**30]:
        layout.application.write_bytes(before)
        registers(registration_from_wire({"device": device, "session": session, "recommended": sent}).recommended)
        assert ran("-c", layout.root, "register").status == 0, sent
        assert ran("-c", layout.root, "config", "check").status == 0, sent
        now = json.loads(layout.application.read_text())
        changed = {key: value for key, value in now.items() if known.get(key) != value}
        assert changed.pop("poll_mode", "push") in ("push", "long-poll", "interval"), sent
        assert changed.pop("long_poll_wait_seconds", 1) in (1, 30) and not changed, sent


def test_a_recommendation_that_cannot_be_written_does_not_fail_the_registration(
    layout: ConfigDir, ran: Run, registers: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise DiskError("no space left", path="application.json", errno=28)

    monkeypatch.setattr("certctrl.store.config.files.add_settings", full)
    registers(Recommended("long-poll"))
    done = ran("-c", layout.root, "register")
    assert done.status == 0 and "registered as device 3" in done.out
    assert done.err.startswith("warning: the recommended poll_mode long-poll is not set: ")


def test_register_passes_the_token_and_prints_the_device(
    layout: ConfigDir, ran: Run, registers: Callable[..., dict[str, Any]]
) -> None:
    seen = registers()
    done = ran("-c", layout.root, "register")
    assert (done.status, done.err) == (0, "")
    assert done.out == (
        f"registered as device 3 (host\\x1b) of user 14\nnext: cert-ctrl -c {layout.root} --keep-running\n"
    )
    assert seen["enrolment_token"] == TOKEN and seen["root"] == layout.root and seen["closed"]


def test_register_without_a_plane_is_69_with_a_fix(tmp_path: Path, ran: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(register_module.TOKEN_VARIABLE, raising=False)
    root = tmp_path / "agent"
    assert ran("-c", root, "init", "--server", "https://127.0.0.1:1").status == 0
    done = ran("-c", root, "register")
    assert done.status == 69 and not done.out
    assert [line.partition(": ")[0] for line in done.err.splitlines()] == ["cert-ctrl", "fix"]
