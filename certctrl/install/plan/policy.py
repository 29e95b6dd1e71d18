"""Judge writes and commands by the host's policy, and name the line of policy.json that would allow them.

Pure: it only compares text. Symlinks, owners, modes of parents and the bytes of executables are checked on disk, by
``store/deployments/file_set.py`` and ``install/process/vetting.py``; both checks must pass. Items of
``installs.local.json`` are the operator's, so the lists of the policy do not apply to them; all other rules do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from certctrl import lean
from certctrl.model.commands import script_words
from certctrl.model.modes import open_mode
from certctrl.model.paths import is_below, path_fault
from certctrl.model.plan import COMMAND_PREFIX, LOCAL_PREFIX, CopyAction, ExecAction, VerifyTls
from certctrl.model.policy import HostPolicy, NamedCommand, RemoteCommands
from certctrl.text import nearest, one_line

MIN_TIMEOUT = 1.0
MAX_TIMEOUT = 600.0
MAX_WORDS = 256
MAX_WORD_CHARS = 65_536
_LISTS = ("write_roots", "run_as", "owners", "probe")
_NO_WORD = re.compile(r"[\x00\ud800-\udfff]")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)


@lean.frozen(kw_only=True)
class Refusal:
    """An action that this host does not allow, and the setting that would allow it."""

    item: str = ""
    what: str
    """E.g. ``write /etc/x/a.pem``."""
    why: str
    setting: str = ""
    """Key of policy.json to change; empty: no setting allows this."""
    value: Any = None
    """Addition to the list or mapping under ``setting``, or its new value."""
    fix: str = ""
    """Command for the operator, if the addition has parts that only the operator knows."""

    @property
    def line(self) -> str:
        """The exact text for policy.json; empty if no setting helps."""
        if not self.setting:
            return ""
        value = [self.value] if self.setting in _LISTS else self.value
        text = f"{json.dumps(self.setting)}: {json.dumps(value, ensure_ascii=False)}"
        return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


@lean.frozen(kw_only=True)
class Grant:
    """A command as this host allows it."""

    argv: tuple[str, ...]
    run_as: str | None
    timeout: float
    """Seconds."""
    sha256: str | None = None
    script_sha256: str | None = None
    env: Mapping[str, str] = attrs.field(factory=dict)
    listed: bool = False
    """Whether policy.json contains the command, so that it may be pinned on first use."""


@lean.frozen(kw_only=True)
class AgentIdentity:
    """The agent's own directory, which no setting may open, and its account."""

    config_dir: str
    """Absolute path of the config directory."""
    user: str = "root"
    group: str = "root"


def explain(refusal: Refusal) -> str:
    """Return one line for the operator: what is refused, why, and the line or command that would allow it."""
    if not refusal.setting:
        return f"{refusal}; to allow it: {refusal.fix}" if refusal.fix else str(refusal)
    return f"{refusal}; to allow it, policy.json needs {refusal.line}"


def is_local(item_id: str) -> bool:
    """Return whether an item is from ``installs.local.json``; the plane's items never have such an id."""
    return item_id.startswith(LOCAL_PREFIX)


# --- paths --------------------------------------------------------------------------------------------------------


def refuse_path(policy: HostPolicy, path: str, identity: AgentIdentity, *, local: bool = False) -> Refusal | None:
    """Return why a destination may not be written, judged by its text; None: it may."""
    what = f"write {one_line(path)}"
    if fault := path_fault(path):
        return Refusal(what=what, why=fault)
    if is_below(path, identity.config_dir):
        return _refuse_own(path, what, identity)
    if any(argv and argv[0] == path for argv in policy.argvs):
        return Refusal(what=what, why="it is the program of an allowed command")
    if any(path in script_words(argv) for argv in policy.argvs):
        return Refusal(what=what, why="it is the script of an allowed command")
    if local or any(is_below(path, root) for root in policy.write_roots):
        return None
    parent = path.rpartition("/")[0]
    if parent.count("/") < 2:  # "/etc" or "/": opening those would open the host
        return Refusal(
            what=what, why="not below an allowed directory, and too near the root to allow; use a subdirectory"
        )
    return Refusal(what=what, why="not below a directory of write_roots", setting="write_roots", value=parent)


