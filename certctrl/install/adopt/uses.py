"""Values of the search for certificates in use: where a configuration names their files, and how to reach them."""

from __future__ import annotations

from enum import StrEnum

from certctrl import lean
from certctrl.model.plan import VerifyTls

AS_THEY_ARE = ""
"""Instead of a virtual file: what a file has to contain follows from what it contains now."""


class Service(StrEnum):
    """Services whose configuration is read."""

    NGINX = "nginx"
    APACHE = "apache"
    HAPROXY = "haproxy"
    POSTFIX = "postfix"
    DOVECOT = "dovecot"


@lean.frozen
class At:
    """A line of a file, or a whole file if the line is 0."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@lean.frozen(kw_only=True)
class Use:
    """One place that names the files of a certificate."""

    at: At
    files: tuple[tuple[str, str], ...]
    """Pairs of a virtual file (see docs/items.md) and the path whose contents it would be."""
    service: Service | None = None
    """None: the path was given by the operator."""
    names: tuple[str, ...] = ()
    """Server names, as configured."""
    endpoint: VerifyTls | None = None
    """Where the certificate is served, with the name to ask for; None: unknown, or it cannot be probed."""


@lean.frozen(kw_only=True)
class Remark:
    """Something that was not understood, not read, or that the operator should know."""

    at: At
    what: str
    fix: str = ""


def pair(certificate: str, key: str, *, leaf_only: bool = False) -> tuple[tuple[str, str], ...]:
    """Return the files of a certificate and its key, which may be one file."""
    if certificate == key:
        return (("combined.pem", certificate),)
    return (("certificate.pem" if leaf_only else "fullchain.pem", certificate), ("private.key", key))


def probed(host: str, port: int, names: tuple[str, ...] = ()) -> VerifyTls:
    """Return the endpoint of a listening address, with the first name that a client can ask for."""
    return VerifyTls(host=host, port=port, server_name=next(filter(None, map(concrete, names)), None))


def concrete(name: str) -> str:
    """Return a name that a server name stands for; empty if it is none, such as ``_`` or a regular expression."""
    plain = name.removesuffix(".").lower()
    if plain.startswith("*."):
        plain = f"cert-ctrl-probe.{plain[2:]}"
    plain = plain.removeprefix(".")
    labels = plain.split(".")
    is_host = all(label and label.strip("-") and label.replace("-", "").isalnum() for label in labels)
    return plain if is_host and plain.isascii() and len(labels) > 1 else ""
