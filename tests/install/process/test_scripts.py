"""The script that an interpreter is to run is judged and pinned like the program itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from install_host import FAILED, Host, commands, kinds
from trio.testing import MockClock

from certctrl.errors import CommandError
from certctrl.install.plan.policy import AgentIdentity, refuse_path
from certctrl.install.process import Proc
from certctrl.install.process.vetting import script_of, scripts_of, sha256_of, vet_command
from certctrl.model.commands import script_words
from certctrl.model.plan import CopyAction, ExecAction
from certctrl.model.policy import HostPolicy, NamedCommand


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("/usr/sbin/nginx -c /etc/nginx/nginx.conf", ()),
        ("/bin/sh /opt/reload.sh /var/log/app.log", ("/opt/reload.sh",)),
        ("/bin/sh -eu /opt/reload.sh", ("/opt/reload.sh",)),
        ("/bin/bash -o pipefail /opt/reload.sh", ("/pipefail", "/opt/reload.sh")),
        ("/bin/bash opt/reload.sh", ("/opt/reload.sh",)),
        ("/bin/sh -c /opt/reload.sh", ()),
        ("/bin/bash -euc /opt/reload.sh", ()),
        ("/usr/bin/python3.11 -W ignore /opt/x.py", ("/ignore", "/opt/x.py")),
        ("/usr/bin/python3 -I /opt/x.py", ("/opt/x.py",)),
        ("/usr/bin/python3 -m http.server", ()),
        ("/usr/bin/perl -w /opt/x.pl", ("/opt/x.pl",)),
        ("/usr/bin/perl -ne print /etc/hosts", ()),
        ("/usr/bin/env A=1 python3 /opt/x.py", ("/opt/x.py",)),
        ("/usr/bin/timeout 10 /opt/x", ("/opt/x",)),
        ("/usr/bin/sudo -u web /bin/sh /opt/x.sh", ("/bin/sh", "/opt/x.sh")),
        ("/usr/bin/flock -n /run/reload.lock /opt/x.sh", ("/opt/x.sh",)),
        ("/usr/bin/flock /run/reload.lock /bin/sh /opt/x.sh", ("/bin/sh", "/opt/x.sh")),
        ("/usr/bin/flock /run/reload.lock", ()),
        ("/usr/bin/nsenter -t 1 -m /opt/x.sh", ("/opt/x.sh",)),
        ("/usr/bin/taskset 1 /opt/x.sh", ("/opt/x.sh",)),
        ("/usr/bin/timeout 10 systemctl reload nginx", ()),
        ("/usr/bin/php -c /etc/php.ini /opt/x.php /srv/x", ("/etc/php.ini", "/opt/x.php")),
        ("/bin/bash --rcfile /etc/rc /opt/x.sh", ("/etc/rc", "/opt/x.sh")),
        ("/usr/bin/node -r /opt/p.js /opt/x.js", ("/opt/p.js", "/opt/x.js")),
        ("/usr/bin/perl -I /opt/lib -w /opt/x.pl /srv/x", ("/opt/lib", "/opt/x.pl")),
        ("/bin/rbash /opt/x.sh", ("/opt/x.sh",)),
        ("/usr/bin/env -S sh_/opt/x.sh", ("/opt/x.sh",)),
        ("/usr/bin/env -Ssh_-e /opt/x.sh", ("/opt/x.sh",)),
        ("/usr/bin/flock -n /run/x.lock /opt/x.sh", ("/opt/x.sh",)),
        ("/usr/bin/flock /run/x.lock sh /opt/x.sh", ("/opt/x.sh",)),
        ("/usr/bin/flock /run/x.lock -c /opt/x.sh", ("/opt/x.sh",)),
        ("/usr/bin/flock", ()),
        ("/usr/bin/taskset 1 /opt/x", ("/opt/x",)),
        ("/usr/bin/unshare -n python3 /opt/x.py", ("/opt/x.py",)),
        ("/usr/bin/env", ()),
        ("", ()),
    ],
)
def test_the_words_that_name_a_script(line: str, found: tuple[str, ...]) -> None:
    assert script_words([word.replace("_", " ") for word in line.split()]) == found


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script without an execute bit, as interpreters need none."""
    path = tmp_path / "bin" / "hook.sh"
    path.parent.mkdir(mode=0o755)
    path.write_text("exit 0\n")
    path.chmod(0o644)
    return path


@pytest.mark.parametrize("before", [(), ("-o", "pipefail"), ("-eu",)])
def test_a_script_that_others_may_write_to_is_refused(script: Path, before: tuple[str, ...]) -> None:
    argv = ("/bin/bash", *before, str(script))
    vet_command(argv)
    script.chmod(0o666)
    with pytest.raises(CommandError, match="may write to"):
        vet_command(argv)
    script.chmod(0o644)
    script.parent.chmod(0o777)
    with pytest.raises(CommandError, match="may write to"):
        vet_command(argv)


def test_a_pinned_script_that_changed_is_refused(script: Path) -> None:
    argv, pin = ("/bin/sh", str(script)), sha256_of(str(script))
    vet_command(argv, {str(script): pin})
    script.write_text("exit 1\n")
    with pytest.raises(CommandError, match=r"hook\.sh has changed"):
        vet_command(argv, {str(script): pin})


