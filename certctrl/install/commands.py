"""Run a granted command about some certificates: environment, pins, proof; the way from a Grant to `Proc`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import trio

from certctrl.errors import CertctrlError
from certctrl.install.environment import environment
from certctrl.install.policy import Grant, shown
from certctrl.install.probe import probe_tls
from certctrl.install.process.vetting import is_script, sha256_of
from certctrl.install.site import Site
from certctrl.install.steps import DesiredCert, Verification
from certctrl.model.plan import VerifyTls

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0


async def run_granted(site: Site, grant: Grant, certs: Sequence[DesiredCert], what: str) -> None:
    """Run a command to its end. Raises CommandError, named ``what``, when it does not succeed."""

    def ready() -> tuple[Mapping[str, str], Collection[bytes], str | None]:
        return *environment(site, certs), grant.sha256 or _pin(site, grant)

    told, secrets, pin = await site.offload(ready)
    result = await site.proc.run(
        grant.argv,
        run_as=grant.run_as,
        timeout=grant.timeout,
        env_paths=dict(grant.env) | told,
        sha256=pin,
        secrets=secrets,
    )
    result.check(what)


def _pin(site: Site, grant: Grant) -> str | None:
    """Return the pin of a listed script that is trusted on first use, made now when this is the first."""
    path = grant.argv[0]
    if not (grant.listed and site.policy().trust_on_first_use and is_script(path)):
        return None
    pins = site.state.load_pins()
    if path not in pins:
        site.state.save_pins(pins | {path: sha256_of(path)})
        return None
    return pins[path]


async def prove(site: Site, one: Verification, certs: Sequence[DesiredCert]) -> None:
    """Require what a verification says, looking again within ``verify_timeout_seconds``.

    Servers reload asynchronously, so the first answers may still be the old ones. Raises ProbeError, CommandError.
    """
    deadline = trio.current_time() + site.config().application.verify_timeout_seconds
    if isinstance(one.verify, VerifyTls):
        await probe_tls(one.verify, one.fingerprints, deadline=deadline)
    elif one.grant is not None:
        pause = FIRST_PAUSE
        while True:
            try:
                await run_granted(site, one.grant, certs, f"item {shown(one.item)}: verify")
                return
            except CertctrlError:
                if trio.current_time() + pause > deadline:
                    raise
            await trio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)
