"""Run a granted command about some certificates: environment, pins, proof; the way from a Grant to `Proc`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import trio

from certctrl.errors import CertctrlError
from certctrl.install.deploy.context import Context
from certctrl.install.deploy.environment import environment
from certctrl.install.plan.policy import Grant, Refusal
from certctrl.install.plan.values import DesiredCert, InstallPlan, Verification
from certctrl.install.probe.tls import probe_tls
from certctrl.install.process.vetting import is_script, sha256_of, vet_executable
from certctrl.model.plan import VerifyTls
from certctrl.text import one_line

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0


async def run_granted(context: Context, grant: Grant, certs: Sequence[DesiredCert], what: str) -> None:
    """Run a command to its end. Raises CommandError, named ``what``, when it does not succeed."""

    def ready() -> tuple[Mapping[str, str], Collection[bytes], str | None]:
        return *environment(context, certs), grant.sha256 or _pin(context, grant)

    told, secrets, pin = await context.offload(ready)
    result = await context.proc.run(
        grant.argv,
        run_as=grant.run_as,
        timeout=grant.timeout,
        env_paths=dict(grant.env) | told,
        sha256=pin,
        secrets=secrets,
    )
    result.check(what)


def _pin(context: Context, grant: Grant, *, first: bool = True) -> str | None:
    """Return the pin of a listed script that is trusted on first use, made now when this is the ``first``."""
    path = grant.argv[0]
    if not (grant.listed and context.policy().trust_on_first_use and is_script(path)):
        return None
    pins = context.state.load_pins()
    if path not in pins and first:
        context.state.save_pins(pins | {path: sha256_of(path)})
        return None
    return pins.get(path)


def pinned_otherwise(context: Context, plan: InstallPlan) -> list[Refusal]:
    """Return the commands of a plan that would not run, because their program is not the one that was pinned."""
    found = []
    for run in (run for group_plan in plan.groups for step in group_plan.steps for run in step.runs):
        try:
            if pin := run.grant.sha256 or _pin(context, run.grant, first=False):
                vet_executable(run.grant.argv[0], pin)
        except CertctrlError as error:
            found.append(Refusal(item=run.items[0], what=f"run {one_line(' '.join(run.grant.argv))}", why=str(error)))
    return found


async def prove(context: Context, one: Verification, certs: Sequence[DesiredCert]) -> None:
    """Require what a verification says, looking again within ``verify_timeout_seconds``.

    Servers reload asynchronously, so the first answers may still be the old ones. Raises ProbeError, CommandError.
    """
    deadline = trio.current_time() + context.config().application.verify_timeout_seconds
    if isinstance(one.verify, VerifyTls):
        await probe_tls(one.verify, one.fingerprints, deadline=deadline)
    elif one.grant is not None:
        pause = FIRST_PAUSE
        while True:
            try:
                await run_granted(context, one.grant, certs, f"item {one_line(one.item)}: verify")
                return
            except CertctrlError:
                if trio.current_time() + pause > deadline:
                    raise
            await trio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)
