"""Orders, step by step: make, authorize, finalize, download (RFC 8555, section 7.4); revoke; renewal information."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certctrl.model.answer import Answer
from certctrl.plane.acme.answers import (
    Authorization,
    Challenge,
    Directory,
    Identifier,
    Order,
    document,
    invalid_answer,
    read_authorization,
    read_challenge,
    read_order,
)
from certctrl.plane.acme.ari import certificate_id, read_window
from certctrl.plane.acme.chains import Chain, preferred, read_chain
from certctrl.plane.acme.client import AcmeClient, Polling
from certctrl.plane.acme.encoding import to_base64url
from certctrl.plane.acme.headers import links, retry_after
from certctrl.plane.acme.problems import AcmeError
from certctrl.plane.issuers.issuer import IssuerError, RenewalWindow

POLL_SECONDS = 600.0
"""Seconds for which one attempt waits for the CA; a later attempt continues the same order."""
MAX_ALTERNATES = 5
_REASONS = {
    "unspecified": 0,
    "keyCompromise": 1,
    "affiliationChanged": 3,
    "superseded": 4,
    "cessationOfOperation": 5,
}
_NOT_REPLACEABLE = frozenset({"alreadyReplaced", "malformed", "unauthorized", "conflict"})


def identifiers(names: Sequence[str]) -> tuple[Identifier, ...]:
    """Return names as ACME writes them."""
    return tuple(map(_identifier, names))


def plain_name(name: str) -> str:
    """Return the identifier of an authorization: a name without ``*.``, or an address in canonical form."""
    return _identifier(name.lower().removeprefix("*.")).value


def require_profile(directory: Directory, profile: str) -> None:
    """Raise IssuerError unless the CA announces the profile; empty: the CA's choice."""
    if not profile or profile in directory.meta.profiles:
        return
    known = ", ".join(directory.meta.profiles) or "none"
    raise IssuerError(
        f"the CA has no profile {profile}; it announces: {known}",
        fix="set profile to one of these" if directory.meta.profiles else "remove the profile",
        is_permanent=True,
    )


async def new_order(client: AcmeClient, names: Sequence[str], *, profile: str = "", replaces_pem: str = "") -> Order:
    """Make an order with a profile that the CA announces; ``replaces_pem`` is left out if the CA knows no ARI, or refuses that certificate."""
    directory = await client.directory()
    wanted = identifiers(names)
    payload: dict[str, Any] = {"identifiers": [one.as_json() for one in wanted]}
    if profile:
        payload["profile"] = profile
    replaced = _replaced_id(replaces_pem) if directory.renewal_info else ""
    if replaced:
        try:
            return await _make_order(client, directory, payload | {"replaces": replaced}, wanted)
        except AcmeError as error:
            if error.problem.kind not in _NOT_REPLACEABLE:
                raise
    return await _make_order(client, directory, payload, wanted)


async def fetch_order(client: AcmeClient, url: str) -> Order:
    """Fetch an order."""
    found, _ = await client.post_as_get(url, "order")
    return read_order(found, url, client.http.check_url)


async def fetch_authorization(client: AcmeClient, url: str) -> Authorization:
    """Fetch an authorization."""
    found, _ = await client.post_as_get(url, "authorization")
    return read_authorization(found, url, client.http.check_url)


async def answer_challenge(client: AcmeClient, challenge: Challenge) -> Challenge:
    """Ask the CA to validate a challenge."""
    answer = await client.post(challenge.url, {}, "the challenge")
    return read_challenge(document(answer, "challenge"), client.http.check_url)


async def wait_until_decided(
    client: AcmeClient, authorization: Authorization, seconds: float = POLL_SECONDS
) -> Authorization:
    """Wait until the CA has validated or refused an authorization, and return it."""
    polling = Polling(f"validation of {authorization.name}", seconds)
    while True:
        found, answer = await client.post_as_get(authorization.url, "authorization")
        authorization = read_authorization(found, authorization.url, client.http.check_url)
        if authorization.status != "pending":
            return authorization
        await polling.pause(_pause(client, answer))


async def wait_until_ready(client: AcmeClient, order: Order, seconds: float = POLL_SECONDS) -> Order:
    """Wait until an order with valid authorizations is no longer pending, and return it."""
    return await _wait_while(client, await fetch_order(client, order.url), "pending", seconds)


