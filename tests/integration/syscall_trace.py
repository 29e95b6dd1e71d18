"""Run a program under strace with umask 000, and find files that it makes readable by others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import attrs

CALLS = ("open", "openat", "openat2", "creat", "mkdir", "mkdirat", "mknod", "mknodat", "chmod", "fchmod", "fchmodat",
         "rename", "renameat", "renameat2", "link", "linkat")  # fmt: skip
PUBLIC = frozenset({"certificate.pem", "chain.pem", "fullchain.pem", "plane-ca.pem",
                    "application.json", "policy.json", "ioc_config.json", "log_config.json"})  # fmt: skip
OTHERS = 0o077


def traced(argv: Sequence[str | Path], trace: Path) -> list[str]:
    """Return the strace command for ``argv``."""
    strace = ["strace", "-f", "--seccomp-bpf", "-y", "-s", "4096", "-o", str(trace), "-e", "trace=" + ",".join(CALLS)]
    return ["/bin/sh", "-c", 'umask 000; exec "$@"', "sh", *strace, *map(str, argv)]


@attrs.define
class Verdict:
    """The result of a trace."""

    calls: int = 0
    """Calls that were checked."""
    made: int = 0
    """Files and directories that they made, except public ones."""
    violations: list[str] = attrs.field(factory=list)


def judge(trace: Path, public: Iterable[Path], ignored: Iterable[str] = ("/dev/", "/proc/")) -> Verdict:
    """Check every call: nothing that may hold a secret is made, or becomes, readable by others.

    Everything counts as secret but the files of `PUBLIC`, by name, and ``public``, by path; a temporary file counts
    as what it becomes.
    """
    verdict, open_paths = Verdict(), {str(path) for path in public}
    for line in trace.read_text("utf-8", "replace").splitlines():
        match = re.match(r"\d+ +(\w+)\((.*)\) += (\d+|0)(?:<(.*)>)?", line)
        if match is None:
            continue  # failed, or no call
        verdict.calls += 1
        call, arguments, _, opened = match.groups()
        path = opened if opened and call.startswith(("open", "creat")) else path_of(arguments)
        makes = "O_CREAT" in arguments or call.startswith(("mkdir", "mknod", "creat"))
        if not (makes or "chmod" in call) or path.startswith(tuple(ignored)) or is_public(path, open_paths):
            continue
        verdict.made += makes
        modes = re.findall(r"\b0[0-7]{2,4}\b", arguments.rpartition('"')[2] or arguments)
        if not modes or int(modes[-1], 8) & OTHERS:
            verdict.violations.append(line)
    return verdict


def path_of(arguments: str) -> str:
    """Return the path that a call's arguments name: of its descriptor, or its text below its directory's."""
    folder = re.match(r"(?:AT_FDCWD|\d+)<([^>]*)>", arguments)
    text = re.search(r'"([^"]*)"', arguments)
    if text is None:
        return folder[1] if folder else "?"
    return str(PurePosixPath(folder[1] if folder else "/") / text[1])


def is_public(path: str, public: set[str]) -> bool:
    name = re.sub(r"^\.(.*)\.[0-9a-f]{16}\.(tmp|old|bak)$", r"\1", PurePosixPath(path).name)
    return name in PUBLIC or str(PurePosixPath(path).with_name(name)) in public
