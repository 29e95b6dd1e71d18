"""Issuers of the kind `command`: what programs get, what they answer, how they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from made_chains import NOW, Made, csr_of, made, pki

from certctrl.errors import ConfigError
from certctrl.plane import commands
from certctrl.plane.ca.issuer import inline
from certctrl.plane.issuers.command import KIND, CommandIssuer
from certctrl.plane.issuers.issuer import CertificateRequest, IssuerContext, IssuerError
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.sqlite import SqliteDatabase

NAMES = ("www.example.com", "192.0.2.7")
CSR, KEY = csr_of(NAMES)
ROOT, MIDDLE = pki()
LEAF = made("www.example.com", MIDDLE, names=NAMES, key=KEY)

Make = Callable[..., CommandIssuer]


def request(**more: Any) -> CertificateRequest:
    return CertificateRequest(names=NAMES, csr_der=CSR, validity_seconds=7_776_000, **more)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the programs that the plane may run."""
    place = tmp_path / "commands"
    place.mkdir(mode=0o755)
    monkeypatch.setenv(commands.DIRECTORIES_VARIABLE, str(place))
    return place


@pytest.fixture
def make(directory: Path) -> Iterator[Make]:
    """Return ``make(script)``: an issuer whose program is a shell script."""

    def build(script: str, *, seconds: int = 60, secrets: Mapping[str, bytes] | None = None) -> CommandIssuer:
        program = directory / "ca"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        settings = KIND.check_settings(
            {"command": [str(program), "--profile", "web"], "timeout_seconds": seconds}, secrets or {}
        )
        context = IssuerContext(
            "house", database=database, keyring=Keyring.open(None), settings=PlaneSettings(),
            wall_now=lambda: NOW, offload=inline, solvers=lambda *_: pytest.fail("no challenges"),
        )  # fmt: skip
        return KIND.make(settings, secrets or {}, context)

    with closing(SqliteDatabase(None, inline)) as database:
        yield build


def printing(directory: Path, *chain: Made) -> str:
    """Return a script that prints certificates."""
    (directory / "answer.pem").write_text("".join(one.pem for one in chain))
    return f"cat > /dev/null; cat {directory}/answer.pem"


async def test_the_printed_chain_is_sorted(make: Make, directory: Path) -> None:
    issued = await make(printing(directory, ROOT, MIDDLE, LEAF)).issue(request())
    assert (issued.certificate_pem, issued.chain_pem) == (LEAF.pem, MIDDLE.pem)


async def test_a_program_gets_csr_words_and_environment(make: Make, directory: Path) -> None:
    seen = directory / "seen"
    script = f'cat > {seen}.csr; echo "$@" > {seen}; env | sort >> {seen}; {printing(directory, LEAF, MIDDLE)}'
    await make(script).issue(request(profile="short", must_staple=True))
    assert (directory / "seen.csr").read_text().startswith("-----BEGIN CERTIFICATE REQUEST-----")
    words, *lines = seen.read_text().splitlines()
    assert words == "--profile web issue"
    environment = dict(line.split("=", 1) for line in lines)
    assert {name: value for name, value in environment.items() if name.startswith("CERTCTRL_")} == {
        "CERTCTRL_ISSUER": "house", "CERTCTRL_ACTION": "issue", "CERTCTRL_NAMES": "www.example.com 192.0.2.7",
        "CERTCTRL_DNS_NAMES": "www.example.com", "CERTCTRL_IP_ADDRESSES": "192.0.2.7", "CERTCTRL_PROFILE": "short",
        "CERTCTRL_VALIDITY_SECONDS": "7776000", "CERTCTRL_MUST_STAPLE": "1", "CERTCTRL_MEMO": "",
    }  # fmt: skip
    assert set(environment) - {"PWD", "SHLVL", "_", "OLDPWD"} >= {"PATH", "LANG"}
    assert "PYTEST_CURRENT_TEST" not in environment


