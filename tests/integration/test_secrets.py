"""No secret leaks: real plane and agent, umask 000, every open traced, every output searched (T11, T13, T14)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from fleet import PROGRAM, Agent, Child, Fleet, Plane, wait_for
from syscall_trace import judge, traced

from certctrl.model.policy import HostPolicy, NamedCommand
from certctrl.store.config.files import save_policy
from certctrl.store.disk.fs import RealFs

pytestmark = [pytest.mark.integration, pytest.mark.root]

DOMAIN = "secret.example"
DUMP = "env >> {out}/environ; tr '\\0' ' ' < /proc/$$/cmdline >> {out}/cmdline; ls -l /proc/$$/fd >> {out}/fds"
LEAKS = {
    "key": 'cat "$CERTCTRL_KEY_FILE"; exit 3',
    "key-line": 'sed -n 2p "$CERTCTRL_KEY_FILE"; exit 3',
    "passwords": 'cat "$CERTCTRL_PFX_PASSWORD_FILE"; echo; cat "$CERTCTRL_JKS_PASSWORD_FILE"; exit 3',
}
"""Commands that fail after printing a secret in the last line, which reports show."""


@attrs.define
class Secrets:
    """Bytes that may only be in their own file, by name."""

    found: dict[str, bytes] = attrs.field(factory=dict)

    def learn(self, agent: Agent) -> None:
        """Add the secrets on the host; call it repeatedly, because keys and tokens change."""
        state = agent.layout
        for path in (state.access_token, state.refresh_token, *state.passwords.glob("*")):
            self._keep(path, lambda data: [data.strip()])
        self._keep(state.device_secret_key, lambda data: [data, base64.b64encode(data), data.hex().encode()])
        for path in state.generations.glob("*/*/private.key"):
            self._keep(path, lambda data: [line for line in data.splitlines() if len(line) > 40 and b" " not in line])

    def _keep(self, path: Path, forms: Callable[[bytes], list[bytes]]) -> None:
        with contextlib.suppress(OSError):
            for form in forms(path.read_bytes()):
                if len(form) >= 12:
                    self.found[f"{path.name} {hash(form) & 0xFFFF:04x}"] = form

    def hits(self, place: str, data: bytes) -> list[str]:
        return [f"{name} in {place}" for name, secret in self.found.items() if secret in data]


@attrs.define
class Onlooker:
    """Command line and environment of all child processes, as other users can read them, read continuously."""

    seen: set[bytes] = attrs.field(factory=set)
    looks: int = 0
    _over: threading.Event = attrs.field(factory=threading.Event)

    @contextlib.contextmanager
    def watching(self, during: Callable[[], None]) -> Iterator[None]:
        def watch() -> None:
            while not self._over.wait(0.005):
                self.looks += 1
                during()
                for entry in filter(str.isdecimal, os.listdir("/proc")):
                    for name in ("cmdline", "environ"):
                        with contextlib.suppress(OSError):
                            self.seen.add(Path("/proc", entry, name).read_bytes())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


def command(text: str, out: Path) -> list[str]:
    return ["/bin/sh", "-c", text.replace("{out}", str(out))]


def items(out: Path) -> list[dict[str, object]]:
    """Return items with every format, a command that prints its environment, and one that fails and prints secrets."""
    names = ("fullchain.pem", "private.key", "combined.pem", "bundle.pfx", "bundle.jks")
    about = {"ob_type": "cert", "ob_id": 1}
    return [
        {"id": "copy", "type": "copy", **about, "from": list(names), "to": [str(out / name) for name in names]},
        {"id": "dump", "type": "exec", **about, "cmd_argv": command(DUMP, out), "depends_on": ["copy"]},
        *({"id": f"leak-{name}", "type": "exec", **about, "cmd_argv": command(text, out), "depends_on": ["dump"],
           "continue_on_error": True} for name, text in LEAKS.items()),
    ]  # fmt: skip


class Host:
    """An agent whose processes are all traced."""

    def __init__(self, fleet: Fleet, plane: Plane, root: Path) -> None:
        self.fleet, self.plane, self.root = fleet, plane, root
        self.agent = Agent(fleet, plane, "agent")
        self.out = root / "out"
        self.out.mkdir(mode=0o755)
        self.outputs: dict[str, bytes] = {}
        self.traces: list[Path] = []

    def run(self, *words: str) -> Child:
        """Start a command of the program under strace, without waiting."""
        trace = self.root / f"trace.{len(self.traces)}"
        self.traces.append(trace)
        argv = traced([*PROGRAM, *words], trace)
        return self.fleet.child(argv, f"out.{len(self.traces)}", PYTHONDONTWRITEBYTECODE="1")

    def cli(self, *words: str, status: int | None = 0) -> None:
        """Run a one-shot command until it ends and keep its output."""
        child = self.run("-c", str(self.agent.layout.root), *words)
        ended = child.wait()
        assert status is None or ended == status, child.text
        self.outputs[" ".join(words[:2])] = child.text.encode()

    def start(self) -> tuple[Child, int]:
        child = self.run("-c", str(self.agent.layout.root), "--debug", "--keep-running")
        child.says("Ready: poll mode")
        return child, int(self.agent.layout.daemon_lock.read_text().split()[0])


@pytest.fixture
def reported(fleet: Fleet, need: Callable[[str], str], tmp_path: Path) -> Host:
    need("strace")
    tmp_path.chmod(0o755)
    plane = fleet.plane(poll_rate=1000.0, poll_burst=1000)
    host = Host(fleet, plane, tmp_path)
    root = str(host.agent.layout.root)
    init = host.run("-c", root, "init", "--server", plane.url, "--ca", str(plane.ca))
    assert init.wait() == 0, init.text
    token = tmp_path / "enrolment-token"
    token.write_text(plane.operator.enrolment_token())
    token.chmod(0o600)
    host.cli("register", "--enrolment-token-file", str(token))
    host.agent.device_id = 1
    texts = LEAKS | {"dump": DUMP}
    allowed = {name: NamedCommand(argv=tuple(command(text, host.out))) for name, text in texts.items()}
    save_policy(RealFs(), host.agent.layout, HostPolicy(write_roots=(str(host.out),), commands=allowed, shell=True))
    host.agent.configure(
        poll_mode="long-poll", poll_interval_ms=50, first_poll_spread_seconds=0, debounce_ms=0,
    )  # fmt: skip
    return host


def live(host: Host, secrets: Secrets) -> None:
    """Install, renew and revoke with crashes in between and a command that prints secrets; run every command."""
    operator, agent = host.plane.operator, host.agent
    child, pid = host.start()
    operator.put_items(1, items(host.out))
    operator.issue(DOMAIN, 1)
    agent.catches_up()
    wait_for((host.out / "environ").exists, "the command that shows its environment")
    secrets.learn(agent)
    operator.renew(1)
    os.kill(pid, signal.SIGKILL)
    child.wait()
    secrets.learn(agent)
    child, pid = host.start()
    agent.catches_up()
    secrets.learn(agent)
    operator.renew(1)
    agent.catches_up()
    for words in (
        ("status", "--json"),
        ("status",),
        ("list-certs", "--json"),
        ("history",),
        ("plan", "--json"),
        ("doctor",),
    ):
        host.cli(*words, status=None)
    secrets.learn(agent)
    operator.call("POST", "/apiv1/users/1/certificates/1/revoke", {"reason": "key lost"})
    wait_for(lambda: not (agent.layout.certs / f"{DOMAIN}.key").exists(), "the revoked certificate to be removed")
    os.kill(pid, signal.SIGTERM)
    assert child.wait() == 0, child.text


def places(host: Host, onlooker: Onlooker) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of everything that other users or the plane may read."""
    yield from ((f"output of {name}", data) for name, data in host.outputs.items())
    yield from ((f"stdout and stderr, {path.name}", path.read_bytes()) for path in host.root.glob("out.*"))
    yield from (("/proc of a process", data) for data in onlooker.seen)
    for name in ("environ", "cmdline", "fds"):
        yield f"the command's {name}", (host.out / name).read_bytes()
    layout = host.agent.layout
    for path in sorted(layout.root.rglob("*")):
        own = path.parent in (layout.keys, layout.passwords) or path in (layout.access_token, layout.refresh_token)
        if path.is_file() and not own and layout.generations not in path.parents:
            yield str(path.relative_to(layout.root)), path.read_bytes()
    yield "what was reported to the plane", json.dumps(host.plane.operator.outcomes(1)).encode()


