"""Steps of a deployment by the root helper, and everything that may be at a destination instead of a file."""

from __future__ import annotations

import os
import socket
import stat
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from acl import acl_of, packed, set_acl
from helper_world import Direct, direct, rule, write_policy

from certctrl.errors import ConfigError, DiskError, PolicyRefusedError
from certctrl.helper import files
from certctrl.helper.messages import Request, Result, Verb
from certctrl.helper.policy import load_policy
from certctrl.model.paths import MAX_NAME
from certctrl.store.disk.atomic import temp_name
from certctrl.store.disk.fs import FileKind, RealFs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NOBODY = 65534
TEMP, BACKUP = ".a.key.0000000000000001.tmp", ".a.key.0000000000000002.tmp"


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    (tmp_path / "tls").mkdir(mode=0o755)
    return tmp_path / "tls"


@pytest.fixture
def helper(tmp_path: Path, tls: Path) -> Direct:
    rules = [rule(tls / "a.key", str(NOBODY), str(NOBODY)), rule(tls / "*.pem", mode="0644"), rule("/etc/passwd")]
    return direct(policy=write_policy(tmp_path / "p.json", {"files": rules}))


def shown(path: Path) -> tuple[bytes, int, int, int]:
    found = path.lstat()
    return path.read_bytes(), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


def test_a_file_gets_its_name_with_the_rights_of_its_rule(helper: Direct, tls: Path) -> None:
    client, key = helper.client, str(tls / "a.key")
    client.stage(key, TEMP, BACKUP, b"key 1")
    assert os.listdir(tls) == [TEMP], "there is no old file"
    assert shown(tls / TEMP) == (b"key 1", 0o600, NOBODY, NOBODY)
    assert client.observe(key, TEMP)[1] == digest(b"key 1")
    client.put(key, TEMP)
    assert shown(tls / "a.key") == (b"key 1", 0o600, NOBODY, NOBODY)
    found, staged = client.observe(key, TEMP)
    assert (found.sha256, found.mode, found.uid, found.data, staged) == (digest(b"key 1"), 0o600, NOBODY, b"", "")
    client.restore(key, "", digest(b"key 1"))
    assert os.listdir(tls) == []


def test_an_old_file_is_restored_with_the_rights_of_the_rule(helper: Direct, tls: Path) -> None:
    client, key = helper.client, tls / "a.key"
    key.write_bytes(b"old")
    key.chmod(0o640)
    client.stage(str(key), TEMP, BACKUP, b"new")
    assert shown(tls / BACKUP) == (b"old", 0o600, NOBODY, NOBODY)
    client.put(str(key), TEMP)
    client.restore(str(key), BACKUP, digest(b"another"))
    assert shown(key)[0] == b"new", "others have changed it: it stays"
    client.restore(str(key), BACKUP, digest(b"new"))
    assert shown(key) == (b"old", 0o600, NOBODY, NOBODY)
    client.restore(str(key), BACKUP, digest(b"new"))
    client.drop(str(key), TEMP, BACKUP)
    client.drop(str(key), TEMP, BACKUP)
    assert os.listdir(tls) == ["a.key"]


FORMER, SERVICE = 1234, 1235


@pytest.fixture
def former(tmp_path: Path, tls: Path) -> Direct:
    """Return a helper whose rule gave a file to a former owner, for everyone to read."""
    return direct(policy=write_policy(tmp_path / "p.json", {"files": [rule(tls / "a.key", str(FORMER), "0", "0644")]}))


def change_rule(tls: Path) -> None:
    write_policy(tls.parent / "p.json", {"files": [rule(tls / "a.key", str(SERVICE), str(SERVICE), "0640")]})


@pytest.mark.parametrize("kept", [TEMP, BACKUP])
def test_what_a_former_rule_left_does_not_come_back_with_its_rights(former: Direct, tls: Path, kept: str) -> None:
    """Neither a new file that was staged and never put in place, nor the copy of an old one."""
    client, key = former.client, tls / "a.key"
    key.write_bytes(b"old")
    key.chmod(0o644)
    client.stage(str(key), TEMP, BACKUP, b"staged")
    change_rule(tls)
    (tls.parent / "link").hardlink_to(tls / kept)
    with (tls / kept).open("r+b") as opened_by_the_former_owner:
        client.restore(str(key), kept, digest(b"old"))
        opened_by_the_former_owner.write(b"changed")
    data = b"staged" if kept == TEMP else b"old"
    assert shown(key) == (data, 0o640, SERVICE, SERVICE) and key.lstat().st_nlink == 1
    client.drop(str(key), TEMP, BACKUP)
    assert os.listdir(tls) == ["a.key"]