def _refuse_own(path: str, what: str, identity: AgentIdentity) -> Refusal | None:
    """Judge a path in the agent's directory: only plain names in ``certs/`` may be written."""
    certs = f"{identity.config_dir.rstrip('/')}/certs"
    if not is_below(path, certs):
        return Refusal(what=what, why="it is the agent's own state")
    if path.removeprefix(certs).startswith("/.") or is_below(path, f"{certs}/chains"):
        return Refusal(what=what, why="it is where the agent keeps generations and their links")
    return None


def refuse_owner(policy: HostPolicy, item: CopyAction, identity: AgentIdentity) -> Refusal | None:
    """Return why a copy item may not give its files this mode, owner or group; None: it may."""
    if too_open := open_mode(item):
        return Refusal(item=item.id, what=f"set mode {too_open.mode:04o}", why=too_open.why)
    allowed = {*policy.owners, "root", identity.user, identity.group}
    owners, groups = item.accounts
    for name in (*sorted(owners), *sorted(groups)):
        if name not in allowed and not is_local(item.id):
            what = f"give files to {one_line(name)}"
            return Refusal(item=item.id, what=what, why="not among owners", setting="owners", value=name)
    return None


# --- probes -------------------------------------------------------------------------------------------------------


def may_probe_anywhere(policy: HostPolicy, verify: VerifyTls, item_id: str) -> bool:
    """Return whether an endpoint may be probed even if it is not on this host."""
    host = f"[{verify.host}]" if ":" in verify.host else verify.host
    allowed = {entry.lower() for entry in policy.probe}
    return is_local(item_id) or not allowed.isdisjoint(
        (verify.host.lower(), host.lower(), f"{host}:{verify.port}".lower())
    )


# --- commands -----------------------------------------------------------------------------------------------------


def judge_command(
    policy: HostPolicy,
    argv: Sequence[str],
    identity: AgentIdentity,
    *,
    run_as: str | None = None,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
    local: bool = False,
    item: str = "",
) -> Grant | Refusal:
    """Return the command as this host allows it, or the refusal.

    A single word without a slash names a command of the policy. ``timeout``: seconds; the policy's limit is the upper
    bound.
    """
    what = f"run {one_line(' '.join(argv))}"
    if policy.remote_commands is RemoteCommands.OFF and not local:
        why = "remote commands are switched off"
        return Refusal(item=item, what=what, why=why, setting="remote_commands", value=RemoteCommands.ON.value)
    name, named = _listed(policy, tuple(argv))
    if named is not None:
        argv = named.argv
    elif name:
        return attrs.evolve(_unlisted(policy, name, what), item=item)
    if fault := _argv_fault(argv):
        return Refusal(item=item, what=what, why=fault)
    if named is None and not local:
        value = {_free_name(policy, argv): _entry(argv, run_as)}
        return Refusal(item=item, what=what, why="not among commands", setting="commands", value=value)
    user = (named.run_as if named is not None else None) or run_as
    if refusal := _refuse_user(policy, named, run_as, identity, local, what):
        return attrs.evolve(refusal, item=item)
    if refusal := _refuse_env(name, named, env or {}, local, what):
        return attrs.evolve(refusal, item=item)
    limit = min(timeout, named.timeout_seconds) if named is not None else timeout
    return Grant(
        argv=tuple(argv),
        run_as=None if user == identity.user else user,
        timeout=min(max(limit, MIN_TIMEOUT), MAX_TIMEOUT),
        sha256=named.sha256 if named is not None else None,
        script_sha256=named.script_sha256 if named is not None else None,
        env=dict(env or {}),
        listed=named is not None,
    )


