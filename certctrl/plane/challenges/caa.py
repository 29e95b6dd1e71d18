"""CAA records: which CAs the owner of a domain allows (RFC 8659, and RFC 8657 for its parameters)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import dns.name
import dns.rdatatype

from certctrl import lean
from certctrl.plane.challenges.dns_lookup import DnsLookup, name_of, shown
from certctrl.text import one_line

_CRITICAL = 128
_KNOWN_TAGS = ("issue", "issuewild", "iodef", "issuemail", "issuevmc", "contactemail", "contactphone")
_MAX_RECORDS = 50


@lean.frozen
class CaaRecord:
    """One CAA record."""

    flags: int
    tag: str
    value: str

    @property
    def issuer(self) -> str:
        """The CA's domain in a value of ``issue`` or ``issuewild``; empty: no CA."""
        return self.value.partition(";")[0].strip().lower().rstrip(".")

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters after the CA's domain, such as ``validationmethods``."""
        found = (part.partition("=") for part in self.value.split(";")[1:])
        return {name.strip().lower(): value.strip() for name, equals, value in found if equals}


@lean.frozen
class CaaSet:
    """The CAA records that apply to a name."""

    owner: str
    """The name that has them; empty: none up to the root."""
    records: tuple[CaaRecord, ...] = ()

    def relevant(self, wildcard: bool) -> tuple[CaaRecord, ...]:
        """Return the records that say which CA may issue; ``issuewild`` replaces ``issue`` for wildcards."""
        for tag in ("issuewild", "issue") if wildcard else ("issue",):
            if found := tuple(record for record in self.records if record.tag == tag):
                return found
        return ()


async def find_caa(lookup: DnsLookup, identifier: str) -> CaaSet:
    """Climb from a name towards the root; the first name with CAA records decides (RFC 8659, section 3).

    The resolver follows CNAME records, as CAs do. Raises IssuerError if no resolver answers.
    """
    name = name_of(identifier)
    while name != dns.name.root:
        answer = await lookup.ask(name, dns.rdatatype.CAA)
        found = [rdata for rrset in answer.answer if rrset.rdtype == dns.rdatatype.CAA for rdata in rrset]
        if found:
            return CaaSet(shown(name), tuple(_read(rdata) for rdata in found[:_MAX_RECORDS]))
        name = name.parent()
    return CaaSet("")


def _read(rdata: object) -> CaaRecord:
    flags, tag, value = rdata.flags, rdata.tag, rdata.value  # type: ignore[attr-defined]
    return CaaRecord(flags, tag.decode("ascii", "replace").lower(), value.decode("ascii", "backslashreplace"))


def refusal(
    found: CaaSet, identities: Collection[str], *, wildcard: bool, method: str = "", account_url: str = ""
) -> str:
    """Return why CAA records forbid a CA to issue; empty if they allow it.

    ``identities`` are the domains of the CA (``caaIdentities`` of its directory); none: they are not known, and only
    records that forbid every CA, or that allow only some, are reported.
    """
    unknown = [one.tag for one in found.records if one.flags & _CRITICAL and one.tag not in _KNOWN_TAGS]
    if unknown:
        return f"the CAA records of {found.owner} have a critical tag {one_line(unknown[0], 40)!r} that CAs do not know"
    relevant = found.relevant(wildcard)
    if not relevant:
        return ""
    allowed = sorted({record.issuer for record in relevant if record.issuer})
    kind = f"{relevant[0].tag} records" + (" (they count for wildcards)" if relevant[0].tag == "issuewild" else "")
    if not allowed:
        return f"the CAA {kind} of {found.owner} forbid every CA"
    listed = one_line(", ".join(allowed), 120)
    mine = [record for record in relevant if record.issuer in {name.lower() for name in identities}]
    if not identities or not mine:
        who = (
            f"not {one_line(', '.join(sorted(identities)), 80)}"
            if identities
            else "if the CA is another one, it refuses"
        )
        return f"the CAA {kind} of {found.owner} allow only {listed}: {who}"
    return _parameters_refuse(found.owner, mine, method, account_url)


def _parameters_refuse(owner: str, mine: Sequence[CaaRecord], method: str, account_url: str) -> str:
    """Return why the parameters of all records for a CA exclude a validation method or account (RFC 8657)."""
    reasons = []
    for record in mine:
        methods, account = record.parameters.get("validationmethods"), record.parameters.get("accounturi")
        if method and methods is not None and method not in [one.strip() for one in methods.split(",")]:
            reasons.append(
                f"the CAA records of {owner} allow only the validation {one_line(methods, 60)}, not {method}"
            )
        elif account_url and account is not None and account != account_url:
            reasons.append(f"the CAA records of {owner} allow only the account {one_line(account, 100)}")
        else:
            return ""
    return reasons[0]
