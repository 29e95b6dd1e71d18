"""Addresses that alerts may be sent to: operators choose the receiver, and the control plane connects to it.

So a URL could make the control plane talk to services that only its own host, or its cloud, should reach.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from certctrl.errors import CertctrlError

_METADATA = ("fd00:ec2::254", "100.100.100.200", "192.0.0.192")
"""Addresses of cloud metadata outside of the link-local ones."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class DeliveryError(CertctrlError):
    """A message could not be delivered, or its receiver may not be connected to; the text contains no secret."""


def refused(address: str) -> str:
    """Return why nothing is sent to an IP address; empty: it may be."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return refused(str(found.ipv4_mapped))
        inner = found.sixtofour or (ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else None)
        if inner is not None and (why := refused(str(inner))):
            return why
    if found.is_loopback or found.is_unspecified:
        return "an address of the control plane's own host"
    if found.is_link_local or str(found) in _METADATA:
        return "a link-local address, as of cloud metadata"
    if found.is_multicast or (isinstance(found, ipaddress.IPv4Address) and found == ipaddress.IPv4Address(2**32 - 1)):
        return "not the address of one host"
    return ""


def allowed_addresses(host: str, addresses: Iterable[str], *, allow_local: bool) -> Sequence[str]:
    """Return the addresses of a host; raises DeliveryError if one of them is refused."""
    found = list(dict.fromkeys(addresses))
    for address in found if not allow_local else ():
        if why := refused(address):
            raise DeliveryError(
                f"{host} is {address}, {why}", fix="if that is intended, add the channel again with --allow-local"
            )
    return found