def judge_exec(policy: HostPolicy, item: ExecAction, identity: AgentIdentity) -> Grant | Refusal:
    """Return the command of an exec item as this host allows it, or the refusal; a shell line also needs ``shell``.

    The time limit of a plane's item is ignored: a short one would kill an allowed command halfway.
    """
    argv, local = item.cmd_argv, is_local(item.id)
    if argv is None:
        argv = ("/bin/sh", "-c", item.cmd or "")
        if not policy.shell:
            what = f"run the shell line {one_line(item.cmd or '')}"
            return Refusal(item=item.id, what=what, why="shell is off", setting="shell", value=True)
    return judge_command(
        policy,
        argv,
        identity,
        run_as=item.run_as,
        timeout=item.timeout_ms / 1000 if local else MAX_TIMEOUT,
        env=item.env,
        local=local,
        item=item.id,
    )


def _unlisted(policy: HostPolicy, name: str, what: str) -> Refusal:
    """Return the refusal of a command name that the policy does not have."""
    near = nearest(name, policy.commands)
    also = f"; did you mean {near}?" if near else ""
    fix = f"cert-ctrl -c DIR policy allow command --name {name} -- /PATH/TO/PROGRAM [ARGUMENT]..."
    return Refusal(
        what=what,
        why=f"policy.json lists no command named {one_line(name)}{also}",
        fix=fix if _PLAIN_NAME.fullmatch(name) else "",
    )


def _listed(policy: HostPolicy, argv: tuple[str, ...]) -> tuple[str, NamedCommand | None]:
    """Return the name of a command, as given or as listed in the policy, and the listed command, if any."""
    if len(argv) == 1 and argv[0] and "/" not in argv[0]:
        return argv[0], policy.commands.get(argv[0])
    for name, command in policy.commands.items():
        if command.argv == argv:
            return name, command
    return "", None


def _argv_fault(argv: Sequence[str]) -> str | None:
    if not argv:
        return "there is no command"
    if path_fault(argv[0]):
        return f"the program {one_line(argv[0], 200)} is {_path_kind(argv[0])}"
    if len(argv) > MAX_WORDS or sum(map(len, argv)) > MAX_WORD_CHARS:
        return "it is too long"
    if any(_NO_WORD.search(word) for word in argv):
        return "a word contains NUL or is not UTF-8"
    return None


def _path_kind(path: str) -> str:
    return "not a plain absolute path (no '.', '..' or '//')" if path.startswith("/") else "not an absolute path"


def _refuse_user(
    policy: HostPolicy, named: NamedCommand | None, run_as: str | None, identity: AgentIdentity, local: bool, what: str
) -> Refusal | None:
    fixed = named.run_as if named is not None else None
    if run_as is None or run_as in (fixed, identity.user):
        return None if fixed is None or run_as in (None, fixed) else Refusal(what=what, why=f"it runs as {fixed} only")
    if fixed is not None:
        return Refusal(what=what, why=f"it runs as {fixed} only")
    if local or run_as in policy.run_as:
        return None
    why = f"not allowed to run as {one_line(run_as)}"
    return Refusal(what=what, why=why, setting="run_as", value=run_as)


def _refuse_env(
    name: str, named: NamedCommand | None, env: Mapping[str, str], local: bool, what: str
) -> Refusal | None:
    for key, value in env.items():
        if not _ENV_NAME.fullmatch(key) or "\0" in value or len(value) > 4096:
            return Refusal(what=what, why=f"the variable {one_line(key)} is not well-formed")
        if key.startswith(COMMAND_PREFIX):
            why = f"may not be given the variable {key}: names with {COMMAND_PREFIX} are the agent's"
            return Refusal(what=what, why=why)
        if local or (named is not None and key in named.env):
            continue
        entry = _entry(named.argv if named else (), named.run_as if named else None) | {"env": [key]}
        return Refusal(what=what, why=f"may not be given the variable {key}", setting="commands", value={name: entry})
    return None


def _entry(argv: Sequence[str], run_as: str | None) -> dict[str, Any]:
    return {"argv": list(argv)} | ({"run_as": run_as} if run_as is not None else {})


def _free_name(policy: HostPolicy, argv: Sequence[str]) -> str:
    words = [argv[0].rpartition("/")[2], *argv[1:]]
    plain = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:40].strip("-") or "command"
    taken = set(policy.commands)
    return next(name for n in range(1, len(taken) + 3) if (name := plain if n == 1 else f"{plain}-{n}") not in taken)