def test_words_that_name_no_file_are_not_checked(script: Path) -> None:
    assert scripts_of(("/bin/sh", f"{script}.none")) == []
    assert scripts_of(("/bin/sh", "a\ud800b")) == []
    assert scripts_of(("/bin/sh", str(script.parent))) == []


async def test_no_command_runs_a_script_that_others_may_write_to(script: Path) -> None:
    """Checks, alerts and trust store commands included: they all run through Proc."""
    script.chmod(0o666)
    with pytest.raises(CommandError, match="may write to"):
        await Proc().run(("/bin/sh", str(script)), timeout=10)


async def test_a_plan_refuses_a_script_that_others_may_write_to(clock: MockClock, host: Host, script: Path) -> None:
    argv = ("/bin/sh", str(script))
    items = [ExecAction(id="r", ob_id=1, cmd_argv=argv)]
    host.allow(commands=commands(argv))
    script.chmod(0o666)
    assert kinds(await host.deliver(1, items=items)) == {1: FAILED}
    assert host.proc.calls == []
    (refusal,) = (await host.installer.plan(items)).refusals
    assert f"may write to {script}" in refusal.why


async def test_a_script_behind_an_interpreter_is_pinned_on_first_use(
    clock: MockClock, host: Host, script: Path
) -> None:
    argv = ("/bin/sh", str(script))
    items = [ExecAction(id="r", ob_id=1, cmd_argv=argv)]
    host.allow(commands=commands(argv), trust_on_first_use=True)
    await host.deliver(1, items=items)
    assert host.installer._context.state.load_pins() == {str(script): sha256_of(str(script))}
    script.write_text("exit 1\n")
    (refusal,) = (await host.installer.plan([ExecAction(id="s", ob_id=1, cmd_argv=argv)])).refusals
    assert "has changed" in refusal.why
    assert not (await host.deliver(1, items=items))[1].ok
    assert host.proc.calls == [argv], "only the first use"


async def test_a_check_behind_an_interpreter_is_pinned_as_well(clock: MockClock, host: Host, script: Path) -> None:
    check = ("/bin/sh", str(script), "{staged}")
    target = str(host.out / "a.pem")
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(target,), check=check)]
    host.allow(commands=commands(check), trust_on_first_use=True)
    await host.deliver(1, items=items)
    script.write_text("exit 1\n")
    with pytest.raises(CommandError, match="has changed"):
        await host.installer.stage(host.bundle(1), items)


async def test_the_policy_can_pin_a_script(clock: MockClock, host: Host, script: Path) -> None:
    argv = ("/bin/sh", str(script))
    items = [ExecAction(id="r", ob_id=1, cmd_argv=argv)]
    host.allow(commands={"r": NamedCommand(argv=argv, script_sha256="0" * 64)})
    assert not (await host.deliver(1, items=items))[1].ok
    host.allow(commands={"r": NamedCommand(argv=argv, script_sha256=sha256_of(str(script)))})
    assert (await host.installer.converge_all(items, due_now=True)).ok
    assert host.proc.calls == [argv]


@pytest.mark.parametrize("before", [("/bin/bash",), ("/usr/bin/env", "/bin/bash"), ("/bin/bash", "--rcfile", "INI")])
async def test_a_pin_is_for_the_script_and_not_for_its_interpreter(
    before: tuple[str, ...], clock: MockClock, host: Host, script: Path
) -> None:
    """Behind a wrapper, the interpreter is a file that the words name as well, and so may be an option's value."""
    settings = script.with_name("rc")
    settings.write_text("")
    settings.chmod(0o644)
    argv = (*(word.replace("INI", str(settings)) for word in before), str(script))
    assert script_of(argv) == [str(script)]
    items = [ExecAction(id="r", ob_id=1, cmd_argv=argv)]
    host.allow(commands={"r": NamedCommand(argv=argv, script_sha256=sha256_of(str(script)))})
    assert (await host.deliver(1, items=items))[1].ok
    assert host.proc.calls == [argv]


def test_relative_words_are_pinned_all(script: Path) -> None:
    """The text does not show which of them is the script."""
    words = [str(script)[1:], str(script.parent / "hook.sh")[1:]]
    assert script_of(("/bin/sh", *words)) == [str(script), str(script)]


def test_the_plane_cannot_write_the_script_of_an_allowed_command() -> None:
    policy = HostPolicy(write_roots=("/opt/app",), commands=commands(("/bin/sh", "/opt/app/reload.sh")))
    identity = AgentIdentity(config_dir="/etc/cert-ctrl")
    assert refuse_path(policy, "/opt/app/cert.pem", identity) is None
    assert refuse_path(policy, "/opt/app/reload.sh", identity) is not None
    assert refuse_path(policy, "/opt/app/reload.sh", identity, local=True) is not None


async def test_a_command_for_a_user_that_does_not_exist_is_refused_by_the_plan(clock: MockClock, host: Host) -> None:
    argv = ("/bin/true",)
    host.allow(commands={"r": NamedCommand(argv=argv, run_as="no-such-user")})
    items = [ExecAction(id="r", ob_id=1, cmd_argv=argv)]
    await host.deliver(1, items=items)
    (refusal,) = (await host.installer.plan(items)).refusals
    assert refusal.why == "there is no user no-such-user on this host"
