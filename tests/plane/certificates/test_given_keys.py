"""Keys of a control plane that come from outside of its data directory."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from certctrl.cli.main import run_command
from certctrl.cli.plane.secrets import OPERATOR_CREDENTIAL, STORAGE_CREDENTIAL, given_keys
from certctrl.errors import ConfigError, ExitStatus
from certctrl.plane.core import Plane
from certctrl.plane.storage.data_dir import GivenKeys

OPERATOR = "ok_one-key-that-is-long-enough"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A file with the storage key of another data directory."""
    Plane.open(tmp_path / "other").close()
    return tmp_path / "other" / "storage.key"


@pytest.fixture
def operator(tmp_path: Path) -> Path:
    return written(tmp_path / "operator", OPERATOR)


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def keys(storage: Path, operator: Path) -> GivenKeys:
    return given_keys(str(storage), str(operator), {})


def test_without_options_and_credentials_no_key_is_given(tmp_path: Path) -> None:
    assert given_keys("", "", {}) == given_keys("", "", {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == GivenKeys()


def test_an_option_comes_before_a_credential(storage: Path, tmp_path: Path) -> None:
    for credential in (STORAGE_CREDENTIAL, OPERATOR_CREDENTIAL):
        written(tmp_path / credential, "another key", 0o440)  # systemd restricts the directory
    found = given_keys(str(storage), "", {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert found.storage is not None and found.storage.text == storage.read_text().strip()
    assert found.operator is not None and found.operator.text == "another key"
    assert "another key" not in repr(found)


def test_given_keys_are_used_and_not_written(keys: GivenKeys, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Plane.open(data, keys=keys) as plane:
        assert plane.operator_key == OPERATOR
        assert plane.data is not None and plane.data.operator_key == tmp_path / "operator"
    assert not list(data.glob("*.key"))
    with Plane.open(data, keys=keys):
        pass
    with pytest.raises(ConfigError, match=r"storage\.key: is missing"):
        Plane.open(data)


def test_credentials_replace_the_keys_of_the_directory(tmp_path: Path) -> None:
    data, credentials = tmp_path / "data", tmp_path / "credentials"
    with Plane.open(data) as plane:
        sealed, key = plane.keyring.seal("x", b"secret"), plane.operator_key
    credentials.mkdir()
    for name in ("storage.key", "operator.key"):
        (data / name).rename(credentials / f"certctrl-{name.replace('.', '-')}")
    for path in credentials.iterdir():
        path.chmod(0o400)
    with pytest.raises(ConfigError, match="is missing"):
        Plane.open(data)
    with Plane.open(data, keys=given_keys("", "", {"CREDENTIALS_DIRECTORY": str(credentials)})) as plane:
        assert (plane.keyring.unseal("x", sealed), plane.operator_key) == (b"secret", key)
    assert not (data / "storage.key").exists() and not (data / "operator.key").exists()


def test_two_storage_keys_are_refused(keys: GivenKeys, tmp_path: Path) -> None:
    data = tmp_path / "data"
    Plane.open(data).close()
    with pytest.raises(ConfigError, match=r"other/storage\.key: differs from .*data/storage\.key") as caught:
        Plane.open(data, keys=keys)
    assert keys.storage is not None and keys.storage.text not in f"{caught.value}{caught.value.fix}"


def test_a_storage_key_of_another_database_is_named(keys: GivenKeys, tmp_path: Path) -> None:
    data = tmp_path / "data"
    Plane.open(data).close()
    for name in ("storage.key", "operator.key"):
        (data / name).unlink()
    with pytest.raises(ConfigError, match=r"other/storage\.key: does not decrypt"):
        Plane.open(data, keys=keys)


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("not a key", 0o600, "is not a 32-byte key"),
        ("", 0o600, "must contain one line: the storage key"),
        (None, 0o600, "cannot be read: No such file"),
        ("key", 0o640, "is readable by other users"),
    ],
)
def test_an_unusable_file_ends_the_start_with_78(
    text: str | None, mode: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "key"
    if text is not None:
        written(file, text, mode)
    argv = ["plane", "serve", "--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0"]
    assert run_command([*argv, "--storage-key-file", str(file)]) == ExitStatus.CONFIG
    error = capsys.readouterr().err
    assert f"{file}: {words}" in error
    if text is not None:
        assert stat.S_IMODE(file.stat().st_mode) == mode


def test_a_backup_is_restored_with_given_keys(keys: GivenKeys, storage: Path, operator: Path, tmp_path: Path) -> None:
    data, file = ["--data", str(tmp_path / "data")], str(tmp_path / "backup.db")
    Plane.open(tmp_path / "data", keys=keys).close()
    assert run_command(["plane", "backup", file, *data]) == 0
    assert run_command(["plane", "restore", file, *data]) == ExitStatus.CONFIG, "without the keys"
    options = ["--storage-key-file", str(storage), "--operator-key-file", str(operator)]
    assert run_command(["plane", "restore", file, *data, *options]) == 0
