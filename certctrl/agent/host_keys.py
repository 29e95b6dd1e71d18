"""Make keys on this host: send the signing requests that the plane wants, find the keys again, remove unneeded ones.

The host may crash between any two of these steps:

1. a key is made, and is durable in ``keys/staged``;
2. its signing request is sent; if the answer is lost, the same order gets the same key again;
3. the plane issues the certificate and sends ``cert.renewed``; the material names the public key;
4. the matching staged key is found, staged with the certificate as one generation, and goes live with it;
5. the staged key is removed.

If the key is missing in step 4, or the order has another key than this host, the host requests a renewal and reports
the key as lost; the plane opens a new order. Until then the previous certificate is served.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import attrs

from certctrl.agent.announced import GONE, find_certificate, is_current, require_arrival
from certctrl.agent.context import Agent
from certctrl.agent.log_lines import Line, log_line
from certctrl.errors import DiskError, MaterialError, PlaneError, PolicyRefusedError
from certctrl.model.certificate import DEVICE_KEY, CertificateSummary, CsrOrder, DeployMaterials
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.policy import HostPolicy, KeyType
from certctrl.model.signals import CsrWanted, Signal
from certctrl.store.state.staged_keys import StagedKey
from certctrl.text import one_line

CSR_CONFLICT = "CSR_CONFLICT"
"""Error key of the plane's 409 to a signing request with another key than the order's first one."""


# --- orders ---------------------------------------------------------------------------------------------------------


async def on_csr_wanted(agent: Agent, signal: Signal) -> Outcome:
    """Make a key for the open order of a certificate, and send the plane its signing request."""
    signal = cast(CsrWanted, signal)
    summary = await find_certificate(agent, signal.cert_id)
    order = None if summary is None else summary.order
    if summary is None or order is None or order.id < signal.order_id:
        known = (
            agent.sent_requests.get(signal.cert_id, 0) >= signal.order_id
        )  # such as after the comparison at the start
        if not known and (summary is None or not is_current(summary, signal)):
            require_arrival(agent, signal, f"the plane announced order {signal.order_id}, but does not show it")
        return Outcome(kind=OutcomeKind.UNCHANGED, detail=f"order {signal.order_id} has ended")
    if not order.wants_csr:
        return Outcome(kind=OutcomeKind.UNCHANGED, detail=f"the plane has the signing request of order {order.id}")
    kind = _key_type(agent.policy, order)
    csr = await agent.offload(_signed_request, agent, summary, order, kind)
    return await _send(agent, summary, order, csr)


def _key_type(policy: HostPolicy, order: CsrOrder) -> KeyType:
    """Return the type of key to make for an order. Raises MaterialError, PolicyRefusedError."""
    if not order.key_type:
        return policy.key_types[0]
    if order.key_type not in list(KeyType):
        what = f"this version cannot make keys of type {one_line(order.key_type, 40)}"
        raise MaterialError(what, reason="key-type", fix="update certctrl on this host, or order another type")
    kind = KeyType(order.key_type)
    if kind not in policy.key_types:
        allowed = ", ".join(f'"{one.value}"' for one in (*policy.key_types, kind))
        what = f"make a key of type {kind.value}: not among key_types"
        raise PolicyRefusedError(what, fix=f'policy.json needs "key_types": [{allowed}]')
    return kind


def _signed_request(agent: Agent, summary: CertificateSummary, order: CsrOrder, kind: KeyType) -> str:
    """Return the signing request of an order; its key is durable. Blocks on the disk."""
    # here and below: only if keys are made on this host
    from certctrl.install.material.key_request import new_key_pem, signing_request

    keys = agent.store.staged_keys
    known = keys.find(summary.id, order.id)
    pem = _usable(keys.load(known), kind) if known is not None else None
    if pem is None:
        pem = new_key_pem(kind)
        keys.save(summary.id, order.id, summary.domain_name, pem)
    elif known is not None:
        keys.secure(known)
    names = order.names or tuple(dict.fromkeys((summary.domain_name, *summary.sans)))
    return signing_request(pem, names, must_staple=order.must_staple)


def _usable(pem: bytes | None, kind: KeyType) -> bytes | None:
    """Return a staged key if it is intact and of this type; otherwise None, and it is replaced."""
    from certctrl.install.material.key_request import is_of_kind

    try:
        return pem if pem is not None and is_of_kind(pem, kind) else None
    except MaterialError:
        return None


async def _send(agent: Agent, summary: CertificateSummary, order: CsrOrder, csr: str) -> Outcome:
    """Send the signing request of an order; remove the key if the order has ended."""
    agent.status_changed.value = True
    try:
        await agent.authorized(lambda token: agent.plane.send_csr(token, summary.id, order.id, csr))
    except PlaneError as error:
        if error.status not in GONE and error.key != CSR_CONFLICT:
            raise
        if (key := agent.store.staged_keys.find(summary.id, order.id)) is not None:
            await agent.offload(agent.store.staged_keys.remove, key)
        if error.status in GONE:
            return Outcome(kind=OutcomeKind.UNCHANGED, detail=f"order {order.id} has ended")
        return await _request_new_key(agent, summary.id, f"order {order.id} has a key that is not on this host")
    agent.sent_requests[summary.id] = max(order.id, agent.sent_requests.get(summary.id, 0))
    log_line(agent.log, Line.CSR_SENT, cert_id=summary.id, name=summary.domain_name, order_id=order.id)
    return Outcome(kind=OutcomeKind.APPLIED, detail=f"sent the signing request of order {order.id}")


# --- keys -----------------------------------------------------------------------------------------------------------


async def with_host_key(agent: Agent, cert_id: int, materials: DeployMaterials) -> DeployMaterials:
    """Add the matching key of this host to material that needs one; unchanged if the key is not here."""
    if materials.enc_scheme != DEVICE_KEY or not materials.public_key_sha256:
        return materials
    wanted = materials.public_key_sha256.lower()
    pem = await agent.offload(_staged_key, agent, cert_id, wanted) or await agent.installer.host_key(cert_id, wanted)
    return materials if pem is None else attrs.evolve(materials, host_key_pem=pem)


def _staged_key(agent: Agent, cert_id: int, public_sha256: str) -> bytes | None:
    for key in reversed(agent.store.staged_keys.of(cert_id)):
        if _public_half(agent, key) == public_sha256:
            return agent.store.staged_keys.load(key)
    return None


def _public_half(agent: Agent, key: StagedKey) -> str:
    """Return the hash of a staged key's public half; empty if it cannot be read. Blocks on the disk."""
    from certctrl.install.material.key_request import public_key_sha256

    try:
        pem = agent.store.staged_keys.load(key)
        return public_key_sha256(pem) if pem is not None else ""
    except MaterialError:
        return ""