def test_a_former_owner_gets_no_rights_by_a_rollback(former: Direct, tls: Path) -> None:
    client, key = former.client, tls / "a.key"
    key.write_bytes(b"old")
    key.chmod(0o644)
    os.chown(key, FORMER, 0)
    change_rule(tls)
    client.stage(str(key), TEMP, BACKUP, b"new")
    client.put(str(key), TEMP)
    client.restore(str(key), BACKUP, digest(b"new"))
    assert shown(key) == (b"old", 0o640, SERVICE, SERVICE)


def test_a_rollback_opens_no_old_file_to_others(former: Direct, tls: Path) -> None:
    """A pattern of certificates may name a key that was there before."""
    client, key = former.client, tls / "a.key"
    key.write_bytes(b"a key of root's")
    key.chmod(0o600)
    client.stage(str(key), TEMP, BACKUP, b"new")
    assert shown(tls / BACKUP) == (b"a key of root's", 0o640, FORMER, 0)
    client.put(str(key), TEMP)
    client.restore(str(key), BACKUP, digest(b"new"))
    assert shown(key) == (b"a key of root's", 0o640, FORMER, 0)


def test_a_rollback_for_a_user_that_is_missing(former: Direct, tls: Path) -> None:
    client, key = former.client, tls / "a.key"
    key.write_bytes(b"old")
    client.stage(str(key), TEMP, BACKUP, b"new")
    client.put(str(key), TEMP)
    write_policy(tls.parent / "p.json", {"files": [rule(key, "no-such-user", "0", "0644")]})
    with pytest.raises(PolicyRefusedError, match="this host has no no-such-user:0"):
        client.restore(str(key), BACKUP, digest(b"new"))
    assert shown(key) == (b"new", 0o644, FORMER, 0) and (tls / BACKUP).exists(), "until root corrects the rule"


