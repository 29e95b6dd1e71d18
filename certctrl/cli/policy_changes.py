"""Turn command line arguments and refusals into changes of the host's policy."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, assert_never

import attrs

from certctrl import lean
from certctrl.errors import UsageError
from certctrl.model.policy import AcmeAnswers, HostPolicy, NamedCommand, RemoteCommands, TrustStore

if TYPE_CHECKING:
    from certctrl.store.layout import ConfigDir


class Kind(StrEnum):
    """What ``policy allow`` can add."""

    PATH = "path"
    COMMAND = "command"
    RUN_AS = "run-as"
    OWNER = "owner"
    PROBE = "probe"
    TRUST_STORE = "trust-store"
    SHELL = "shell"
    PLAINTEXT_KEYS = "plaintext-keys"
    BRAINPOOL = "brainpool"
    REMOTE_COMMANDS = "remote-commands"


_LISTS = ("write_roots", "run_as", "owners", "probe")
"""Settings of policy.json that are lists of strings."""
_SWITCHES = {
    "shell": "run shell lines (anything at all, as the agent's user)",
    "brainpool": "accept keys on brainpool curves, which browsers do not know",
    "plaintext_keys": "accept private keys that are not sealed to this device",
    "remote_commands": "run the listed commands",
}
"""Settings that are on or off -> what they allow."""


@lean.frozen
class Change:
    """One addition to policy.json."""

    setting: str
    value: Any
    """An element of a list, name -> command of a mapping, or the new value of a switch."""
    allows: str
    """What it allows, in words."""

    @property
    def line(self) -> str:
        """The addition in the syntax of policy.json."""
        lists = (str, Mapping, bool)
        listed = self.setting in _LISTS or not isinstance(self.value, lists)
        return f"{json.dumps(self.setting)}: {json.dumps([self.value] if listed else self.value, ensure_ascii=False)}"


def change_for(kind: str, words: list[str], *, name: str | None, run_as: str | None) -> Change:
    """Return the change for the arguments of ``policy allow``. Raises UsageError."""
    if kind not in list(Kind):
        raise UsageError(f"unknown kind {kind!r}", fix=f"use one of {', '.join(Kind)}")
    chosen = Kind(kind)
    if chosen is not Kind.COMMAND and (name is not None or run_as is not None):
        raise UsageError("--name and --run-as require the kind `command`", fix="leave them out")
    match chosen:
        case Kind.COMMAND:
            return _command(words, name, run_as)
        case Kind.TRUST_STORE:
            return _trust_store(words)
        case Kind.PATH:
            directory = _directory(_only(chosen, words), "cert-ctrl -c DIR policy allow path /etc/nginx/tls")
            return Change("write_roots", directory, f"write files below {directory}")
        case Kind.RUN_AS:
            user = _only(chosen, words)
            return Change("run_as", user, f"run commands as {user}")
        case Kind.OWNER:
            owner = _only(chosen, words)
            return Change("owners", owner, f"give files to {owner}")
        case Kind.PROBE:
            endpoint = _only(chosen, words)
            return Change("probe", endpoint, f"probe {endpoint}, which may be another host")
        case Kind.SHELL | Kind.PLAINTEXT_KEYS | Kind.BRAINPOOL | Kind.REMOTE_COMMANDS:
            return _switch(chosen, words)
        case _:
            assert_never(chosen)


def change_for_refusal(refusal: Mapping[str, Any]) -> Change:
    """Return the change that would end a refusal of the planner."""
    allows = f"{refusal['what']} ({refusal['why']})"
    if refusal["setting"] in _SWITCHES:
        allows = f"{_SWITCHES[refusal['setting']]}; now for {allows}"
    return Change(refusal["setting"], refusal["value"], allows)


def _only(kind: Kind, words: list[str]) -> str:
    if len(words) != 1:
        raise UsageError(
            f"`policy allow {kind}` takes one value, not {len(words)}",
            fix=f"cert-ctrl -c DIR policy allow {kind} VALUE",
        )
    return words[0]


def _switch(kind: Kind, words: list[str]) -> Change:
    if words:
        raise UsageError(
            f"`policy allow {kind}` takes no value, got {words[0]!r}", fix=f"cert-ctrl -c DIR policy allow {kind}"
        )
    setting = kind.replace("-", "_")
    return Change(setting, "on" if kind is Kind.REMOTE_COMMANDS else True, _SWITCHES[setting])


def _command(words: list[str], name: str | None, run_as: str | None) -> Change:
    fix = "cert-ctrl -c DIR policy allow command --name nginx-reload -- /usr/sbin/nginx -s reload"
    if not words or not words[0].startswith("/"):
        what = f"{words[0]!r} is not the absolute path of a program" if words else "no command given"
        raise UsageError(what, fix=fix)
    plain = words[0].rpartition("/")[2]
    entry: dict[str, Any] = {"argv": words} | ({"run_as": run_as} if run_as is not None else {})
    user = f" as {run_as}" if run_as else ""
    return Change(
        "commands", {name or "-".join([plain, *words[1:2]]).replace("--", "-"): entry}, f"run {' '.join(words)}{user}"
    )


def _directory(word: str, fix: str) -> str:
    """Return a directory in the form of policy.json: absolute, normalized, without a trailing slash."""
    value = word.rstrip("/")
    if not value.startswith("/"):
        raise UsageError(f"{word!r} is not an absolute path of a directory below /", fix=fix)
    if posixpath.normpath(value) != value or value.startswith("//"):
        raise UsageError(f"{word!r} contains '.', '..' or '//'", fix=f"use {posixpath.normpath(value)}")
    return value


def _trust_store(words: list[str]) -> Change:
    store = "/usr/local/share/ca-certificates /usr/sbin/update-ca-certificates --fresh"
    fix = f"cert-ctrl -c DIR policy allow trust-store -- {store}"
    if not words or (words[1:] and not words[1].startswith("/")):
        what = f"{words[1]!r} is not the absolute path of a program" if words else "no trust store directory given"
        raise UsageError(what, fix=fix)
    directory, command = _directory(words[0], fix), words[1:]
    value: dict[str, Any] = {"directory": directory} | ({"command": command} if command else {})
    then = f", then run {' '.join(command)}" if command else ""
    return Change("trust_store", value, f"install trusted CAs in {directory}{then}")


def absent_account(change: Change) -> str:
    """Return, as a sentence, that this host lacks the user or group of a change; empty: it has all."""
    import grp
    import pwd

    def known(find: Callable[[str], Any], name: str) -> bool:
        try:
            find(name)
        except (KeyError, ValueError):
            return False
        return True

    if change.setting == "owners" and not str(change.value).isdecimal():
        there = known(pwd.getpwnam, change.value) or known(grp.getgrnam, change.value)
        return "" if there else f"there is no user or group {change.value!r} on this host"
    users = [change.value] if change.setting == "run_as" else []
    if change.setting == "commands":
        users = [entry["run_as"] for entry in change.value.values() if entry.get("run_as") is not None]
    absent = [user for user in users if not known(pwd.getpwnam, user)]
    return f"there is no user {absent[0]!r} on this host" if absent else ""


def absent_program(change: Change) -> str:
    """Return, as a sentence, that this host lacks the program of a change; empty: it does not, or names none."""
    import os

    argvs = [entry["argv"] for entry in change.value.values()] if change.setting == "commands" else []
    if change.setting == "trust_store" and change.value.get("command"):
        argvs = [change.value["command"]]
    absent = [argv[0] for argv in argvs if not os.path.exists(argv[0])]
    return f"there is no program {absent[0]} on this host yet" if absent else ""


def apply_change(policy: HostPolicy, change: Change) -> HostPolicy:
    """Return the changed policy, or the same one if it allows that already. Raises UsageError."""
    if change.setting == "commands":
        return _with_commands(policy, change.value)
    if change.setting == "trust_store":
        return _with_trust_store(policy, change.value)
    if change.setting in _LISTS:
        present: tuple[str, ...] = getattr(policy, change.setting)
        more: dict[str, Any] = {change.setting: (*present, change.value)}
        return policy if change.value in present else attrs.evolve(policy, **more)
    if change.setting in _SWITCHES:
        return attrs.evolve(policy, **{change.setting: change.value})
    raise UsageError(f"cannot add to the setting {change.setting!r} of policy.json", fix="edit policy.json by hand")


def _with_commands(policy: HostPolicy, entries: Mapping[str, Mapping[str, Any]]) -> HostPolicy:
    commands = dict(policy.commands)
    for name, entry in entries.items():
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        before = commands.get(name)
        if before is None:
            commands[name] = NamedCommand(**known)
        elif before.argv != known["argv"]:
            raise UsageError(f"another command is named {name!r}", fix="choose another name with --name")
        else:
            merged: dict[str, Any] = {**known, "env": tuple(dict.fromkeys((*before.env, *known.get("env", ()))))}
            commands[name] = attrs.evolve(before, **merged)
    return policy if commands == dict(policy.commands) else attrs.evolve(policy, commands=commands)


def _with_trust_store(policy: HostPolicy, entry: Mapping[str, Any]) -> HostPolicy:
    present = policy.trust_store
    command = tuple(entry["command"]) if entry.get("command") else present.command
    wanted = TrustStore(directory=entry["directory"], command=command)
    if present.directory is not None and present != wanted:
        raise UsageError(
            f"the trust store is already {present.directory}", fix="edit trust_store in policy.json by hand"
        )
    return policy if present == wanted else attrs.evolve(policy, trust_store=wanted)


def sentences(policy: HostPolicy, layout: ConfigDir) -> list[str]:
    """Describe the policy, one line per setting."""
    roots = ", ".join([f"{layout.certs}", *policy.write_roots])
    lines = [f"May write below: {roots}"]
    if policy.remote_commands is RemoteCommands.OFF:
        lines.append("May run: nothing (remote_commands is off)")
    elif not policy.commands:
        lines.append("May run: nothing")
    for name, command in policy.commands.items() if policy.remote_commands is RemoteCommands.ON else ():
        user = f" as {command.run_as}" if command.run_as else ""
        pinned = ", pinned by hash" if command.sha256 else ""
        lines.append(f"May run: {' '.join(command.argv)}{user} ({name}, at most {command.timeout_seconds:g} s{pinned})")
    lines.append(f"May run commands as: {', '.join(policy.run_as) or 'the agent user only'}")
    lines.append(f"May give files to: {', '.join(policy.owners) or 'root and the agent user only'}")
    lines.append(f"May probe: {', '.join(['addresses of this host', *policy.probe])}")
    lines.append(f"Shell lines: {'allowed' if policy.shell else 'refused'}")
    lines.append(f"Keys not sealed to this device: {'accepted' if policy.plaintext_keys else 'refused'}")
    lines.append(f"Keys on brainpool curves: {'accepted' if policy.brainpool else 'refused'}")
    lines.append(f"Makes keys of type: {', '.join(policy.key_types)}")
    lines.append(f"On revocation: {policy.on_revoked}")
    lines.append(f"On unassignment: {policy.on_unassigned}, after {policy.unassign_grace:g} s")
    if policy.window is not None:
        window = policy.window
        lines.append(f"Deploys in: {' '.join(window.days)} {window.from_}-{window.to} {window.timezone}")
    lines.append(f"CA imports: {policy.trust_store.directory or 'refused'}")
    lines += _answers(policy.acme)
    lines.append(f"Questions of the control plane: {'answered' if policy.remote_questions == 'on' else 'refused'}")
    lines.append(f"On alert: {' '.join(policy.on_alert) if policy.on_alert else 'no command'}")
    return lines


def _answers(acme: AcmeAnswers) -> list[str]:
    """Describe the challenges that this host answers."""
    names = f" for {', '.join(acme.names)}" if acme.names else " for any name"
    http = f"files in {acme.http01_directory}" if acme.http01_directory else acme.http01_listen
    kinds = {"http-01": http, "tls-alpn-01": acme.tls_alpn01_listen}
    found = [f"Answers {kind} challenges of CAs: by {by}{names}" for kind, by in kinds.items() if by]
    return found or ["Answers challenges of CAs: none"]


def as_json(policy: HostPolicy) -> dict[str, Any]:
    """Return the policy in the form of policy.json, with all defaults."""
    raw = attrs.asdict(policy)
    if raw["window"] is not None:
        raw["window"]["from"] = raw["window"].pop("from_")
    return raw