async def test_secrets_are_files_in_memory(make: Make, directory: Path) -> None:
    """Neither arguments nor environment contain a secret, and its file cannot be changed."""
    script = (
        f'cat "$CERTCTRL_SECRET_TOKEN" > {directory}/token; cat "$CERTCTRL_SECRET_TOKEN" >> {directory}/token\n'
        f'(echo x > "$CERTCTRL_SECRET_TOKEN") 2>/dev/null && exit 1\n'
        f"cat /proc/$$/cmdline /proc/$$/environ > {directory}/public; {printing(directory, LEAF, MIDDLE)}"
    )
    issuer = make(script, secrets={"token": b"hunter-two\n"})
    await issuer.issue(request())
    assert (directory / "token").read_bytes() == b"hunter-two\nhunter-two\n"
    assert b"hunter" not in (directory / "public").read_bytes()
    assert "hunter" not in repr(issuer)


async def test_secrets_do_not_appear_in_errors(make: Make) -> None:
    issuer = make('echo "wrong token: $(cat $CERTCTRL_SECRET_TOKEN)" >&2; exit 77', secrets={"token": b"hunter\n"})
    with pytest.raises(IssuerError, match=r"status 77: wrong token: \*\*\*$"):
        await issuer.issue(request())


@pytest.mark.parametrize(
    ("script", "is_permanent", "says"),
    [
        ("exit 1", False, "ended with status 1$"),
        ("echo one >&2; printf 'two\\033[31m\\n\\n' >&2; exit 69", False, r"status 69: two\\x1b\[31m$"),
        ("exit 65", True, "status 65"),
        ("exit 77", True, "status 77"),
        ("exit 78", True, "status 78"),
        ("exit 75", False, "status 75"),
        ("kill -9 $$", False, "was ended by signal 9"),
        ("exit 0", False, "no certificate in its output"),
        ("head -c 2000000 /dev/zero", False, "wrote more than 1048576 bytes"),
    ],
)
async def test_endings(make: Make, script: str, is_permanent: bool, says: str) -> None:
    with pytest.raises(IssuerError, match=says) as caught:
        await make(script).issue(request())
    assert caught.value.is_permanent is is_permanent
    assert caught.value.fix


async def test_a_certificate_for_another_key_is_refused(make: Make, directory: Path) -> None:
    other = made("www.example.com", MIDDLE, names=NAMES)
    with pytest.raises(IssuerError, match="only certificates for other keys"):
        await make(printing(directory, other, MIDDLE)).issue(request())


async def test_a_chain_of_another_ca_is_refused(make: Make, directory: Path) -> None:
    with pytest.raises(IssuerError, match="of another CA"):
        await make(printing(directory, LEAF, pki(1, "Other ")[1])).issue(request())


async def test_not_yet_keeps_a_memo_for_the_next_attempt(make: Make) -> None:
    remembered: list[str] = []

    async def remember(memo: str) -> None:
        remembered.append(memo)

    issuer = make('[ -n "$CERTCTRL_MEMO" ] || { echo "request 17"; exit 75; }; echo "$CERTCTRL_MEMO" >&2; exit 75')
    with pytest.raises(IssuerError):
        await issuer.issue(request(remember=remember))
    with pytest.raises(IssuerError, match="status 75: request 17"):
        await issuer.issue(request(remember=remember, memo=remembered[-1]))
    assert remembered == ["request 17", "request 17"]


async def test_a_slow_program_is_ended_with_its_children(make: Make, directory: Path) -> None:
    script = f"trap '' TERM; sleep 1000 & echo $! > {directory}/child; wait; sleep 1000"
    with pytest.raises(IssuerError, match="did not end in time") as caught:
        await make(script, seconds=1).issue(request())
    assert not caught.value.is_permanent
    assert await _gone(directory / "child")


async def test_a_cancelled_program_is_ended(make: Make, directory: Path) -> None:
    issuer = make(f"echo $$ > {directory}/child.new; mv {directory}/child.new {directory}/child; exec sleep 1000")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(issuer.issue, request())
        while not (directory / "child").exists():
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert await _gone(directory / "child")


async def test_processes_left_behind_neither_delay_nor_survive(make: Make, directory: Path) -> None:
    script = f"sleep 1000 & echo $! > {directory}/child; {printing(directory, LEAF, MIDDLE)}"
    await make(script).issue(request())
    assert await _gone(directory / "child")


async def _gone(file: Path) -> bool:
    """Wait until the process whose number is in a file has ended."""
    stat = Path(f"/proc/{file.read_text().strip()}/stat")
    with trio.move_on_after(20):
        while stat.exists() and " Z " not in stat.read_text():
            await trio.sleep(0.01)
        return True
    return False


