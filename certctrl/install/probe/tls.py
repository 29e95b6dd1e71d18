"""Ask a live endpoint which certificate it serves: "renewed" does not mean "served".

The chain is not verified, on purpose: the question is whether the served leaf *is* the deployed one, and its SHA-256
answers that. All addresses of the host are probed, IPv4 and IPv6, for each kind of key that is wanted. An address that
serves another certificate of such a kind fails the probe; one that does not answer is ignored if another serves the
right leaf, as a service need not listen on all. Addresses of other hosts are asked only where the operator allows it.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Collection, Mapping
from math import inf

import trio

from certctrl.errors import ProbeError, ProbeFault
from certctrl.install.probe.address import Seen, ask_address, is_own
from certctrl.install.probe.looked import Leaf, Look
from certctrl.model.certificate import KeyKind, Wanted
from certctrl.model.plan import VerifyTls
from certctrl.text import ascii_name, one_line

ADDRESS_SECONDS = 5.0
"""Longest probe of one address."""
STRAGGLER_SECONDS = 1.0
"""Time for the other addresses once one has answered."""
FIRST_PAUSE, MAX_PAUSE = 0.02, 0.5
"""Seconds between probes; servers reload asynchronously, so the first ones follow quickly."""
STEADY_SECONDS = 0.25
"""Seconds that the answer must stay right: old nginx workers accept connections for another 100 ms."""
STEADY_PROBES = 2
"""Probes in that time, after the first right answer."""
MAX_ADDRESSES = 8
CONNECT_SECONDS = 1.0
"""Time to find out whether something listens."""
UNREACHABLE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""Errors of connecting to an address of a family that this host does not use; they do not describe the service."""

ProbeOnce = Callable[[VerifyTls, Collection[KeyKind | None], bool], Awaitable[tuple[Seen, ...]]]


async def probe_tls(
    verify: VerifyTls,
    wanted: Wanted | Collection[str],
    *,
    deadline: float,
    anywhere: bool = False,
    once: ProbeOnce | None = None,
) -> None:
    """Probe until the endpoint steadily serves one of the wanted leaves.

    If leaves of several kinds are wanted, each kind that the endpoint has must be a wanted one. ``deadline``: on Trio's
    clock, for the first right answer; those that confirm it may come later. ``anywhere``: also ask addresses of other
    hosts. Raises ProbeError with the last answers.
    """
    wanted = _with_kinds(wanted)
    pause, last, good_since = FIRST_PAUSE, tuple[Seen, ...](), -inf
    while True:
        seen = tuple[Seen, ...]()
        with trio.move_on_at(max(deadline, good_since + ADDRESS_SECONDS)):
            last = seen = await (once or probe_once)(verify, _kinds_of(wanted), anywhere)
        now = trio.current_time()
        if _is_right(seen, wanted):
            good_since = now if good_since == -inf else good_since
            if now - good_since >= STEADY_SECONDS:
                return
            await trio.sleep(STEADY_SECONDS / STEADY_PROBES)
            continue
        good_since = -inf
        hopeless = bool(seen) and all(one.fault_class is ProbeFault.NOT_OURS and one.fault for one in seen)
        if hopeless or now + pause > deadline:
            raise _complaint(verify, last, wanted)
        await trio.sleep(pause)
        pause = min(MAX_PAUSE, pause * 1.6)


def _with_kinds(wanted: Wanted | Collection[str]) -> Wanted:
    return wanted if isinstance(wanted, Mapping) else dict.fromkeys({wanted} if isinstance(wanted, str) else wanted)


def _kinds_of(wanted: Wanted) -> tuple[KeyKind | None, ...]:
    """Return the kinds to ask for; if one is unknown, what the server prefers."""
    kinds = set(wanted.values())
    return (None,) if None in kinds or not kinds else tuple(kind for kind in KeyKind if kind in kinds)


def _is_right(seen: Collection[Seen], wanted: Wanted) -> bool:
    """Return whether all addresses that serve a certificate serve a wanted one, and none of a wanted kind that is not."""
    served = {one.address for one in seen if one.fingerprint}
    right = {one.address for one in seen if one.fingerprint in wanted}
    silent = {one.address for one in seen if not one.fingerprint}
    return bool(right) and right == served and not (_wrong(seen, wanted) or right & silent)