async def finalize(client: AcmeClient, order: Order, csr_der: bytes, seconds: float = POLL_SECONDS) -> Order:
    """Send the certificate request, wait until the order is no longer processing, and return it."""
    answer = await client.post(order.finalize, {"csr": to_base64url(csr_der)}, "the certificate request")
    order = read_order(document(answer, "order"), order.url, client.http.check_url)
    return await _wait_while(client, order, "processing", seconds, _pause(client, answer))


async def wait_until_finished(client: AcmeClient, order: Order, seconds: float = POLL_SECONDS) -> Order:
    """Wait until an order is no longer processing, and return it."""
    return await _wait_while(client, order, "processing", seconds)


async def download(client: AcmeClient, order: Order, root_name: str = "") -> Chain:
    """Return the certificate with its chain; of several, the one below the preferred root."""
    if not order.certificate:
        raise invalid_answer("order", "it is valid, but has no certificate")
    answer = await client.post(order.certificate, None, "the certificate")
    chains = [read_chain(answer.body)]
    if root_name and chains[0].root_name != root_name:
        for url in links(answer.headers, "alternate", order.certificate)[:MAX_ALTERNATES]:
            other = await client.post(client.http.check_url(url), None, "an alternate chain")
            chain = read_chain(other.body)
            if chain.leaf.public_key() == chains[0].leaf.public_key():
                chains.append(chain)
            if chain.root_name == root_name:
                break
    return preferred(chains, root_name)


async def revoke(client: AcmeClient, certificate: x509.Certificate, reason: str) -> None:
    """Revoke a certificate of the client's account; idempotent."""
    directory = await client.directory()
    if not directory.revoke:
        raise IssuerError("the CA does not revoke by ACME", fix="revoke it at the CA", is_permanent=True)
    payload = {"certificate": to_base64url(certificate.public_bytes(Encoding.DER)), "reason": _REASONS.get(reason, 0)}
    try:
        await client.post(directory.revoke, payload, "the revocation")
    except AcmeError as error:
        if error.problem.kind != "alreadyRevoked":
            raise


async def renewal_window(client: AcmeClient, certificate: x509.Certificate) -> RenewalWindow | None:
    """Return the window in which the CA wants a certificate renewed; None if it suggests none."""
    directory = await client.directory()
    identity = certificate_id(certificate)
    if not directory.renewal_info or not identity:
        return None
    answer = await client.http.request("GET", f"{directory.renewal_info.rstrip('/')}/{identity}")
    if answer.status == 404:
        return None
    client.raise_refused(answer, "renewal information")
    now = client.wall_now()
    return read_window(document(answer, "renewal information"), now, retry_after(answer.headers, now))


async def _make_order(
    client: AcmeClient, directory: Directory, payload: dict[str, Any], wanted: Sequence[Identifier]
) -> Order:
    answer = await client.post(directory.new_order, payload, "the order")
    url = answer.headers.get("location", "")
    if not url:
        raise invalid_answer("answer to newOrder", "it has no Location")
    order = read_order(document(answer, "order"), client.http.check_url(url), client.http.check_url)
    if {(one.kind, _plain(one)) for one in order.identifiers} != {(one.kind, _plain(one)) for one in wanted}:
        raise invalid_answer("order", "it is for other names than those ordered")
    return order


async def _wait_while(
    client: AcmeClient, order: Order, status: str, seconds: float, asked: float | None = None
) -> Order:
    polling = Polling("order", seconds)
    while order.status == status:
        await polling.pause(asked)
        found, answer = await client.post_as_get(order.url, "order")
        order = read_order(found, order.url, client.http.check_url)
        asked = _pause(client, answer)
    return order


def _pause(client: AcmeClient, answer: Answer) -> float | None:
    return retry_after(answer.headers, client.wall_now())


def _replaced_id(pem: str) -> str:
    try:
        return certificate_id(x509.load_pem_x509_certificate(pem.encode("ascii"))) if pem else ""
    except ValueError:
        return ""


def _identifier(name: str) -> Identifier:
    try:
        return Identifier("ip", str(ip_address(name)))
    except ValueError:
        return Identifier("dns", name)


def _plain(identifier: Identifier) -> str:
    try:
        return str(ip_address(identifier.value)) if identifier.kind == "ip" else identifier.value
    except ValueError:
        return identifier.value