async def test_revocation(make: Make, directory: Path) -> None:
    script = f'cat > {directory}/in; echo "$CERTCTRL_ACTION $CERTCTRL_REASON $CERTCTRL_SERIAL" > {directory}/seen'
    await make(script).revoke(LEAF.pem, MIDDLE.pem, "keyCompromise")
    assert (directory / "in").read_text() == LEAF.pem + MIDDLE.pem
    assert (directory / "seen").read_text().split() == [
        "revoke", "keyCompromise", f"{LEAF.certificate.serial_number:x}"
    ]  # fmt: skip
    with pytest.raises(IssuerError, match="cannot revoke") as caught:
        await make("exit 64").revoke(LEAF.pem, MIDDLE.pem, "keyCompromise")
    assert caught.value.is_permanent
    assert caught.value.fix == "revoke it at the CA"


async def test_check(make: Make) -> None:
    assert (await make("echo fine; echo '  and well'").check())["says"] == "fine and well"
    assert set(await make("exit 64").check()) == {"program"}
    with pytest.raises(IssuerError, match="no route"):
        await make("echo no route >&2; exit 69").check()
    assert await make("exit 64").renewal_window(LEAF.pem, "") is None


async def test_a_program_that_disappears(make: Make, directory: Path) -> None:
    issuer = make("exit 0")
    (directory / "ca").unlink()
    with pytest.raises(IssuerError, match="cannot read") as caught:
        await issuer.issue(request())
    assert not caught.value.is_permanent
    (directory / "ca").write_text("#!/nowhere/interpreter\n")
    (directory / "ca").chmod(0o755)
    with pytest.raises(IssuerError, match="cannot start"):
        await issuer.issue(request())


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({}, "command"),
        ({"command": []}, "command"),
        ({"command": ["ca"]}, "command"),
        ({"command": ["/bin/sh", "-c", "id"]}, "command"),
        ({"command": [7]}, "command"),
        ({"command": ["{dir}/ca\n"]}, "command"),
        ({"command": ["{dir}/../commands/ca"]}, "command"),
        ({"command": ["{dir}/absent"]}, "command"),
        ({"command": ["{dir}/ca"], "timeout_seconds": 0}, "timeout_seconds"),
        ({"command": ["{dir}/ca"], "timeout_seconds": "soon"}, "timeout_seconds"),
        ({"command": ["{dir}/ca"], "timeout_seconds": True}, "timeout_seconds"),
        ({"command": ["{dir}/ca"], "shell": "sh"}, "shell"),
    ],
)
def test_bad_settings(make: Make, directory: Path, settings: dict[str, Any], field: str) -> None:
    make("exit 0")
    words = settings.get("command")
    if words:
        settings = settings | {
            "command": [w.replace("{dir}", str(directory)) if isinstance(w, str) else w for w in words]
        }
    with pytest.raises(ConfigError) as caught:
        KIND.check_settings(settings, {})
    assert caught.value.path == field
    assert caught.value.fix


def test_good_settings(make: Make, directory: Path) -> None:
    make("exit 0")
    settings = {"command": f"{directory}/ca web", "timeout_seconds": "20"}
    assert KIND.check_settings(settings, {}) == {"command": [f"{directory}/ca", "web"], "timeout_seconds": 20}


@pytest.mark.parametrize(("place", "mode"), [("ca", 0o777), ("ca", 0o644), (".", 0o777)])
def test_programs_that_others_can_change_are_refused(make: Make, directory: Path, place: str, mode: int) -> None:
    make("exit 0")
    (directory / place).chmod(mode)
    with pytest.raises(ConfigError):
        KIND.check_settings({"command": [f"{directory}/ca"]}, {})


@pytest.mark.parametrize("secrets", [{"To ken": b"x"}, {"token": b""}, {"t" * 40: b"x"}, {"t": b"x" * 70_000}])
def test_bad_secrets(make: Make, directory: Path, secrets: dict[str, bytes]) -> None:
    make("exit 0")
    with pytest.raises(ConfigError):
        KIND.check_settings({"command": [f"{directory}/ca"]}, secrets)
