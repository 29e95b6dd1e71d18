"""Data directory, keys and database: modes under any umask, sealed secrets, one process, restarts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from certctrl.errors import BusyError, ConfigError, DiskError
from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.devices.grants import GrantRequest
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.data_dir import DataDir
from certctrl.plane.tls import ServerCertificate, host_for_url, names_of

PUBLIC_KEY = bytes(range(1, 33))
SECRETS = ("storage.key", "operator.key", "plane.db", "plane.lock")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "plane"


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def opened(data: Path | None, wall: float = 1_790_000_000.0, **settings: Any) -> Plane:
    return Plane.open(data, settings=PlaneSettings(**settings), wall_now=lambda: wall, monotonic=lambda: 0.0)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def busy(plane: Plane) -> dict[str, Any]:
    """Use every part of the plane; return the state that must survive a restart."""
    with plane.database.transaction():
        facts = DeviceFacts(device_public_id="device-1", name="web-1")
        device_id = plane.devices.add(1, facts)
        plane.devices.activate(device_id, facts, PUBLIC_KEY)
        session = plane.sessions.start(device_id)
    row = await plane.certificates.issue(1, ["a.example"], device_ids=[device_id])
    await plane.installs.put(device_id, [{"id": 1, "type": "exec", "cmd_argv": ["/bin/true"]}])
    ca = plane.authorities.add(1, "own")
    await plane.authorities.assign(1, device_id, ca["id"])
    token = plane.enrolment.new_token(1)
    page = plane.stream.read(device_id, None, 100)
    return {
        "device": device_id, "session": session, "row": row, "install": plane.installs.document(device_id),
        "token": token["token"], "page": page, "operator": plane.operator_key, "root": plane.ca.root_pem,
        "shown": plane.devices.show(1, device_id),
    }  # fmt: skip


def test_all_files_are_created_private(data: Path, open_umask: None) -> None:
    with opened(data) as plane:
        assert plane.data is not None
        for path in (data, *data.iterdir()):
            expected = 0o700 if path == data else 0o644 if path.suffix == ".pem" else 0o600
            assert mode(path) == expected, path
        assert {path.name for path in data.iterdir()} >= {*SECRETS, "ca.pem"}
    assert not list(data.glob("*.tmp"))


async def test_the_servers_key_is_private_too(data: Path, open_umask: None) -> None:
    with opened(data) as plane:
        assert plane.data is not None
        await ServerCertificate(plane, plane.data, names_of("127.0.0.1", ())).load()
        assert (mode(data / "tls.key"), mode(data / "tls.pem")) == (0o600, 0o644)


def test_modes_that_are_too_open_are_restricted(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(data).close()
    data.chmod(0o755)
    for name in SECRETS:
        (data / name).chmod(0o644)
    opened(data).close()
    assert mode(data) == 0o700
    assert {mode(data / name) for name in SECRETS if name != "plane.lock"} == {0o600}
    assert "was accessible to other users" in caplog.text
    assert "consider a new key" in caplog.text


def test_one_plane_at_a_time(data: Path) -> None:
    with opened(data):
        with pytest.raises(BusyError) as caught:
            opened(data)
        assert f"process {os.getpid()}" in str(caught.value)
        assert caught.value.fix
    opened(data).close()


def test_a_file_instead_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plane").write_text("")
    with pytest.raises((ConfigError, DiskError)):
        opened(tmp_path / "plane")


@pytest.mark.root
def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plane").mkdir()
    os.chown(tmp_path / "plane", 12345, 12345)
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path / "plane")
    assert "12345" in str(caught.value)
    assert "chown" in (caught.value.fix or "")


async def test_a_restart_loses_nothing(data: Path) -> None:
    with opened(data) as plane:
        before = await busy(plane)
    with opened(data, wall=1_790_000_100.0) as plane:
        device = before["device"]
        session = plane.sessions.authenticate(before["session"]["access_token"])
        assert (session.device_id, session.user_id) == (device, 1)
        assert plane.sessions.refresh(before["session"]["refresh_token"], "device-1")["token_type"] == "Bearer"
        assert plane.devices.show(1, device) == before["shown"]
        assert plane.certificates.show(1, before["row"]["id"]) == before["row"]
        assert plane.certificates.materials(device, before["row"]["id"])["certificate_pem"]
        assert plane.installs.document(device) == before["install"]
        assert plane.stream.read(device, None, 100) == before["page"]
        assert (plane.stream.read(device, before["page"].cursor, 100)).signals == ()
        assert (plane.operator_key, plane.ca.root_pem) == (before["operator"], before["root"])
        plane.enrolment._allow_unproven_keys = True
        facts = DeviceFacts(device_public_id="device-2")
        assert plane.enrolment.register_unattended(before["token"], facts, PUBLIC_KEY)["device"]["id"] == device + 1
        renewed = await plane.certificates.renew(1, before["row"]["id"])
        assert renewed["serial_number"] != before["row"]["serial_number"]


async def test_sightings_survive_an_orderly_stop(data: Path) -> None:
    with opened(data) as plane:
        before = await busy(plane)
        plane.devices.seen(before["device"], "192.0.2.9", before["page"].cursor)
    with opened(data) as plane:
        shown = plane.devices.show(1, before["device"])
        assert (shown["last_address"], shown["signals_waiting"]) == ("192.0.2.9", 0)


async def test_the_database_contains_no_plaintext_secret(data: Path) -> None:
    with opened(data) as plane:
        before = await busy(plane)
        grant = plane.grants.start(GrantRequest(), "x")
        assert isinstance(grant, dict)
        page = await plane.operators.sign_in(plane.operator_key, "x")
        key = plane.keyring.unseal(
            f"certificate {before['row']['id']}",
            plane.database.one("SELECT private_key_enc FROM certificates")["private_key_enc"],  # type: ignore[index]
        )
        secrets = {
            "certificate key": key[40:72],
            "refresh token": before["session"]["refresh_token"].partition(".")[2].encode(),
            "enrolment token": before["token"].encode(), "operator key": plane.operator_key.encode(),
            "device code": grant["device_code"].encode(), "page session": page.encode(),
            "pem": b"PRIVATE KEY",
        }  # fmt: skip
        for stage in ("running", "closed"):
            if stage == "closed":
                plane.close()
            stored = b"".join(path.read_bytes() for path in data.glob("plane.db*"))
            assert b"a.example" in stored, "the search covers stored data"
            found = [name for name, secret in secrets.items() if secret in stored]
            assert not found, stage


def test_sealed_rows_cannot_be_swapped(data: Path) -> None:
    with opened(data) as plane:
        sealed = plane.keyring.seal("certificate 1", b"key")
        assert plane.keyring.unseal("certificate 1", sealed) == b"key"
        with pytest.raises(ConfigError):
            plane.keyring.unseal("certificate 2", sealed)


def test_a_missing_storage_key_is_not_replaced(data: Path) -> None:
    opened(data).close()
    (data / "storage.key").rename(data / "elsewhere")
    with pytest.raises(ConfigError) as caught:
        opened(data)
    assert "storage.key" in str(caught.value)
    assert not (data / "storage.key").exists()
    (data / "elsewhere").rename(data / "storage.key")
    opened(data).close()


@pytest.mark.parametrize("content", [b"", b"AAAA\n", b"\xff\xfe", b"A" * 22 + b"==\n"])
def test_a_damaged_storage_key_is_reported(data: Path, content: bytes) -> None:
    opened(data).close()
    (data / "storage.key").write_bytes(content)
    with pytest.raises(ConfigError, match=r"storage\.key: is not a 32-byte key"):
        opened(data)


def test_a_wrong_storage_key_is_reported(data: Path, tmp_path: Path) -> None:
    opened(data).close()
    opened(tmp_path / "other").close()
    (tmp_path / "other" / "storage.key").rename(data / "storage.key")
    with pytest.raises(ConfigError, match="does not decrypt"):
        opened(data)


def test_an_existing_operator_key_is_used_unchanged(data: Path) -> None:
    opened(data).close()
    (data / "operator.key").write_text("ok_my-own-key-of-some-length\n")
    with opened(data) as plane:
        assert plane.operator_key == "ok_my-own-key-of-some-length"
    (data / "operator.key").write_text("\n")
    with pytest.raises(ConfigError, match=r"operator\.key"):
        opened(data)
    (data / "operator.key").unlink()
    with opened(data) as plane:
        assert plane.operator_key.startswith("ok_")


def test_a_damaged_database_is_reported_and_not_modified(data: Path) -> None:
    opened(data).close()
    (data / "plane.db").write_bytes(b"this is no database at all" * 50)
    with pytest.raises(DiskError) as caught:
        opened(data)
    assert "plane.db" in str(caught.value)
    assert (data / "plane.db").read_bytes().startswith(b"this is no database")


def test_a_database_of_a_newer_release_is_not_modified(data: Path) -> None:
    with opened(data) as plane:
        plane.database.run("PRAGMA user_version = 999")
    with pytest.raises(ConfigError, match="newer release"):
        opened(data)


def test_in_memory_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(None) as plane:
        assert plane.data is None
    assert list(tmp_path.iterdir()) == []


def test_transactions_join_and_roll_back_whole(data: Path) -> None:
    with opened(data) as plane:
        with pytest.raises(ZeroDivisionError), plane.database.transaction():
            plane.devices.add_user("a")
            with plane.database.transaction():
                plane.devices.add_user("b")
            raise ZeroDivisionError
        assert len(plane.devices.users()) == 1
        with plane.database.transaction():
            plane.devices.add_user("c")
        assert len(plane.devices.users()) == 2


@pytest.mark.parametrize(
    "settings", [{"poll_burst": 0}, {"stream_length": 0}, {"poll_rate": 0}, {"access_token_seconds": 0}]
)
def test_invalid_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PlaneSettings(**settings)


def test_reprs_contain_no_secrets(data: Path) -> None:
    with opened(data) as plane:
        seen = repr((plane, plane.keyring, plane.ca, plane.sessions, vars(plane.ca)))
        assert plane.operator_key not in seen
        assert "PRIVATE" not in seen


# --- the plane's own certificate --------------------------------------------------------------------------------------


def test_names_for_the_certificate_and_the_url() -> None:
    always = ("localhost", "127.0.0.1", "::1")
    assert names_of("127.0.0.1", ()) == ("127.0.0.1", "localhost", "::1")
    assert names_of("192.0.2.5", ("plane.example",)) == ("plane.example", "192.0.2.5", *always)
    assert names_of("0.0.0.0", ()) == names_of("::", ()) == always
    assert host_for_url("0.0.0.0", ()) == "localhost"
    assert host_for_url("::1", ()) == "[::1]"
    assert host_for_url("192.0.2.5", ()) == "192.0.2.5"
    assert host_for_url("::", ("plane.example",)) == "plane.example"


async def test_the_certificate_is_kept_while_usable_and_renewed_in_time(data: Path) -> None:
    with opened(data) as plane:
        assert plane.data is not None

        async def load(wall: float, names: tuple[str, ...] = ("a.example",)) -> bytes:
            plane.wall_now = lambda: wall
            plane.anchor.own._wall_now = lambda: wall
            certificate = ServerCertificate(plane, DataDir(data), names)
            await certificate.load()
            assert not await certificate.renew_when_due()
            return (data / "tls.pem").read_bytes()

        now, day = 1_790_000_000.0, 86_400
        first = await load(now)
        assert await load(now + 59 * day) == first
        second = await load(now + 61 * day)
        assert second != first
        third = await load(now + 61 * day, ("a.example", "b.example"))
        assert third != second
        (data / "tls.key").write_bytes(b"")
        assert await load(now + 61 * day, ("a.example", "b.example")) != third
        fourth = (data / "tls.pem").read_bytes()
        (data / "tls.pem").write_bytes(third)
        assert await load(now + 61 * day, ("a.example", "b.example")) not in (third, fourth), (
            "a mismatched pair is replaced"
        )
