"""Webhooks: one POST with a signature; bounded in time and size, without redirects, over verified TLS.

The signature follows Standard Webhooks: HMAC-SHA256 over ``ID.TIMESTAMP.BODY``. Addresses are checked when the
connection is made, so that a name that changes its address does not lead elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import socket
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpcore
import trio

from certctrl import __version__
from certctrl.net import explain
from certctrl.net.connections import BROKEN, KeptConnections, Progress, RequestBody, TcpBackend
from certctrl.plane.alerts.addresses import DeliveryError, allowed_addresses
from certctrl.text import one_line

SECONDS = 20.0
_CONNECT_SECONDS = 10.0
SECRET_START = "whsec_"  # noqa: S105


class CheckedBackend(TcpBackend):
    """Connects to the addresses of a host that alerts may be sent to."""

    def __init__(self, *, allow_local: bool) -> None:
        self._allow_local = allow_local

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers. Raises DeliveryError for a refused one."""
        try:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(error) from error
        except UnicodeError:
            raise DeliveryError(f"cannot resolve the host of {host}: it is no name of a host") from None
        addresses = allowed_addresses(host, (str(one[4][0]) for one in found), allow_local=self._allow_local)
        failure: Exception | None = None
        for address in addresses:
            try:
                return await super().connect_tcp(address, port, timeout)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(OSError(f"{host} has no address"))


async def post(
    url: str, body: bytes, headers: Mapping[str, str], context: ssl.SSLContext, *, allow_local: bool
) -> None:
    """Deliver a body; only a status of 2xx is a success. Raises DeliveryError, which contains no path of the URL."""
    place, request = urlsplit(url).netloc, _request(url, body, headers)
    connections = KeptConnections(
        context=context, keepalive_seconds=1.0, backend=CheckedBackend(allow_local=allow_local)
    )
    status = None
    try:
        with trio.move_on_after(SECONDS):
            status = await connections.exchange(request, _status, Progress())
    except httpcore.ConnectError as error:
        raise DeliveryError(str(explain.connect_error(error, place, now=None, own_ca=False))) from None
    except httpcore.RemoteProtocolError:  # whose text quotes the answer
        raise DeliveryError(f"the connection to {place} broke: no answer in HTTP") from None
    except BROKEN as error:
        raise DeliveryError(
            f"the connection to {place} broke: {one_line(str(error) or type(error).__name__)}"
        ) from None
    finally:
        with trio.CancelScope(shield=True):
            await connections.aclose()
    if status is None:
        raise DeliveryError(f"no complete answer from {place} within {SECONDS:g} s")
    if not 200 <= status < 300:
        redirected = ", a redirect, which is not followed" if 300 <= status < 400 else ""
        raise DeliveryError(f"{place} answered with {status}{redirected}")


def _request(url: str, body: bytes, headers: Mapping[str, str]) -> httpcore.Request:
    sent = {
        "host": urlsplit(url).netloc,
        "user-agent": f"certctrl/{__version__}",
        "content-type": "application/json",
        "accept": "*/*",
        "accept-encoding": "identity",
        "content-length": str(len(body)),
        **headers,
    }
    return httpcore.Request(
        "POST",
        url,
        headers=list(sent.items()),
        content=RequestBody(body),
        extensions={"timeout": {"connect": _CONNECT_SECONDS}},
    )


async def _status(response: httpcore.Response) -> int:
    """Return the status; the body is not read, so neither its length nor its contents matter."""
    return response.status


def signed(delivery: str, now: float, body: bytes, secret: str) -> dict[str, str]:
    """Return the headers with id, time and signature of one attempt."""
    at = str(int(now))
    digest = hmac.digest(secret_bytes(secret), f"{delivery}.{at}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": delivery,
        "webhook-timestamp": at,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def secret_bytes(secret: str) -> bytes:
    """Return the key of a secret ``whsec_BASE64``; ValueError for another form."""
    if not secret.startswith(SECRET_START):
        raise ValueError
    key = base64.b64decode(secret.removeprefix(SECRET_START), validate=True)
    if not 24 <= len(key) <= 64:
        raise ValueError
    return key
