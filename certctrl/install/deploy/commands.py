"""Run allowed commands, with their environment and pins; verify that endpoints serve the live certificates.

The environment contains paths, never secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import trio

from certctrl.backoff import grown
from certctrl.errors import CertctrlError, CommandError, DiskError, ProbeError
from certctrl.install.deploy.context import Context
from certctrl.install.material.formats import base_of, password_kind, pem_to_der
from certctrl.install.plan.policy import Grant, Refusal, may_probe_anywhere
from certctrl.install.plan.values import DesiredCert, InstallPlan, Verification
from certctrl.install.process.vetting import is_script, script_of, scripts_of, sha256_of, vet_command
from certctrl.model.certificate import KeyKind
from certctrl.model.commands import unit_of
from certctrl.model.plan import COMMAND_VARIABLES, VerifyTls
from certctrl.store.disk.atomic import read_bytes
from certctrl.store.disk.fs import Fs
from certctrl.text import one_line

FIRST_PAUSE, LAST_PAUSE = 0.05, 1.0
_FILES = {
    "private.key": "CERTCTRL_KEY_FILE",
    "certificate.pem": "CERTCTRL_CERTIFICATE_FILE",
    "chain.pem": "CERTCTRL_CHAIN_FILE",
    "fullchain.pem": "CERTCTRL_FULLCHAIN_FILE",
    "bundle.pfx": "CERTCTRL_PFX_FILE",
    "bundle-legacy.pfx": "CERTCTRL_PFX_FILE",
    "bundle.jks": "CERTCTRL_JKS_FILE",
}
MAX_NAMES = 100
MAX_KEYS = 20
"""Certificates of one command whose keys are redacted in its output, line by line."""
_KEY_LIMIT = 64 * 1024
_SHORTEST_LINE = 16


async def run_granted(context: Context, grant: Grant, certs: Sequence[DesiredCert], what: str) -> None:
    """Run a command to its end. Raises CommandError, named ``what``, if it does not succeed."""

    def ready() -> tuple[Mapping[str, str], Collection[bytes], str | None]:
        return *environment(context, certs), checked_pin(context, grant)

    env, secrets, pin = await context.offload(ready)
    if context.helper is not None and grant.run_as in (None, "root") and (asked := unit_of(grant.argv)) is not None:
        act = partial(context.helper.act, *asked, grant.timeout)
        if await trio.to_thread.run_sync(_named, what, act, abandon_on_cancel=True):
            return
    result = await context.proc.run(
        grant.argv,
        run_as=grant.run_as,
        timeout=grant.timeout,
        env_paths=dict(grant.env) | env,
        sha256=pin,
        secrets=secrets,
    )
    result.check(what)


def _named(what: str, act: Callable[[], bool]) -> bool:
    """Act on a unit; return whether the root helper may. Raises CommandError, named ``what``."""
    try:
        return act()
    except CommandError as error:
        raise CommandError(f"{what}: {error}", status=error.status, fix=error.fix) from None


def checked_pin(context: Context, grant: Grant) -> str | None:
    """Check the pin of a command's script and return that of its program. Blocks on the disk. Raises CommandError."""
    pins = _pins(context, grant)
    if scripts_of(grant.argv):
        vet_command(grant.argv, pins)
    return pins.get(grant.argv[0])


def _pins(context: Context, grant: Grant, *, first: bool = True) -> dict[str, str]:
    """Return path -> SHA-256 of the files that a command may run: by the policy, or as they were at first use.

    Listed scripts are pinned at their first use if the policy says so; ``first``: pin those that are used first now.
    """
    program, scripts = grant.argv[0], script_of(grant.argv)
    fixed = dict.fromkeys(scripts, grant.script_sha256) | {program: grant.sha256}
    pins = {path: sha256 for path, sha256 in fixed.items() if sha256 is not None}
    if not (grant.listed and context.policy().trust_on_first_use):
        return pins
    unpinned = [path for path in fixed if path not in pins and (path in scripts or is_script(path))]
    if not unpinned:
        return pins
    known = context.state.load_pins()
    fresh = {path: sha256_of(path) for path in unpinned if path not in known} if first else {}
    if fresh:
        context.state.save_pins(known | fresh)
    return pins | {path: known[path] for path in unpinned if path in known}


def refused_by_pin(context: Context, plan: InstallPlan) -> list[Refusal]:
    """Return the commands of a plan that would be refused because their program is not the pinned one."""
    found = []
    for run in (run for group_plan in plan.groups for step in group_plan.steps for run in step.runs):
        try:
            if pins := _pins(context, run.grant, first=False):
                vet_command(run.grant.argv, pins)
        except CertctrlError as error:
            found.append(Refusal(item=run.items[0], what=f"run {one_line(' '.join(run.grant.argv))}", why=str(error)))
    return found


