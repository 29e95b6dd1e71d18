"""Name constraints: the domains and networks for which an intermediate may issue (RFC 5280 §4.2.1.10). Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from cryptography import x509

from certctrl import lean
from certctrl.plane.ca.domains import clean_name, is_address
from certctrl.plane.errors import bad_request

_MOST = 100
_ALL_ADDRESSES = (ip_network("0.0.0.0/0"), ip_network("::/0"))


@lean.frozen
class Constraints:
    """The domains and networks that a CA may issue for; without domains: everything."""

    domains: tuple[str, ...] = ()
    """Domains, each including all names below it."""
    networks: tuple[str, ...] = ()
    """Networks of IP addresses; empty: no addresses."""

    def forbidden(self, names: Iterable[str]) -> list[str]:
        """Return the canonical names that are outside of the constraints."""
        return [name for name in names if self.domains and not self._allows(name)]

    def _allows(self, name: str) -> bool:
        if is_address(name):
            address = ip_address(name)
            return any(address in ip_network(network) for network in self.networks)
        plain = name.removeprefix("*.")
        return any(plain == domain or plain.endswith(f".{domain}") for domain in self.domains)

    def extension(self) -> x509.NameConstraints:
        """Return the extension; without networks it excludes all addresses, which would be allowed otherwise."""
        networks = [x509.IPAddress(ip_network(network)) for network in self.networks]
        excluded = [] if networks else [x509.IPAddress(network) for network in _ALL_ADDRESSES]
        return x509.NameConstraints([*map(x509.DNSName, self.domains), *networks], excluded or None)


def constraints_of(certificate: x509.Certificate) -> Constraints:
    """Return the constraints of an intermediate."""
    try:
        value = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return Constraints()
    names = value.permitted_subtrees or []
    domains = tuple(name.value for name in names if isinstance(name, x509.DNSName))
    return Constraints(domains, tuple(str(name.value) for name in names if isinstance(name, x509.IPAddress)))


def clean_constraints(domains: Collection[str], networks: Collection[str]) -> Constraints:
    """Return constraints as an operator gives them, without duplicates; ErrorResponse 400 names what is wrong."""
    if len(domains) + len(networks) > _MOST:
        raise bad_request(f"A CA may have at most {_MOST} domains and networks", field="domains")
    if networks and not domains:
        raise bad_request("Networks need at least one domain", field="domains")
    return Constraints(tuple(dict.fromkeys(map(_domain, domains))), tuple(dict.fromkeys(map(_network, networks))))


def _domain(text: str) -> str:
    name = clean_name(text.strip().removeprefix("."))
    if name.startswith("*.") or is_address(name):
        what = f"{text[:100]!r} is not a domain; write example.com for it and all names below it"
        raise bad_request(what, field="domains", value=text[:100])
    return name


def _network(text: str) -> str:
    try:
        network: IPv4Network | IPv6Network = ip_network(text.strip())
    except ValueError:
        what = f"{text[:100]!r} is not a network such as 10.0.0.0/8 or 2001:db8::/32"
        raise bad_request(what, field="networks", value=text[:100]) from None
    return str(network)