def _wrong(seen: Collection[Seen], wanted: Wanted) -> list[Seen]:
    """Return the answers with another leaf than the wanted ones, of a kind that is wanted."""
    kinds = {*_kinds_of(wanted)}
    return [
        one
        for one in seen
        if one.fingerprint and one.fingerprint not in wanted and (None in kinds or one.kind in {*kinds, None})
    ]


async def after_removal(
    verify: VerifyTls, fingerprint: str, *, deadline: float, anywhere: bool = False, once: ProbeOnce | None = None
) -> tuple[bool, str]:
    """Return whether the endpoint still serves a removed leaf, of any key kind, and what to report about it.

    Probes until the leaf is steadily gone, or until ``deadline`` (Trio's clock).
    """
    pause, gone_since = FIRST_PAUSE, inf
    while True:
        seen = await (once or probe_once)(verify, (*KeyKind,), anywhere)
        now, served = trio.current_time(), {one.fingerprint for one in seen if one.fingerprint}
        if fingerprint not in served:
            gone_since = min(gone_since, now)
            if now - gone_since >= STEADY_SECONDS:
                return False, "" if served else plain_words(verify, _complaint(verify, seen, {}))
            await trio.sleep(STEADY_SECONDS / STEADY_PROBES)
            continue
        gone_since = inf
        if now + pause > deadline:
            return True, f"{_where(verify)} still serves it from memory"
        await trio.sleep(pause)
        pause = min(MAX_PAUSE, pause * 1.6)