def test_a_killed_restore_can_be_repeated(former: Direct, tls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, key = former.client, tls / "a.key"
    key.write_bytes(b"old")
    client.stage(str(key), TEMP, BACKUP, b"new")
    client.put(str(key), TEMP)
    change_rule(tls)
    with monkeypatch.context() as patched:
        patched.setattr(RealFs, "rename", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            client.restore(str(key), BACKUP, digest(b"new"))
    assert len(os.listdir(tls)) == 3
    client.restore(str(key), BACKUP, digest(b"new"))
    assert os.listdir(tls) == ["a.key"] and shown(key) == (b"old", 0o640, SERVICE, SERVICE)


@pytest.mark.parametrize("letter", ["k", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\N{GRINNING FACE}"])
def test_the_longest_name_leaves_room_for_those_of_all_copies(tmp_path: Path, tls: Path, letter: str) -> None:
    key = tls / (letter * (MAX_NAME // len(letter.encode())))
    helper = direct(policy=write_policy(tmp_path / "p.json", {"files": [rule(key, str(FORMER), "0", "0644")]}))
    key.write_bytes(b"old")
    temp, backup = (temp_name(RealFs(), key.name) for _ in range(2))
    helper.client.stage(str(key), temp, backup, b"new")
    helper.client.put(str(key), temp)
    write_policy(tmp_path / "p.json", {"files": [rule(key, str(SERVICE), "0", "0640")]})  # so that it is copied again
    helper.client.restore(str(key), backup, digest(b"new"))
    assert shown(key) == (b"old", 0o640, SERVICE, 0)
    helper.client.drop(str(key), temp, backup)
    assert os.listdir(tls) == [key.name]
    longer = rule(f"{key}k")
    with pytest.raises(ConfigError, match="too long"):
        load_policy(RealFs(), write_policy(tmp_path / "p.json", {"files": [longer]}))


def test_a_file_is_removed_only_with_the_expected_bytes(helper: Direct, tls: Path) -> None:
    (tls / "a.key").write_bytes(b"key")
    assert helper.client.remove(str(tls / "a.key"), digest(b"other")) != ""
    assert helper.client.remove(str(tls / "a.key"), digest(b"key")) == ""
    assert helper.client.remove(str(tls / "a.key"), digest(b"key")) == "", "idempotent"
    assert os.listdir(tls) == []


def test_a_mounted_file_is_not_emptied(helper: Direct, tls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tls / "a.key").write_bytes(b"key")
    monkeypatch.setattr(RealFs, "mount", lambda self, handle: hash(handle.path))
    with pytest.raises(PolicyRefusedError, match="mount point"):
        helper.client.remove(str(tls / "a.key"), digest(b"key"))
    assert (tls / "a.key").read_bytes() == b"key"


def plant(path: Path, kind: str) -> None:
    """Put something else than a plain file at a path."""
    match kind:
        case "link":
            path.symlink_to("/etc/passwd")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        case "socket":
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(str(path))
        case "hard link":
            (path.parent / "other").write_bytes(b"other's")
            os.link(path.parent / "other", path)
        case "huge":
            with path.open("wb") as file:
                file.truncate(1 << 30)


STRANGE = pytest.mark.parametrize("kind", ["link", "directory", "fifo", "device", "socket", "hard link", "huge"])


@STRANGE
def test_only_plain_files_are_replaced(helper: Direct, tls: Path, kind: str) -> None:
    plant(tls / "a.key", kind)
    before = {path.name: path.lstat() for path in tls.iterdir()}
    with pytest.raises((PolicyRefusedError, DiskError)) as caught:
        helper.client.stage(str(tls / "a.key"), TEMP, BACKUP, b"new")
    assert caught.value.fix
    for act in (
        lambda: helper.client.remove(str(tls / "a.key"), digest(b"")),
        lambda: helper.client.restore(str(tls / "a.key"), "", digest(b"")),
        lambda: helper.client.put(str(tls / "a.key"), TEMP),
        lambda: helper.client.observe(str(tls / "a.key")),
    ):
        try:
            act()
        except (PolicyRefusedError, DiskError):
            continue
    assert {path.name: (path.lstat().st_ino, path.lstat().st_mode) for path in tls.iterdir()} == {
        name: (found.st_ino, found.st_mode) for name, found in before.items()
    }


@STRANGE
def test_only_plain_files_are_put_in_place(helper: Direct, tls: Path, kind: str) -> None:
    """If root itself put something else there: not even then."""
    plant(tls / TEMP, kind)
    with pytest.raises((PolicyRefusedError, DiskError)):
        helper.client.put(str(tls / "a.key"), TEMP)
    assert not (tls / "a.key").exists()


@pytest.mark.parametrize(
    "temp",
    ["", "a.key", ".a.key.tmp", ".a.key..tmp", ".b.key.0000000000000001.tmp", ".a.key.00/../../x.tmp", "../.a.key.01.tmp",
     ".a.key.01.tmp/", ".a.key.01.tmp\0", ".a.key.\u0661.tmp", "/etc/passwd", ".a.key." + "0" * 300 + ".tmp"],
)  # fmt: skip
def test_names_of_temporary_files_are_those_of_the_agent(helper: Direct, tls: Path, temp: str) -> None:
    key = str(tls / "a.key")
    for do in (Verb.STAGE, Verb.PUT, Verb.RESTORE, Verb.DROP):
        data = b"x" if do is Verb.STAGE else None
        temps = {"temp": "" if do is Verb.RESTORE else temp, "backup": temp if do is Verb.RESTORE else BACKUP}
        if do is Verb.RESTORE and not temp:
            continue  # no old file
        answer = helper.ask(Request(do=do, path=key, sha256=digest(b"x"), **temps), data)
        assert answer.result in (Result.REFUSED, Result.FAILED), do
    assert os.listdir(tls) == []


@pytest.mark.parametrize(
    "path",
    ["{tls}/../tls/a.key", "{tls}/./a.key", "{tls}//a.key", "{tls}/b.key", "{tls}", "{tls}/a.key/", "a.key", "", "/etc/shadow",
     "{tls}/.hidden.pem", "{tls}/x/y.pem", "{tls}/a.key\0", "{tls}/a.key\n"],
)  # fmt: skip
def test_other_paths_are_refused(helper: Direct, tls: Path, path: str) -> None:
    for do in (Verb.INSPECT, Verb.STAGE, Verb.PUT, Verb.RESTORE, Verb.DROP, Verb.REMOVE):
        data = b"x" if do is Verb.STAGE else None
        request = Request(do=do, path=path.format(tls=tls), temp=TEMP, backup=BACKUP, sha256=digest(b"x"))
        assert helper.ask(request, data).result in (Result.UNNAMED, Result.REFUSED)
    assert os.listdir(tls) == []


@pytest.mark.parametrize("change", ["owner", "mode", "group", "above", "link", "gone"])
def test_directories_that_others_can_change_are_refused(helper: Direct, tls: Path, change: str) -> None:
    match change:
        case "owner":
            os.chown(tls, NOBODY, 0)
        case "mode":
            tls.chmod(0o777)
        case "group":
            os.chown(tls, 0, NOBODY)
            tls.chmod(0o775)
        case "above":
            os.chown(tls.parent, NOBODY, 0)
        case "link":
            tls.rename(tls.parent / "real")
            tls.symlink_to("real")
        case "gone":
            tls.rmdir()
    with pytest.raises(PolicyRefusedError):
        helper.client.stage(str(tls / "a.key"), TEMP, BACKUP, b"new")
    if change != "above":
        assert helper.client.observe(str(tls / "a.key"))[0].refusal
    assert not list(tls.parent.rglob(".a.key*"))


def test_the_owner_of_a_rule_may_not_own_the_directory(helper: Direct, tls: Path) -> None:
    """Stricter than the agent's own writes: the helper works for two users, and one must not steer it."""
    os.chown(tls, NOBODY, NOBODY)
    with pytest.raises(PolicyRefusedError, match="belongs to user 65534"):
        helper.client.stage(str(tls / "a.key"), TEMP, BACKUP, b"new")


def test_a_staged_file_with_other_rights_is_not_put_in_place(helper: Direct, tls: Path) -> None:
    """The policy, or the file, may have changed since it was staged."""
    helper.client.stage(str(tls / "a.key"), TEMP, BACKUP, b"new")
    (tls / TEMP).chmod(0o644)
    with pytest.raises(PolicyRefusedError, match="other rights"):
        helper.client.put(str(tls / "a.key"), TEMP)


def test_temporary_files_are_limited(helper: Direct, tls: Path) -> None:
    made = 0
    with pytest.raises(PolicyRefusedError, match="too many temporary files"):
        for number in range(100):
            helper.client.stage(str(tls / "a.key"), f".a.key.{number:016x}.tmp", BACKUP, b"new")
            made += 1
    assert made == files.MOST_TEMPS - 1


def test_new_files_of_a_pattern_are_limited(helper: Direct, tls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_FILES", 3)
    for number in range(3):
        (tls / f"{number}.pem").write_bytes(b"")
    with pytest.raises(PolicyRefusedError, match="more than 3 files"):
        helper.client.stage(str(tls / "x.pem"), ".x.pem.01.tmp", ".x.pem.02.tmp", b"new")
    helper.client.stage(str(tls / "1.pem"), ".1.pem.01.tmp", ".1.pem.02.tmp", b"new")


def test_a_failed_stage_leaves_nothing(helper: Direct, tls: Path) -> None:
    (tls / "a.key").write_bytes(b"old")
    (tls / TEMP).write_bytes(b"there already")
    with pytest.raises(DiskError):
        helper.client.stage(str(tls / "a.key"), TEMP, BACKUP, b"new")
    assert not (tls / BACKUP).exists()


def test_the_rights_given_by_an_acl_stay(helper: Direct, tls: Path, need_acl: Any) -> None:
    need_acl(tls)
    (tls / "x.pem").write_bytes(b"old")
    set_acl(tls / "x.pem", "user::6 user:1234:4 group::0 mask::4 other::4")
    helper.client.stage(str(tls / "x.pem"), ".x.pem.01.tmp", ".x.pem.02.tmp", b"new")
    helper.client.put(str(tls / "x.pem"), ".x.pem.01.tmp")
    assert acl_of(tls / "x.pem") == packed("user::6 user:1234:4 group::0 mask::4 other::4")
    assert shown(tls / "x.pem") == (b"new", 0o644, 0, 0)


def test_a_former_owner_keeps_no_rights(helper: Direct, tls: Path, need_acl: Any) -> None:
    """Its access control list may be its own work: it would read the key of the next owner."""
    need_acl(tls)
    (tls / "x.pem").write_bytes(b"old")
    set_acl(tls / "x.pem", "user::6 user:1234:4 group::0 mask::4 other::4")
    os.chown(tls / "x.pem", 1234, 1234)
    helper.client.stage(str(tls / "x.pem"), ".x.pem.01.tmp", ".x.pem.02.tmp", b"new")
    helper.client.put(str(tls / "x.pem"), ".x.pem.01.tmp")
    assert acl_of(tls / "x.pem") is None and shown(tls / "x.pem") == (b"new", 0o644, 0, 0)
    helper.client.restore(str(tls / "x.pem"), ".x.pem.02.tmp", digest(b"new"))
    assert acl_of(tls / "x.pem") is None and shown(tls / "x.pem") == (b"old", 0o644, 0, 0)


def test_a_rule_for_a_user_that_is_missing(tmp_path: Path, tls: Path) -> None:
    helper = direct(policy=write_policy(tmp_path / "p.json", {"files": [rule(tls / "a.key", owner="no-such-user")]}))
    with pytest.raises(PolicyRefusedError, match="this host has no no-such-user:0"):
        helper.client.stage(str(tls / "a.key"), TEMP, BACKUP, b"new")
    assert helper.client.observe(str(tls / "a.key"))[0].kind is FileKind.MISSING
