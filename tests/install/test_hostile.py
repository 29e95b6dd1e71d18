"""A hostile control plane can change nothing outside the roots and run nothing that is not listed."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from examples import at_most
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from install_host import Host
from trio.testing import MockClock

from certctrl.errors import CertctrlError
from certctrl.install.plan.render import plan_text
from certctrl.model.plan import CopyAction, ExecAction, ImportCaAction, InstallItem, VerifyCommand
from certctrl.model.policy import HostPolicy, NamedCommand

PLANS = int(os.environ.get("CERTCTRL_TEST_PLANS", "100000"))
ALLOWED = ("/bin/true", "reload")
OURS = ("state", "certs")

TRAPS = (
    "{out}/ok", "{out}/deep/ok", "{out}/link/x", "{out}/open/x", "{out}/hard", "{out}/file", "{out}/fifo", "{out}/loop",
    "{out}/deep", "{out}/new/x", "{victim}/x", "{victim}/file", "{out}/../victim/x", "{out}/deep/../../victim/x",
    "{agent}/policy.json", "{agent}/keys/dev_sk.bin", "{agent}/state/inbox.json", "{agent}/certs/c1.example.key",
    "{agent}/certs/extra.pem", "{agent}/certs/.live/c1.example/private.key", "{agent}/certs/chains/x", "/proc/self/x",
    "/bin/true", "/dev/null", "/etc/certctrl-hostile-test",
)  # fmt: skip
pieces = st.sampled_from(
    (
        "..",
        ".",
        "",
        "ok",
        "deep",
        "link",
        "a" * 250,
        "a" * 256,
        "ü",
        "\0",
        "\n",
        "\udcff",
        "*",
        "~",
        "$HOME",
        " ",
        "-rf",
    )
)
starts = st.sampled_from(("{out}/", "{out}", "{agent}/", "{agent}/certs/", "{victim}/", "/", "", "//", "{out}/link/"))
odd = st.tuples(starts, st.lists(pieces, min_size=1, max_size=4).map("/".join) | st.text(max_size=30)).map("".join)
good = st.sampled_from(("private.key", "fullchain.pem", "meta.json", "combined.pem"))
words = st.text(max_size=8) | st.sampled_from(("/bin/true", "reload", "/bin/sh", "-c", "touch /x", "{staged}", "--"))
argvs = st.one_of(st.just((*ALLOWED, "more")), st.lists(words, max_size=4).map(tuple))
ids = st.sampled_from(("1", "2", "3", "4", "5", "\n6", "Local:7", " local:8", "x" * 200))
needs = st.lists(ids, max_size=2).map(tuple)
users = st.sampled_from(("root", "nobody", "0", "-1", "", "\0", "no such user"))
env_names = st.sampled_from(("LD_PRELOAD", "PATH", "CERTCTRL_X", "A=B", "\0"))
ODD_COPY: dict[str, st.SearchStrategy[Any]] = {
    "sources": st.tuples(st.sampled_from(("../../../etc/shadow", "", "\0", "ca.pem"))),
    "targets": st.tuples(odd),
    "owner": users,
    "group": users,
    "mode": st.sampled_from((0o666, 0o4755, 0o777, 0o600)),
    "check": argvs,
    "verify": st.builds(VerifyCommand, cmd_argv=argvs),
    "ob_id": st.sampled_from((2, None)),
    "ob_type": st.just("ca"),
    "depends_on": needs,
}
ODD_EXEC: dict[str, st.SearchStrategy[Any]] = {
    "cmd_argv": argvs,
    "cmd": st.text(max_size=9),
    "run_as": users,
    "env": st.dictionaries(env_names, st.text(max_size=5), min_size=1, max_size=2),
    "verify": st.builds(VerifyCommand, cmd_argv=argvs),
    "timeout_ms": st.integers(-5, 10**9),
    "depends_on": needs,
}


def spoiled(kind: Any, sound: dict[str, Any], oddities: dict[str, st.SearchStrategy[Any]]) -> Any:
    """Return items with at most one bad field, so that each check has to catch its own."""
    versions = [st.builds(kind, **sound)]
    versions += [st.builds(kind, **(sound | {field: strategy})) for field, strategy in oddities.items()]
    return st.one_of(*versions)


pair = st.tuples(good, good), st.tuples(st.sampled_from(TRAPS), st.sampled_from(TRAPS))
copies = spoiled(
    CopyAction,
    {"id": ids, "ob_id": st.just(1), "sources": st.tuples(good), "targets": st.tuples(st.sampled_from(TRAPS))},
    ODD_COPY,
)
twos = st.builds(CopyAction, id=ids, ob_id=st.just(1), sources=pair[0], targets=pair[1])
execs = spoiled(ExecAction, {"id": ids, "ob_id": st.just(1), "cmd_argv": st.just(ALLOWED)}, ODD_EXEC)
imports = st.builds(ImportCaAction, id=ids, ob_id=st.just(3))
plans = st.lists(st.one_of(copies, copies, twos, execs, imports), max_size=5, unique_by=lambda item: item.id)


def filled(items: list[InstallItem], places: dict[str, str]) -> list[InstallItem]:
    """Insert this run's directories into the generated paths."""

    def fill(text: str) -> str:
        for name, path in places.items():
            text = text.replace("{" + name + "}", path)
        return text

    return [
        attrs.evolve(item, targets=tuple(map(fill, item.targets))) if isinstance(item, CopyAction) else item
        for item in items
    ]


