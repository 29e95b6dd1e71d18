"""A CA's problem documents (RFC 7807; RFC 8555, section 6.7) as errors with a fix.

All text of the CA is escaped and shortened, and the number of subproblems is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from certctrl import lean
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.protocol.wire.reader import Hook, alias, bounded_list, integer, or_default, text, wire_class
from certctrl.text import LINE_LIMIT, one_line

_PREFIX = "urn:ietf:params:acme:error:"
_SHOWN = 5
_KEPT = 20
_LONGEST = 2**20
_DETAIL = 300

_TERMS = "agree to the CA's terms of service: set terms_agreed to true"
BINDING_FIX = "check eab_kid and the secret eab_hmac_key against what the CA shows for your account there"
_ACCOUNT = "check the issuer's account at the CA; `cert-ctrl plane issuers check` tests it"
_CAA = "allow this CA in the CAA records of the domain, or remove them"
_REACH = "check that the CA can reach the name from outside, then run the order again"
_NAMES = "order only names that this CA issues for"

_FIXES: Mapping[str, tuple[bool, str]] = {
    "accountDoesNotExist": (True, "run the order again: a new account is registered with the same key"),
    "agreementRequired": (True, _TERMS),
    "userActionRequired": (True, _TERMS),
    "externalAccountRequired": (True, BINDING_FIX),
    "invalidContact": (True, "set contact to a mail address that receives mail"),
    "unsupportedContact": (True, "set contact to a mail address"),
    "rejectedIdentifier": (True, _NAMES),
    "unsupportedIdentifier": (True, _NAMES),
    "badCSR": (True, "use another key type, or names that this CA accepts in a request"),
    "badPublicKey": (True, "use another key type"),
    "badSignatureAlgorithm": (True, "use another CA: it does not accept ES256"),
    "badRevocationReason": (True, "revoke with another reason"),
    "invalidProfile": (True, "set profile to one that the CA announces, or to none"),
    "alreadyRevoked": (True, "nothing: it is revoked already"),
    "malformed": (True, "check directory_url and the names, then report this if it persists"),
    "caa": (False, _CAA),
    "connection": (False, _REACH),
    "dns": (False, "correct the DNS of the name, then run the order again"),
    "incorrectResponse": (False, _REACH),
    "tls": (False, _REACH),
    "unauthorized": (False, "check the challenges of the name, then run the order again"),
    "rateLimited": (False, "wait; the order is tried again when the CA allows it"),
    "serverInternal": (False, "wait; the order is tried again"),
}
"""Type of a problem -> whether it is permanent, and the fix."""
_REQUEST = ("badCSR", "badPublicKey")
"""Problems of the signing request, which one for another key may not have."""


@lean.frozen(kw_only=True)
class Problem:
    """A problem, with subproblems about single names."""

    kind: str = ""
    """The type without ACME's prefix, such as ``rateLimited``; empty if there is none."""
    detail: str = ""
    identifier: str = ""
    """The name that it is about; empty: the whole request."""
    status: int = 0
    subproblems: tuple[Problem, ...] = ()
    instance: str = ""
    """URL that an operator should open, such as new terms of service."""

    @property
    def text(self) -> str:
        """The CA's reason and the names it is about, in one line."""
        own = self.detail or "no reason given"
        line = f"{own} ({self.kind or f'status {self.status}'})"
        named = [f"{one.identifier or 'one name'}: {one.text}" for one in self.subproblems[:_SHOWN]]
        if len(self.subproblems) > _SHOWN:
            named.append(f"and {len(self.subproblems) - _SHOWN} more")
        return "; ".join([line, *named])

    def is_about(self, kind: str) -> bool:
        """Return whether it or one of its subproblems is of a type."""
        return self.kind == kind or any(one.kind == kind for one in self.subproblems)


class AcmeError(IssuerError):
    """A refusal by the CA."""

    def __init__(
        self, what: str, *, problem: Problem, is_permanent: bool, retry_after: float | None, fix: str | None
    ) -> None:
        about_request = any(problem.is_about(kind) for kind in _REQUEST)
        super().__init__(what, is_permanent=is_permanent, about_request=about_request, retry_after=retry_after, fix=fix)
        self.problem = problem


def refusal(doing: str, problem: Problem, retry_after: float | None = None, *, of_request: bool = False) -> AcmeError:
    """Return the error for a refused request, which ``doing`` names.

    ``of_request``: the CA refused a signed request, so ``unauthorized`` is about the account and not about a name.
    """
    deciding = problem
    if problem.kind in ("compound", "malformed", "") and problem.subproblems:
        deciding = problem.subproblems[0]
    is_permanent, fix = _FIXES.get(deciding.kind, (False, "read the CA's reason, then run the order again"))
    if of_request and deciding.kind == "unauthorized":
        is_permanent, fix = True, _ACCOUNT
    if problem.instance and fix is _TERMS:
        fix = f"read the CA's terms of service at {problem.instance}; if you agree, set terms_agreed to true"
    if retry_after is not None:
        is_permanent = False
    return AcmeError(
        f"the CA refused {doing}: {problem.text}",
        problem=problem,
        is_permanent=is_permanent,
        retry_after=retry_after,
        fix=fix,
    )


def read_problem(document: Any, status: int = 0, instance: str = "") -> Problem:
    """Return the problem of a parsed document; any other value is a problem without a type."""
    found: Problem = or_default(_read, Problem())(document)
    return attrs.evolve(
        found, status=status or found.status, instance=one_line(instance, ascii_only=True) or found.instance
    )


def line(limit: int = LINE_LIMIT, *, ascii_only: bool = False) -> Hook:
    """Return a hook for text of a CA, which is escaped and shortened."""
    return lambda value, _=None: one_line(_any_text(value), limit, ascii_only=ascii_only)


def _kind(value: Any, _: Any = None) -> str:
    return str(line(80)(value)).removeprefix(_PREFIX).replace("about:blank", "")


def _identifier(value: Any, _: Any = None) -> str:
    return str(_read_named(value, "").value)


def _subproblems(value: Any, _: Any = None) -> tuple[Problem, ...]:
    """Return the first subproblems, which have none themselves."""
    found = []
    for one in bounded_list(value)[:_KEPT]:
        if isinstance(one, dict):
            found.append(_read(one | {"subproblems": None}, ""))
    return tuple(found)


@lean.frozen
class _Named:
    value: str


_any_text = text(_LONGEST)
_read_named = wire_class(_Named, {"value": line(255)})
_read = wire_class(
    Problem,
    {
        "kind": or_default(_kind, ""),
        "detail": or_default(line(_DETAIL), ""),
        "identifier": or_default(_identifier, ""),
        "status": or_default(integer(le=999, digits=False), 0),
        "subproblems": or_default(_subproblems, ()),
        "instance": or_default(line(200), ""),
    },
    names={"kind": "type"},
    prepare=alias("detail", "title"),
)
problem_hook: Hook = or_default(_read)
"""Reads the ``error`` of an object; anything else than a problem counts as none."""
