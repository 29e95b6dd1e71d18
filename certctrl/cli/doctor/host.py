"""Check this host: configuration, permissions, disk space, state files, device key, policy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from certctrl.cli.doctor.finding import CheckContext, Finding, fail, failed, guarded, ok, warn
from certctrl.errors import CertctrlError
from certctrl.text import counted

_TRUST_STORE = "trust_store.directory in policy.json"
MIN_FREE_BYTES = 16 << 20
LOW_FREE_BYTES = 128 << 20
MIN_FREE_INODES = 200


def host_findings(context: CheckContext) -> Iterator[Finding]:
    """Yield the findings of this host."""
    checks: tuple[tuple[str, Callable[[CheckContext], Iterator[Finding]]], ...] = (
        ("config", _configuration),
        ("polling", _polling),
        ("permissions", _permissions),
        ("disk", _disk),
        ("state", _state),
        ("device", _device),
        ("policy", _policy),
    )
    for name, check in checks:
        yield from guarded(name, lambda check=check: check(context))  # type: ignore[misc]


def _configuration(context: CheckContext) -> Iterator[Finding]:
    from certctrl.cli.checks import check_files

    yield ok("config", f"{', '.join(check_files(context.layout, context.environ))}: no mistakes")


def _polling(context: CheckContext) -> Iterator[Finding]:
    """Compare the poll mode with the one that the control plane recommended."""
    from certctrl.store.config.files import load_config

    advice = context.store.session.load_recommended()
    if advice is None or context.config is None or context.config.application.poll_mode == advice.poll_mode:
        return
    source = load_config(context.layout, context.environ).sources["application.poll_mode"]
    what = f"poll_mode is {context.config.application.poll_mode} ({source})"
    what += f"; the control plane recommends {advice.poll_mode}"
    if source == "default":
        yield warn("polling", what, f'set "poll_mode": "{advice.poll_mode}" in application.json')
    else:
        yield ok("polling", what)


def _permissions(context: CheckContext) -> Iterator[Finding]:
    from certctrl.store.disk.tree import check_modes

    found = check_modes(context.fs, context.layout, repair=False)
    for finding in found:
        yield fail("permissions", f"{finding.path}: {finding.what}", finding.fix)
    owner = context.fs.lstat(context.layout.root)
    if owner is not None and os.geteuid() not in (0, owner.uid):
        what = f"{context.layout.root} belongs to user id {owner.uid}, but doctor runs as user id {os.geteuid()}"
        yield warn("permissions", what, "run doctor as root or as that user, to check all files")
    if not found:
        yield ok("permissions", f"{context.layout.root}: not accessible to other users")


def _disk(context: CheckContext) -> Iterator[Finding]:
    facts = os.statvfs(context.layout.root)
    free, where = facts.f_bavail * facts.f_frsize, f"the file system of {context.layout.root}"
    amount = f"{free / (1 << 20):.0f} MiB free on {where}"
    if facts.f_flag & os.ST_RDONLY:
        yield fail("disk", f"{where} is mounted read-only", "mount it read-write")
    if free < MIN_FREE_BYTES:
        yield fail("disk", amount, "free disk space; the agent cannot refresh tokens that it cannot store")
    elif free < LOW_FREE_BYTES:
        yield warn("disk", amount, "free disk space before it runs out")
    else:
        yield ok("disk", amount)
    if facts.f_files and facts.f_favail < MIN_FREE_INODES:
        yield fail("disk", f"{facts.f_favail} inodes free on {where}", "remove files (df -i shows inodes)")


def _state(context: CheckContext) -> Iterator[Finding]:
    from certctrl.store.state.versions import refuse_later_state

    session, installed, bad = context.store.session, context.store.installed, set[str]()
    loads: tuple[Callable[[], Any], ...] = (
        session.load_cursor, session.load_device_id, session.load_device_keys, session.load_tokens, session.load_inbox,
        session.load_outcomes, installed.load_install_config, installed.load_certificates,
        installed.load_retries, installed.load_activations, installed.load_cas, installed.load_pins,
    )  # fmt: skip
    for load in (lambda: refuse_later_state(context.layout, context.fs), *loads):
        try:
            load()
        except CertctrlError as error:
            if str(error) not in bad:  # retries may be read from the files of other kinds
                bad.add(str(error))
                yield failed("state", error)
    if not bad:
        yield ok("state", f"{len(loads)} kinds of state files: readable and valid")


def _device(context: CheckContext) -> Iterator[Finding]:
    keys, tokens = context.store.session.load_device_keys(), context.store.session.load_tokens()
    if keys is None or tokens is None:
        missing = "device key" if keys is None else "tokens"
        yield fail("device", f"not registered: no {missing}", "cert-ctrl -c DIR register")
        return
    if _public_of(keys.secret) != keys.public:
        what = "the device's public key does not match its secret key, so sealed private keys cannot be opened"
        yield fail("device", what, "restore keys/ from a backup, or cert-ctrl -c DIR register")
        return
    yield ok("device", f"registered as {context.store.session.load_device_id()}; its key pair matches")


def _public_of(secret: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def _policy(context: CheckContext) -> Iterator[Finding]:
    from certctrl.store.config.files import load_policy

    policy = load_policy(context.layout)
    pins = context.store.installed.load_pins()
    findings = [
        *_roots(policy),
        *_commands(policy),
        *_pins(pins),
        *_trust_store(policy),
        *_challenge_directory(policy),
        *_users(policy),
        *_risks(policy),
    ]
    yield from findings
    if not findings:
        roots, commands = counted(len(policy.write_roots), "write root"), counted(len(policy.commands), "command")
        yield ok("policy", f"valid; allows {roots} and {commands}")


def _roots(policy: Any) -> Iterator[Finding]:
    for root in policy.write_roots:
        try:
            os.lstat(root)
        except OSError as error:
            yield warn(
                "policy", f"write_roots: {root}: {error.strerror}", f"create {root}, or remove it from policy.json"
            )
            continue
        if os.path.realpath(root) != root:
            yield fail(
                "policy",
                f"write_roots: {root} contains a symbolic link",
                f"use {os.path.realpath(root)} in policy.json",
            )
        elif unsafe := _unsafe(root, policy.owners):
            yield fail("policy", f"write_roots: {unsafe}", unsafe.fix or f"ls -ld {root}")


def _unsafe(root: str, owners: Iterable[str]) -> CertctrlError | None:
    """Return why a deployment would refuse a directory for files of the agent or an allowed owner; None: it accepts."""
    from pathlib import Path

    from certctrl.install.deploy.observe import uid_of
    from certctrl.store.disk.fs import RealFs, closing
    from certctrl.store.disk.safe_path import open_parent

    fs, why = RealFs(), None
    for owner in (None, *map(uid_of, owners)):
        try:
            with closing(fs, open_parent(fs, Path(root) / "file", owner=owner)):
                return None
        except CertctrlError as error:
            why = why or error
    return why


def _challenge_directory(policy: Any) -> Iterator[Finding]:
    from certctrl.store.disk.fs import RealFs
    from certctrl.store.disk.token_files import check_directory

    directory = policy.acme.http01_directory
    if directory is None:
        return
    try:
        check_directory(RealFs(), directory)
    except CertctrlError as error:
        yield fail("policy", f"acme.http01_directory: {error}", error.fix or f"ls -ld {directory}")


def _commands(policy: Any) -> Iterator[Finding]:
    from certctrl.install.process.vetting import script_of, vet_command

    allowed = [(f"commands.{name}", one.argv, one.sha256, one.script_sha256) for name, one in policy.commands.items()]
    allowed += [("on_alert", policy.on_alert, None, None)] if policy.on_alert else []
    allowed += [("trust_store.command", policy.trust_store.command, None, None)] if policy.trust_store.command else []
    for where, argv, sha256, script_sha256 in allowed:
        pins = dict.fromkeys(script_of(argv), script_sha256) | {argv[0]: sha256}
        try:
            vet_command(argv, {path: pin for path, pin in pins.items() if pin is not None})
        except CertctrlError as error:
            yield fail("policy", f"{where}: {error}", error.fix or f"ls -l {argv[0]}")


def _pins(pins: Mapping[str, str]) -> Iterator[Finding]:
    from certctrl.install.process.vetting import vet_file

    for path, sha256 in pins.items():
        try:
            vet_file(path, sha256)
        except CertctrlError as error:
            fix = "find out who changed it; if it was intended: cert-ctrl -c DIR trust reset --scripts"
            yield fail("policy", f"script pinned at its first run: {error}", fix)


def _trust_store(policy: Any) -> Iterator[Finding]:
    directory = policy.trust_store.directory
    if directory is not None and not os.path.isdir(directory):
        yield fail("policy", f"trust_store: no directory {directory}", f"create it, or correct {_TRUST_STORE}")


def _users(policy: Any) -> Iterator[Finding]:
    import grp
    import pwd

    named = {*policy.run_as, *(command.run_as for command in policy.commands.values() if command.run_as)}
    for user in sorted(named):
        try:
            pwd.getpwnam(user)
        except KeyError:
            yield fail(
                "policy", f"no user {user} on this host", f"useradd --system {user}, or correct run_as in policy.json"
            )
    for owner in policy.owners:
        try:
            pwd.getpwnam(owner)
        except KeyError:
            try:
                grp.getgrnam(owner)
            except KeyError:
                yield fail("policy", f"owners: no user or group {owner} on this host", "correct owners in policy.json")


def _risks(policy: Any) -> Iterator[Finding]:
    if policy.shell:
        yield warn(
            "policy",
            "the control plane may run shell lines",
            'list commands instead, and set "shell": false in policy.json',
        )
    if policy.plaintext_keys:
        what = "private keys are accepted even if not sealed to this device"
        yield warn("policy", what, 'set "plaintext_keys": false in policy.json once the control plane seals them')