def snapshot(root: Path, *, but: tuple[str, ...] = ()) -> dict[str, tuple[object, ...]]:
    """Return path -> kind, mode, owner, bytes or link text below a directory; ``but``: top-level folders to skip."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, names in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in but]
        for path in (Path(folder, name) for name in (*folders, *names)):
            facts = path.lstat()
            kind = stat.S_IFMT(facts.st_mode)
            held: object = None
            if stat.S_ISLNK(kind):
                held = os.readlink(path)
            elif stat.S_ISREG(kind):
                held = path.read_bytes()
            found[str(path)] = (kind, facts.st_mode, facts.st_uid, facts.st_nlink, held)
    return found


@pytest.fixture(scope="module")
def identity() -> Iterator[Path]:
    """A new directory that all examples share; pytest's would be one per example."""
    root = Path(tempfile.mkdtemp(prefix="hostile-"))
    root.chmod(0o755)
    yield root
    shutil.rmtree(root)


def trapped(root: Path) -> tuple[Path, Path]:
    """Make a root full of traps, and a directory that must not change."""
    out, victim = root / "out", root / "victim"
    for directory in (out, victim):
        shutil.rmtree(directory, ignore_errors=True)
    for directory in (out, victim, out / "deep", out / "open"):
        directory.mkdir()
    (out / "open").chmod(0o777)
    (victim / "file").write_bytes(b"the victim's")
    (out / "link").symlink_to(victim)
    (out / "loop").symlink_to("loop")
    os.link(victim / "file", out / "hard")
    os.mkfifo(out / "fifo")
    (out / "file").symlink_to(victim / "file")
    return out, victim


async def attack(host: Host, items: list[InstallItem], out: Path, victim: Path) -> None:
    agent = host.layout.root
    items = filled(items, {"out": str(out), "agent": str(agent), "victim": str(victim)})
    before = snapshot(victim)
    own = snapshot(agent, but=OURS)
    host.proc.calls.clear()
    host.proc.asked.clear()
    bundle = host.bundle(1)
    try:
        prepared = [await host.installer.stage(bundle, items)]
    except CertctrlError:
        prepared = []
    await host.installer.converge(prepared, items)
    await host.installer.converge((), items)
    text = plan_text(await host.installer.plan(items))
    assert all(c == "\n" or c.isprintable() for c in text)
    assert snapshot(victim) == before
    assert snapshot(agent, but=OURS) == own
    assert set(host.proc.calls) <= {ALLOWED}
    for path in out.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name != "hard":
            assert b"PRIVATE KEY" not in path.read_bytes() or not path.stat().st_mode & 0o037
            assert path.parent.name != "open", "a directory that others may write to"
    assert host.live(1) or not prepared


def run(host: Host, items: list[InstallItem], root: Path) -> None:
    out, victim = trapped(root)
    host.policy = HostPolicy(write_roots=(str(out),), commands={"r": NamedCommand(argv=ALLOWED)})
    trio.run(attack, host, items, out, victim, clock=MockClock(autojump_threshold=0))


@settings(max_examples=at_most(150), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(items=plans)
@example(items=[ExecAction(id="1", ob_id=1, cmd_argv=("/\0",))])
def test_nothing_outside_the_roots_changes(host: Host, identity: Path, items: list[InstallItem]) -> None:
    run(host, items, identity)


@pytest.mark.campaign
@pytest.mark.timeout(6 * 3600)
def test_campaign_of_hostile_plans(host: Host, identity: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``CERTCTRL_TEST_PLANS``: number of plans, 100 000 by default."""
    obeyed = 0

    @settings(max_examples=PLANS, suppress_health_check=list(HealthCheck))
    @given(items=plans)
    def obey(items: list[InstallItem]) -> None:
        nonlocal obeyed
        run(host, items, identity)
        obeyed += 1

    obey()
    with capsys.disabled():
        print(
            f"\n{obeyed} of {obeyed} hostile plans: 0 bytes outside the roots, 0 commands that are not listed", end=""
        )
    assert obeyed >= PLANS