BAD = """1 openat(AT_FDCWD</>, "/c/state/access_token.txt", O_WRONLY|O_CREAT|O_CLOEXEC, 0644) = 3</c/state/access_token.txt>
1 openat(4</c/state>, ".refresh_token.txt.0123456789abcdef.tmp", O_WRONLY|O_CREAT, 0666) = 3</c/state/.refresh_token.txt.0123456789abcdef.tmp>
1 fchmod(3</c/certs/.generations/x/.tmp-1/private.key>, 0640) = 0
1 chmod("/c/keys", 0755) = 0
1 mkdirat(3</c>, "state", 0777) = 0
"""
GOOD = """1 openat(4</o>, ".site.crt.0123456789abcdef.tmp", O_WRONLY|O_CREAT, 0600) = 3</o/.site.crt.0123456789abcdef.tmp>
1 fchmod(3</o/.site.crt.0123456789abcdef.tmp>, 0644) = 0
1 openat(AT_FDCWD</>, "/etc/hosts", O_RDONLY) = 3</etc/hosts>
1 mkdirat(3</c>, "state", 0700) = 0
1 openat(4</c>, "private.key", O_WRONLY|O_CREAT, 0644) = -1 EEXIST (File exists)
"""


def test_the_trace_check_finds_files_that_others_can_read(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text(BAD)
    assert len(judge(trace, []).violations) == len(BAD.splitlines())
    trace.write_text(GOOD)
    assert judge(trace, [Path("/o/site.crt")]).violations == []


def test_no_secret_is_printed_and_no_secret_file_is_ever_readable_by_others(
    reported: Host, need_module: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    need_module("jks")
    host, secrets, onlooker = reported, Secrets(), Onlooker()
    with onlooker.watching(lambda: secrets.learn(host.agent)):
        live(host, secrets)
    kinds = {name.split()[0] for name in secrets.found}
    assert {"access_token.txt", "refresh_token.txt", "dev_sk.bin", "private.key"} < kinds, (
        "the search has too few secrets"
    )
    assert {f"{DOMAIN}.pfx", f"{DOMAIN}.jks"} < kinds, "the search has no password"
    searched = list(places(host, onlooker))
    hits = [hit for place, data in searched for hit in secrets.hits(place, data)]
    assert not hits, hits
    printed = b"".join(data for _, data in searched)
    assert all(f"item leak-{name}: /bin/sh exited with 3".encode() in printed for name in LEAKS), (
        "the commands did not run"
    )
    assert b"CERTCTRL_KEY_FILE" in (host.out / "environ").read_bytes(), "the command received the path of the key"

    public = [host.out / "fullchain.pem"]
    verdicts = [judge(trace, public, ("/dev/", "/proc/", str(host.out / "environ"), str(host.out / "cmdline"), str(host.out / "fds")))
                for trace in host.traces]  # fmt: skip
    violations = [line for verdict in verdicts for line in verdict.violations]
    calls, made = sum(one.calls for one in verdicts), sum(one.made for one in verdicts)
    with capsys.disabled():
        print(f"\n0 hits of {len(secrets.found)} secrets in {len(searched)} places;", end=" ")
        print(f"{len(violations)} violations in {calls} calls, {made} private files and directories made", end="")
    assert not violations, violations
    assert made > 100 and calls > 1000
    open_to_others = [path for path in host.agent.layout.root.rglob("*")
                      if path.lstat().st_mode & 0o077 and not path.is_symlink() and path.is_file()]  # fmt: skip
    assert all(b"PRIVATE KEY" not in path.read_bytes() for path in open_to_others)