async def is_down(host: str, port: int) -> bool:
    """Return whether nothing listens at an endpoint: its addresses refuse connections.

    False if one accepts, does not answer within a second or is not of this host, or if the host cannot be resolved:
    then the state is unknown.
    """
    refused = list[bool]()

    async def one(family: int, address: str) -> None:
        if not is_own(address):  # a command reloads no service there
            refused.append(False)
            return
        try:
            with trio.socket.socket(family, trio.socket.SOCK_STREAM) as plain:
                await plain.connect((address, port))
            refused.append(False)
        except OSError as error:
            if error.errno not in UNREACHABLE:
                refused.append(error.errno == errno.ECONNREFUSED)

    with trio.move_on_after(CONNECT_SECONDS) as scope:
        try:
            found = await trio.socket.getaddrinfo(ascii_name(host), port, type=trio.socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return False
        async with trio.open_nursery() as nursery:
            for family, name in dict.fromkeys((family, str(name[0])) for family, _, _, _, name in found):
                nursery.start_soon(one, family, name, name=f"probe {name}")
    return bool(refused) and all(refused) and not scope.cancelled_caught


async def served_fingerprint(
    verify: VerifyTls, wanted: Wanted | None = None, *, deadline: float, anywhere: bool = True
) -> str:
    """Return the fingerprint of the leaf that the endpoint serves: a wanted one if all is right, otherwise the wrong one.

    Raises ProbeError if it is not exactly one.
    """
    seen, wanted = tuple[Seen, ...](), wanted or {}
    with trio.move_on_at(deadline):
        seen = await probe_once(verify, _kinds_of(wanted), anywhere)
    served = [one.fingerprint for one in seen if one.fingerprint]
    if _is_right(seen, wanted):
        return next(one for one in served if one in wanted)
    found = {one.fingerprint for one in _wrong(seen, wanted)} or set(served)
    if len(found) == 1:
        return found.pop()
    raise _complaint(verify, seen, wanted)


async def look(verify: VerifyTls, wanted: Wanted, *, anywhere: bool = False, once: ProbeOnce | None = None) -> Look:
    """Return what the endpoint serves now, as `probe_tls` judges it, after one answer of each address."""
    seen = await (once or probe_once)(verify, _kinds_of(wanted), anywhere)
    if _is_right(seen, wanted):
        return Look(right=frozenset(one.fingerprint for one in seen if one.fingerprint in wanted))
    fault = _complaint(verify, seen, wanted).fault
    if fault is not ProbeFault.OTHER:
        return Look(fault=fault)
    wrong = (_wrong(seen, wanted) or [one for one in seen if one.fingerprint and one.fingerprint not in wanted])[0]
    return Look(wrong=Leaf(fingerprint=wrong.fingerprint, serial=wrong.serial, not_after=wrong.not_after), fault=fault)


def plain_words(verify: VerifyTls, error: ProbeError) -> str:
    """Return what failed in words that quote nothing of the server: for the control plane, which named the endpoint."""
    return f"{endpoint_text(verify)} {error.fault}"


def endpoint_text(verify: VerifyTls) -> str:
    """Return an endpoint in words: ``127.0.0.1:443 for www.example.com``."""
    return f"{_where(verify)}{_named(verify)}"


def _where(verify: VerifyTls) -> str:
    return f"[{verify.host}]:{verify.port}" if ":" in verify.host else f"{one_line(verify.host)}:{verify.port}"


def _named(verify: VerifyTls) -> str:
    return f" for {one_line(verify.server_name)}" if verify.server_name else ""


_FIX = "check that the service runs, which certificate file it reads, and its log"


def _complaint(verify: VerifyTls, seen: Collection[Seen], wanted: Wanted) -> ProbeError:
    where, name = _where(verify), _named(verify)
    kinds = [kind for kind in _kinds_of(wanted) if kind is not None]
    name += f" (asked for {' and '.join(kinds)})" if kinds else ""
    wrong = _wrong(seen, wanted) or [one for one in seen if one.fingerprint and one.fingerprint not in wanted]
    if wrong:
        said = ", ".join(f"{one.fingerprint[:16]}… at {one.address}" for one in wrong)
        expected = " or ".join(f"{one[:16]}…" for one in sorted(wanted)[:3])
        what = f"{where} serves another certificate{name}: {said}" + (f"; deployed is {expected}" if expected else "")
        return ProbeError(what, fault=ProbeFault.OTHER, fix=_FIX)
    failed = [one for one in seen if one.fault]
    faults = "; ".join(dict.fromkeys(f"{one.address}: {one.fault}" for one in failed))
    classes = [one.fault_class for one in failed] or [ProbeFault.NO_ANSWER]
    fault = next(one for one in ProbeFault if one in classes)
    fix = f'to allow it, policy.json needs "probe": ["{where}"]' if fault is ProbeFault.NOT_OURS else _FIX
    return ProbeError(f"{where} serves no certificate{name}: {faults or 'no answer in time'}", fault=fault, fix=fix)


async def probe_once(
    verify: VerifyTls, kinds: Collection[KeyKind | None] = (None,), anywhere: bool = True
) -> tuple[Seen, ...]:
    """Probe all addresses of the endpoint once for each kind of key, concurrently."""
    host = one_line(verify.host)
    try:
        found = await trio.socket.getaddrinfo(ascii_name(verify.host), verify.port, type=trio.socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # the latter for names that no host can have
        fault = f"cannot be resolved: {error}"
        return (Seen(address=host, fault=fault, fault_class=ProbeFault.UNRESOLVED),)
    addresses = list(dict.fromkeys((family, str(name[0])) for family, _, _, _, name in found))[:MAX_ADDRESSES]
    results: dict[tuple[str, KeyKind | None], Seen] = {}

    async def one(family: int, host: str, kind: KeyKind | None) -> None:
        address = f"[{host}]:{verify.port}" if ":" in host else f"{host}:{verify.port}"
        if not (anywhere or is_own(host)):
            fault = "not an address of this host"
            results[address, None] = Seen(address=address, fault=fault, fault_class=ProbeFault.NOT_OURS)
            return
        results[address, kind] = Seen(address=address, fault="no answer in time")
        seen = results[address, kind] = await ask_address(family, host, address, verify, kind)
        if seen.fingerprint:
            scope.deadline = min(scope.deadline, trio.current_time() + STRAGGLER_SECONDS)

    with trio.move_on_after(ADDRESS_SECONDS) as scope:
        async with trio.open_nursery() as nursery:
            for family, host in addresses:
                for kind in kinds:
                    nursery.start_soon(one, family, host, kind, name=f"probe {host}")
    return tuple(results.values())
