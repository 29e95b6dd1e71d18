"""What the tests of the runner share: commands, items with their probes, words for outcomes, and a disk that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from certctrl.errors import DiskError
from certctrl.model.plan import ExecAction, InstallItem, OutcomeKind, VerifyTls
from certctrl.model.policy import NamedCommand

RELOAD = ("/bin/true", "reload")
OTHER = ("/bin/true", "other")
CHECK = ("/bin/true", "check", "{staged}")

APPLIED, UNCHANGED = OutcomeKind.APPLIED, OutcomeKind.UNCHANGED
FAILED, ROLLED_BACK = OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK


def commands(*argvs: tuple[str, ...]) -> dict[str, NamedCommand]:
    return {f"n{i}": NamedCommand(argv=argv) for i, argv in enumerate(argvs)}


def reload(*certs: int, argv: tuple[str, ...] = RELOAD, **more: Any) -> list[InstallItem]:
    """One command per certificate, as a plane writes them, each proven at its own port."""
    return [
        ExecAction(id=f"r{n}", ob_id=n, cmd_argv=argv, verify=VerifyTls(host="127.0.0.1", port=1000 + n), **more)
        for n in certs
    ]


def kinds(outcomes: dict[int, Any]) -> dict[int, OutcomeKind]:
    return {cert_id: outcome.kind for cert_id, outcome in outcomes.items()}


def leftovers(host: Any) -> list[Path]:
    found = [path for path in host.layout.root.rglob("*") if ".tmp" in path.name]
    found += host.layout.journal.iterdir()
    found += (path for path in host.out.rglob("*") if path.name.startswith("."))
    return found


class ScriptedFs:
    """The real one, counting; the n-th call of one verb may fail."""

    def __init__(self, fs: Any, verb: str = "", fails_at: int = 0) -> None:
        self.fs, self.verb, self.fails_at, self.counts = fs, verb, fails_at, dict[str, int]()

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.fs, name)

        def call(*args: Any, **how: Any) -> Any:
            self.counts[name] = self.counts.get(name, 0) + 1
            if name == self.verb and self.counts[name] == self.fails_at:
                raise DiskError(f"cannot {name}", path="x", errno=28)
            return real(*args, **how)

        return call