async def replace_lost_key(agent: Agent, cert_id: int) -> Outcome:
    """Request a new order for a certificate whose key is lost, unless this host can fulfil an open one."""
    order = summary.order if (summary := await find_certificate(agent, cert_id)) is not None else None
    if order is not None and (order.wants_csr or await agent.offload(_has_key, agent, cert_id, order)):
        detail = f"its key is not on this host; order {order.id} is for another one"
        return Outcome(kind=OutcomeKind.IGNORED, detail=detail)
    return await _request_new_key(agent, cert_id, "its key is not on this host")


def _has_key(agent: Agent, cert_id: int, order: CsrOrder) -> bool:
    key = agent.store.staged_keys.find(cert_id, order.id)
    return key is not None and bool(_public_half(agent, key))


async def _request_new_key(agent: Agent, cert_id: int, why: str) -> Outcome:
    user_id, _ = await agent.tokens.identity()
    await agent.authorized(
        lambda token: agent.plane.request_renewal(token, user_id, cert_id, "the host's key is lost", key_lost=True)
    )
    log_line(agent.log, Line.HOST_KEY_LOST, cert_id=cert_id, why=why)
    return Outcome(kind=OutcomeKind.IGNORED, detail=f"{why}; requested a new one")


async def forget_live_keys(agent: Agent, cert_ids: Collection[int] | None = None) -> None:
    """Remove staged keys that are live now, and those of older orders; of these certificates, or of all.

    If the disk fails, the next comparison removes them.
    """
    keys = agent.store.staged_keys
    with suppress(DiskError):
        staged = {key.cert_id for key in keys.all()}
        for cert_id in sorted(staged if cert_ids is None else staged.intersection(cert_ids)):
            await _forget_live(agent, keys.of(cert_id))


async def _forget_live(agent: Agent, of_certificate: Sequence[StagedKey]) -> None:
    for key in reversed(of_certificate):
        half = await agent.offload(_public_half, agent, key)
        if half and await agent.installer.is_live_key(key.cert_id, half):
            for done in of_certificate:
                if done.order_id <= key.order_id:
                    await agent.offload(agent.store.staged_keys.remove, done)
            agent.status_changed.value = True
            return


async def forget_unwanted_keys(
    agent: Agent, present: Sequence[StagedKey], listed: Mapping[int, CertificateSummary]
) -> None:
    """Remove staged keys that no order, certificate or renewal needs any longer. Raises DiskError.

    ``present``: the keys from before the list was fetched. The list may lag, or be older than an order: a key is
    removed only if the certificate's detail agrees.
    """
    await forget_live_keys(agent)
    await _forget_unwanted(agent, present, listed)


async def forget_withdrawn_keys(agent: Agent, cert_id: int) -> None:
    """Remove the staged keys of a revoked or unassigned certificate, if the plane confirms that it wants none.

    If the disk fails, the next comparison removes them.
    """
    with suppress(DiskError):
        await _forget_unwanted(agent, agent.store.staged_keys.of(cert_id), {})


async def _forget_unwanted(
    agent: Agent, present: Sequence[StagedKey], listed: Mapping[int, CertificateSummary]
) -> None:
    for key in present:
        if key not in agent.store.staged_keys.of(key.cert_id) or await _is_wanted(agent, key, listed.get(key.cert_id)):
            continue
        if not await _is_wanted(agent, key, await find_certificate(agent, key.cert_id)):
            await agent.offload(agent.store.staged_keys.remove, key)
            log_line(agent.log, Line.HOST_KEY_REMOVED, cert_id=key.cert_id, name=key.name, order_id=key.order_id)
            agent.status_changed.value = True


async def _is_wanted(agent: Agent, key: StagedKey, summary: CertificateSummary | None) -> bool:
    if summary is None:
        return False
    if summary.order is not None and summary.order.id == key.order_id:
        return True
    if summary.status == "revoked":  # its material is gone
        return False
    half = await agent.offload(_public_half, agent, key)
    return bool(half) and half == summary.public_key_sha256.lower()


def awaited(agent: Agent) -> list[dict[str, Any]]:
    """Return the certificates that have a key here and are not deployed yet, as status JSON."""
    try:
        staged = agent.store.staged_keys.all()
    except DiskError:
        return []
    return [{"cert_id": key.cert_id, "name": key.name, "order_id": key.order_id} for key in staged]


def csr_signals(listed: Collection[CertificateSummary], ts_ms: int) -> list[Signal]:
    """Return a signal for each open order that waits for this host's signing request."""
    return [
        CsrWanted(ts_ms=ts_ms, cert_id=one.id, order_id=one.order.id, expires_ms=one.order.expires_ms or None)
        for one in listed
        if one.order is not None and one.order.wants_csr
    ]
