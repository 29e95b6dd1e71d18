"""Explain why a CA refused http-01: ask every address of the name as a CA does, and report each answer."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import h11
import trio

from certctrl import lean
from certctrl.plane.ca.domains import is_address
from certctrl.plane.challenges.dns_lookup import DnsLookup, name_of
from certctrl.plane.challenges.explain import describe_caa
from certctrl.plane.challenges.solver import Proof
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.text import one_line

HTTP_PORT = 80
ANSWER_SECONDS = 10.0
_MAX_BODY = 4096
_SHOWN_BODY = 60
_MAX_ADDRESSES = 8


class HttpSeen(StrEnum):
    """How an address reacts."""

    RIGHT = "answers with the right body"
    OTHER_BODY = "answers with another body"
    REDIRECT = "redirects"
    STATUS = "answers with an error"
    NOT_HTTP = "does not answer in HTTP"
    REFUSED = "refuses the connection"
    TIMEOUT = "does not answer in time"
    UNREACHABLE = "cannot be reached from this control plane"


@lean.frozen(kw_only=True)
class HttpObservation:
    """The answer of one address of a name."""

    address: str
    seen: HttpSeen
    detail: str = ""
    """The status, the place of a redirect, or the start of another body."""

    def describe(self) -> str:
        """Describe the answer for operators."""
        return f"{self.address} {self.seen.value}{f' ({self.detail})' if self.detail else ''}"


async def explain_http(lookup: DnsLookup, proof: Proof, port: int = HTTP_PORT) -> str:
    """Ask every address of a name for the answer of an http-01 proof; never raises IssuerError."""
    caa = ""
    try:
        if is_address(proof.identifier):
            addresses = [proof.identifier]
        else:
            host = name_of(proof.identifier)
            addresses = [server.address for server in await lookup.addresses(host)]
            caa = await describe_caa(lookup, proof)
    except IssuerError as error:
        return f"asked for the addresses of {one_line(proof.identifier)}: {error}"
    found: dict[int, HttpObservation] = {}

    async def ask(index: int, address: str) -> None:
        found[index] = await observe(address, port, proof)

    async with trio.open_nursery() as nursery:
        for index, address in enumerate(addresses[:_MAX_ADDRESSES]):
            nursery.start_soon(ask, index, address)
    return describe_http(proof, port, [found[index] for index in sorted(found)], caa)


def describe_http(proof: Proof, port: int, found: Sequence[HttpObservation], caa: str = "") -> str:
    """Describe in one line the question, the answers, and their addresses."""
    host = f"[{proof.identifier}]" if ":" in proof.identifier else proof.identifier
    place = host if port == HTTP_PORT else f"{host}:{port}"
    asked = f"asked for http://{one_line(place)}/.well-known/acme-challenge/{one_line(proof.token, 64)}"
    if not found:
        parts = [f"{one_line(proof.identifier)} has no address in the DNS (A or AAAA record)"]
    else:
        parts = [one.describe() for one in found]
    wrong = [one for one in found if one.seen is not HttpSeen.RIGHT]
    six, four = [one for one in found if ":" in one.address], [one for one in found if ":" not in one.address]
    if wrong and len(wrong) < len(found):
        if all(one in wrong for one in six) and six and not any(one in wrong for one in four):
            parts.append("CAs prefer IPv6: correct the AAAA record, or remove it")
        else:
            parts.append("a CA may ask any of them: all addresses must answer")
    elif found and not wrong:
        parts.append("the answer is there for this control plane; a firewall may stop the CA, or it asked before")
    elif any(one.seen is HttpSeen.REFUSED for one in wrong):
        parts.append(f"port {port} must be open for the CA")
    return f"{asked}: {'; '.join([*parts, *([caa] if caa else [])])}"


async def observe(address: str, port: int, proof: Proof) -> HttpObservation:
    """Ask one address for the answer of a proof."""
    seen, detail = HttpSeen.TIMEOUT, ""
    with trio.move_on_after(ANSWER_SECONDS):
        family = trio.socket.AF_INET6 if ":" in address else trio.socket.AF_INET
        try:
            with trio.socket.socket(family, trio.socket.SOCK_STREAM) as sock:
                await sock.connect((address, port))
                seen, detail = await _exchange(trio.SocketStream(sock), proof)
        except ConnectionRefusedError:
            seen = HttpSeen.REFUSED
        except (h11.ProtocolError, trio.BrokenResourceError):
            seen = HttpSeen.NOT_HTTP
        except OSError:
            seen = HttpSeen.UNREACHABLE
    return HttpObservation(address=address, seen=seen, detail=detail)


async def _exchange(stream: trio.SocketStream, proof: Proof) -> tuple[HttpSeen, str]:
    """Ask one server for the answer of a proof, and judge what it sends."""
    connection = h11.Connection(h11.CLIENT)
    host = f"[{proof.identifier}]" if ":" in proof.identifier else proof.identifier
    headers = [("Host", host), ("Connection", "close"), ("Accept", "*/*")]
    target = f"/.well-known/acme-challenge/{proof.token}"
    await stream.send_all(connection.send(h11.Request(method="GET", target=target, headers=headers)) or b"")
    await stream.send_all(connection.send(h11.EndOfMessage()) or b"")
    response: h11.Response | None = None
    body = bytearray()
    while len(body) <= _MAX_BODY:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(4096))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            break
    return (HttpSeen.NOT_HTTP, "") if response is None else judge(response, bytes(body), proof)


def judge(response: h11.Response, body: bytes, proof: Proof) -> tuple[HttpSeen, str]:
    """Return what an answer means, and its detail."""
    headers = {bytes(name): bytes(value).decode("latin-1") for name, value in response.headers}
    server = f", server: {one_line(headers[b'server'], 40, ascii_only=True)}" if headers.get(b"server") else ""
    if 300 <= response.status_code < 400:
        where = one_line(headers.get(b"location", "nowhere"), 120, ascii_only=True)
        return HttpSeen.REDIRECT, f"{response.status_code} to {where}"
    if response.status_code != 200:
        return HttpSeen.STATUS, f"{response.status_code}{server}"
    if body.rstrip() == proof.key_authorization.encode("ascii"):
        return HttpSeen.RIGHT, ""
    start = one_line(body[: 4 * _SHOWN_BODY].decode("utf-8", "replace").strip(), _SHOWN_BODY)
    return HttpSeen.OTHER_BODY, f"{start!r}{server}" if start else f"nothing{server}"