async def verify_live(context: Context, one: Verification, certs: Sequence[DesiredCert]) -> None:
    """Perform a verification, repeatedly until it succeeds or ``verify_timeout_seconds`` have passed.

    Servers reload asynchronously, so the first answers may still be old. Raises ProbeError, CommandError.
    """
    deadline = trio.current_time() + context.config().application.verify_timeout_seconds
    if isinstance(one.verify, VerifyTls):
        wanted = await context.offload(wanted_leaves, context, one.fingerprints, certs)
        anywhere = may_probe_anywhere(context.policy(), one.verify, one.item)
        try:
            await context.probe.probe(one.verify, wanted, deadline=deadline, anywhere=anywhere)
        except ProbeError as error:
            context.log.warning("Probe failed: %s", error)  # it may quote the server, which the plane must not see
            from certctrl.install.probe.tls import plain_words  # here: only hosts that probe need it

            raise ProbeError(plain_words(one.verify, error), fault=error.fault, fix=error.fix) from None
    elif one.grant is not None:
        for failures in count(1):
            pause = grown(FIRST_PAUSE, LAST_PAUSE, failures)
            try:
                await run_granted(context, one.grant, certs, f"item {one_line(one.item)}: verify")
                return
            except CertctrlError:
                if trio.current_time() + pause > deadline:
                    raise
            await trio.sleep(pause)


def wanted_leaves(
    context: Context, fingerprints: Collection[str], certs: Sequence[DesiredCert]
) -> dict[str, KeyKind | None]:
    """Return the fingerprints that an endpoint may serve, with their kinds of key. Blocks on the disk."""
    wanted: dict[str, KeyKind | None] = {fingerprint: None for fingerprint in fingerprints}  # noqa: C420
    for cert in certs:
        if cert.generation and cert.facts.fingerprint_sha256 in wanted:
            path = context.layout.generation(cert.name, cert.generation) / "certificate.pem"
            wanted[cert.facts.fingerprint_sha256] = key_kind(context.fs, path)
    return wanted


def key_kind(fs: Fs, path: Path) -> KeyKind | None:
    """Return the kind of key of a certificate on disk (PEM); None if it cannot be read."""
    from certctrl.install.probe.address import kind_of  # here: only hosts that probe need it

    try:
        return kind_of(pem_to_der(read_bytes(fs, path, _KEY_LIMIT) or b""))
    except (DiskError, ValueError):
        return None


# --- environment -----------------------------------------------------------------------------------------------------


def environment(context: Context, certs: Sequence[DesiredCert]) -> tuple[dict[str, str], tuple[bytes, ...]]:
    """Return all `COMMAND_VARIABLES` for a command, and the secrets to redact.

    For a single certificate they name its files; a keystore password is given as the path of its file. Blocks on
    the disk.
    """
    layout = context.layout
    here = [cert for cert in certs if cert.generation]
    env = base_variables(context, [cert.name for cert in here])
    if len(here) != 1:
        return env, tuple(line for cert in here[:MAX_KEYS] for line in _key_lines(context, layout.live / cert.name))
    cert = here[0]
    more, secrets = files_of(context, cert.name, layout.live / cert.name, cert.files)
    return env | more, secrets


def base_variables(context: Context, names: Sequence[str]) -> dict[str, str]:
    """Return all `COMMAND_VARIABLES`, with empty values for those about a single certificate."""
    return dict.fromkeys(COMMAND_VARIABLES, "") | {
        "CERTCTRL_CONFIG_DIR": str(context.layout.root),
        "CERTCTRL_LIVE_DIR": str(context.layout.live),
        "CERTCTRL_NAMES": ",".join(names[:MAX_NAMES]),
    }


def files_of(
    context: Context, name: str, directory: Path, files: Collection[str]
) -> tuple[dict[str, str], tuple[bytes, ...]]:
    """Return the variables that name a certificate's files in a directory, and its secrets."""
    env, secrets = {"CERTCTRL_NAME": name}, list(_key_lines(context, directory)) if "private.key" in files else []
    for base, variable in _FILES.items():
        for file in sorted(one for one in files if base_of(one) == base):
            env.setdefault(variable, str(directory / file))
    for kind in {kind for file in files if (kind := password_kind(file)) is not None}:
        password, path = context.state.password(name, kind)
        secrets.append(password)
        env[f"CERTCTRL_{kind.upper()}_PASSWORD_FILE"] = str(path)
    return env, tuple(secrets)


def _key_lines(context: Context, directory: Path) -> tuple[bytes, ...]:
    """Return the lines of a key's PEM, since a command may print some of them only."""
    try:
        data = read_bytes(context.fs, directory / "private.key", _KEY_LIMIT) or b""
    except DiskError:
        return ()  # then the command cannot read it either
    return tuple(line for line in data.splitlines() if len(line) >= _SHORTEST_LINE and not line.startswith(b"-----"))
