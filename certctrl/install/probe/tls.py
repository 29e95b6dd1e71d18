"""Ask a live endpoint which certificate it serves: "renewed" does not mean "served".

The chain is not verified, on purpose: the question is whether the served leaf *is* the deployed one, and its SHA-256
answers that. All addresses of the host are probed, IPv4 and IPv6. An address that serves another certificate fails
the probe; one that does not answer is ignored if another serves the right leaf, as a service need not listen on all.
"""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from collections.abc import Awaitable, Callable, Collection
from functools import cache
from math import inf
from typing import Protocol

import attrs
import trio

from certctrl.errors import ProbeError
from certctrl.install.probe.handshake import RecordingStream
from certctrl.install.probe.starttls import start_tls
from certctrl.model.plan import VerifyTls
from certctrl.text import one_line

ADDRESS_SECONDS = 5.0
"""Longest probe of one address."""
STRAGGLER_SECONDS = 1.0
"""Time for the other addresses once one has answered."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
"""Seconds between probes; servers reload asynchronously, so the first ones follow quickly."""
STEADY_SECONDS = 0.25
"""Seconds that the answer must stay right: old nginx workers accept connections for another 100 ms."""
STEADY_PROBES = 2
"""Probes in that time, after the first right answer."""
MAX_ADDRESSES = 8


@attrs.frozen(kw_only=True)
class Seen:
    """The answer of one address."""

    address: str
    """``127.0.0.1:443`` or ``[::1]:443``."""
    fingerprint: str = ""
    """SHA-256 of the served leaf, lower-case hex; empty: none."""
    fault: str = ""
    """Why it served none."""


class Probe(Protocol):
    """Ask live endpoints what they serve; tests pass another one."""

    async def probe(self, verify: VerifyTls, fingerprints: Collection[str], *, deadline: float) -> None:
        """Return once the endpoint serves one of these leaves; see `probe_tls`."""

    async def after_removal(self, verify: VerifyTls, fingerprint: str, *, deadline: float) -> tuple[bool, str]:
        """Return whether the endpoint still serves a removed leaf; see `after_removal`."""


class TlsProbe:
    """The real `Probe`."""

    async def probe(self, verify: VerifyTls, fingerprints: Collection[str], *, deadline: float) -> None:
        """Call `probe_tls`."""
        await probe_tls(verify, fingerprints, deadline=deadline)

    async def after_removal(self, verify: VerifyTls, fingerprint: str, *, deadline: float) -> tuple[bool, str]:
        """Call `after_removal`."""
        return await after_removal(verify, fingerprint, deadline=deadline)


ProbeOnce = Callable[[VerifyTls], Awaitable[tuple[Seen, ...]]]


async def probe_tls(
    verify: VerifyTls, fingerprint: str | Collection[str], *, deadline: float, once: ProbeOnce | None = None
) -> None:
    """Probe until the endpoint steadily serves the leaf with this fingerprint, or one of these.

    ``deadline``: on Trio's clock, for the first right answer; those that confirm it may come later. Raises
    ProbeError with the last answers.
    """
    wanted = {fingerprint} if isinstance(fingerprint, str) else set(fingerprint)
    pause, last, good_since = FIRST_PAUSE, tuple[Seen, ...](), -inf
    while True:
        seen = tuple[Seen, ...]()
        with trio.move_on_at(max(deadline, good_since + ADDRESS_SECONDS)):
            last = seen = await (once or probe_once)(verify)
        now, served = trio.current_time(), {one.fingerprint for one in seen if one.fingerprint}
        if served and served <= wanted:
            good_since = now if good_since == -inf else good_since
            if now - good_since >= STEADY_SECONDS:
                return
            await trio.sleep(STEADY_SECONDS / STEADY_PROBES)
            continue
        good_since = -inf
        if now + pause > deadline:
            raise ProbeError(_complaint(verify, last, wanted), fix=_FIX)
        await trio.sleep(pause)
        pause = min(LONGEST_PAUSE, pause * 1.6)


_FIX = "check that the service runs, which certificate file it reads, and its log"


async def after_removal(
    verify: VerifyTls, fingerprint: str, *, deadline: float, once: ProbeOnce | None = None
) -> tuple[bool, str]:
    """Return whether the endpoint still serves a removed leaf, and what to report about it.

    Probes until the leaf is steadily gone, or until ``deadline`` (Trio's clock).
    """
    pause, gone_since = FIRST_PAUSE, inf
    while True:
        seen = await (once or probe_once)(verify)
        now, served = trio.current_time(), {one.fingerprint for one in seen if one.fingerprint}
        if fingerprint not in served:
            gone_since = min(gone_since, now)
            if now - gone_since >= STEADY_SECONDS:
                return False, "" if served else _complaint(verify, seen, set())
            await trio.sleep(STEADY_SECONDS / STEADY_PROBES)
            continue
        gone_since = inf
        if now + pause > deadline:
            return True, f"{one_line(verify.host)}:{verify.port} still serves it from memory"
        await trio.sleep(pause)
        pause = min(LONGEST_PAUSE, pause * 1.6)


async def served_fingerprint(verify: VerifyTls, *, deadline: float) -> str:
    """Return the fingerprint of the leaf that the endpoint serves. Raises ProbeError if it is not exactly one."""
    seen = tuple[Seen, ...]()
    with trio.move_on_at(deadline):
        seen = await probe_once(verify)
    found = {one.fingerprint for one in seen if one.fingerprint}
    if len(found) == 1:
        return found.pop()
    raise ProbeError(_complaint(verify, seen, set()), fix=_FIX)


def _complaint(verify: VerifyTls, seen: tuple[Seen, ...], wanted: set[str]) -> str:
    where = f"{one_line(verify.host)}:{verify.port}"
    name = f" for {one_line(verify.server_name)}" if verify.server_name else ""
    wrong = [one for one in seen if one.fingerprint and one.fingerprint not in wanted]
    if wrong:
        said = ", ".join(f"{one.fingerprint[:16]}… at {one.address}" for one in wrong)
        expected = " or ".join(f"{one[:16]}…" for one in sorted(wanted)[:3])
        return f"{where} serves another certificate{name}: {said}" + (f"; deployed is {expected}" if expected else "")
    faults = "; ".join(f"{one.address}: {one.fault}" for one in seen if one.fault)
    return f"{where} serves no certificate{name}: {faults or 'no answer in time'}"


async def probe_once(verify: VerifyTls) -> tuple[Seen, ...]:
    """Probe all addresses of the endpoint once, concurrently."""
    try:
        found = await trio.socket.getaddrinfo(verify.host, verify.port, type=trio.socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return (Seen(address=one_line(verify.host), fault=f"cannot be resolved: {error}"),)
    addresses = list(dict.fromkeys((family, str(name[0])) for family, _, _, _, name in found))[:MAX_ADDRESSES]
    results: dict[str, Seen] = {}

    async def one(family: int, host: str) -> None:
        address = f"[{host}]:{verify.port}" if ":" in host else f"{host}:{verify.port}"
        results[address] = Seen(address=address, fault="no answer in time")
        results[address] = await _probe_address(family, host, address, verify)
        if results[address].fingerprint:
            scope.deadline = min(scope.deadline, trio.current_time() + STRAGGLER_SECONDS)

    with trio.move_on_after(ADDRESS_SECONDS) as scope:
        async with trio.open_nursery() as nursery:
            for family, host in addresses:
                nursery.start_soon(one, family, host, name=f"probe {host}")
    return tuple(results.values())


async def _probe_address(family: int, host: str, address: str, verify: VerifyTls) -> Seen:
    try:
        with trio.socket.socket(family, trio.socket.SOCK_STREAM) as plain:
            await plain.connect((host, verify.port))
            fingerprint = await _leaf_of(trio.SocketStream(plain), verify)
        return Seen(address=address, fingerprint=fingerprint)
    except ProbeError as error:
        return Seen(address=address, fault=str(error))
    except (OSError, trio.BrokenResourceError, ssl.SSLError) as error:
        return Seen(address=address, fault=_why(error))


async def _leaf_of(stream: trio.SocketStream, verify: VerifyTls) -> str:
    if verify.starttls is not None:
        await start_tls(stream, verify.starttls)
    recorded = RecordingStream(stream)
    tls = trio.SSLStream(recorded, _context(), server_hostname=_server_name(verify))
    leaf: bytes | None
    try:
        await tls.do_handshake()
        leaf = tls.getpeercert(binary_form=True)
    except trio.BrokenResourceError as error:
        leaf = recorded.leaf_after(error)
        if leaf is None:
            raise
    await trio.aclose_forcefully(tls)
    if leaf is None:
        raise ProbeError("the server sent no certificate")
    return hashlib.sha256(leaf).hexdigest()


@cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint is compared, which is stricter than any chain
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _server_name(verify: VerifyTls) -> str | None:
    """Return the name for SNI: the given one, otherwise the host unless it is an address."""
    if verify.server_name:
        return verify.server_name
    try:
        ipaddress.ip_address(verify.host.partition("%")[0])
    except ValueError:
        return verify.host
    return None


def _why(error: BaseException) -> str:
    """Return the innermost cause in a few words: Trio wraps the TLS library's errors."""
    while (deeper := error.__cause__ or error.__context__) is not None and not getattr(error, "strerror", None):
        error = deeper
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'failed').lower().replace('_', ' ')}"
    return one_line(str(getattr(error, "strerror", None) or str(error) or type(error).__name__))
