"""Checks of every recipe: no connection is dropped, bad files are refused, and failures are rolled back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fleet import HERE, clean_environment
from recipes import Trial

from certctrl.model.records import RetryKind
from certctrl.sandbox.witness import plain_serial


class Load:
    """The load client, as a separate process."""

    def __init__(self, target: Mapping[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "load_client.py", json.dumps(target)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_environment(),
        )  # fmt: skip

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def stop(self) -> dict[str, Any]:
        """End it and return its counters."""
        out, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == 0
        return dict(json.loads(out))


# --- the three checks ---------------------------------------------------------------------------------------------


def prove_nothing_is_dropped(trial: Trial, renewals: int) -> dict[str, Any]:
    """Renew repeatedly under load: every serial is served and no request fails. Return the client's counters."""
    with Load(trial.target()) as load:
        serials = [trial.renew_and_serve() for _ in range(renewals)]
        seen = load.stop()
    reported = ", ".join(f"{what} {count}" for what, count in seen.items() if isinstance(count, int))
    print(f"{trial.recipe.name}: {renewals} renewals, {len(seen['serials'])} serials seen; {reported}")
    assert seen["faults"] == [], seen
    assert seen["new"] >= renewals and seen["kept"] >= renewals, seen
    assert plain_serial(serials[-1]) in seen["serials"]
    return seen


def prove_the_check_refuses(trial: Trial, files: Mapping[str, bytes]) -> str:
    """Corrupt the staged files: they are refused before a live file changes, and the next good ones go live.

    Returns the reason of the refusal.
    """
    before, old = trial.on_disk(), trial.served()
    with trial.spoilt(files):
        _, outcome, why = trial.renew()
        assert outcome == "failed" and "the check refuses the new certificate" in why, (outcome, why)
        assert (trial.on_disk(), trial.served(), trial.retry().kind) == (before, old, RetryKind.REFUSED)
    trial.renew_and_serve()
    print(f"{trial.recipe.name}: {why}")
    return why


def prove_rollback(
    trial: Trial,
    trouble: contextlib.AbstractContextManager[Any],
    reason: str,
    kind: RetryKind = RetryKind.REFUSED,
) -> str:
    """Renew while the service has a fault: the old pair is restored and still served; afterwards the new one goes live.

    ``kind``: how it is retried. Returns the reason of the rollback.
    """
    before, old = trial.on_disk(), trial.served()
    with trial.impatient(), trouble:
        serial, outcome, why = trial.renew()
        assert outcome == "rolled_back" and reason in why, (outcome, why)
        assert trial.retry().kind is kind, trial.retry()
        # the agent tries again meanwhile, and then the new pair is there for a moment
        trial.wait_for(lambda: (trial.on_disk(), trial.served()) == (before, old), "the old pair to be back")
    # an interrupted attempt may have been served briefly as well: only the final state counts
    trial.wait_for(lambda: trial.stands(serial), f"{serial} to be deployed and served")
    print(f"{trial.recipe.name}: {why}")
    return why


# --- faults ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def edited(path: Path, edit: Callable[[str], str]) -> Iterator[None]:
    """Change a configuration file of the service during the block."""
    text = path.read_text(encoding="utf-8")
    changed = edit(text)
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def moved_away(path: Path) -> Iterator[None]:
    """Move a file or socket away during the block."""
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process during the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def children_of(pid: int) -> list[str]:
    """Return the pids of a process's children, as text."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def broken_pairs(trial: Trial) -> dict[str, dict[str, bytes]]:
    """Return staged files that no server can use, by what is wrong with them."""
    live = trial.agent.layout.live_link(trial.recipe.domain)
    chain, key = (live / "fullchain.pem").read_bytes(), (live / "private.key").read_bytes()
    other = other_key()
    return {
        "another certificate's key": {"private.key": other, "combined.pem": other + chain},
        "a key cut off": {"private.key": key[: len(key) // 2], "combined.pem": key[: len(key) // 2] + chain},
        "a certificate cut off": {"fullchain.pem": chain[:200], "combined.pem": key + chain[:200]},
        "no certificate at all": {"fullchain.pem": b"", "combined.pem": key},
    }


def other_key() -> bytes:
    """Return a valid key that matches no certificate."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def check_by_hand(
    trial: Trial, spoil: Mapping[str, bytes], place: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run the recipe's check as the agent does, on a copy of the live files with some of them replaced.

    ``options`` are arguments that the recipe's page allows after it.
    """
    copy_live(trial, spoil, place)
    return run_check(trial.recipe.check_argv(place), options)


def check_as_nobody(trial: Trial) -> subprocess.CompletedProcess[str]:
    """Run the recipe's check on the live files as nobody, like an unprivileged agent."""
    place = trial.recipe.place / "readable"
    copy_live(trial, {}, place)
    place.chmod(0o755)
    for file in place.iterdir():
        file.chmod(0o644)
    become = ["/usr/bin/setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--no-new-privs"]
    return run_check([*become, *trial.recipe.check_argv(place)])


def copy_live(trial: Trial, spoil: Mapping[str, bytes], place: Path) -> None:
    """Copy the live files of a trial's certificate, some of them replaced."""
    place.mkdir()
    for file in trial.agent.layout.live_link(trial.recipe.domain).iterdir():
        (place / file.name).write_bytes(spoil.get(file.name, file.read_bytes()))


def run_check(argv: Sequence[str], options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a check with the agent's environment for commands."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C", "HOME": "/"}
    return subprocess.run(
        [*argv, *options], env=env, capture_output=True, text=True, timeout=60, check=False, umask=0o077
    )
