"""Parse the objects in a CA's answers, strictly and within bounds; a missing or invalid field is an IssuerError.

URLs must be at the directory's host or at one that the operator allows: signed requests go nowhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from certctrl import lean
from certctrl.model.answer import Answer
from certctrl.plane.acme.problems import Problem, read_problem
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.text import kind_of, one_line

MAX_IDENTIFIERS = 100
MAX_CHALLENGES = 20
MAX_PROFILES = 50
_MAX_IDENTITIES = 20
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,200}")
_ORDER_STATES = frozenset({"pending", "ready", "processing", "valid", "invalid"})
_AUTHORIZATION_STATES = frozenset({"pending", "valid", "invalid", "deactivated", "expired", "revoked"})
_CHALLENGE_STATES = frozenset({"pending", "processing", "valid", "invalid"})

CheckUrl = Callable[[str], str]
"""Returns a URL of the CA that may be requested; raises IssuerError."""


@lean.frozen
class Identifier:
    """A name as ACME writes it: ``dns`` or ``ip`` (RFC 8738)."""

    kind: str
    value: str

    def as_json(self) -> dict[str, str]:
        """Return the identifier of a request."""
        return {"type": self.kind, "value": self.value}


@lean.frozen(kw_only=True)
class Directory:
    """The URLs and facts of a CA."""

    new_nonce: str
    new_account: str
    new_order: str
    revoke: str = ""
    key_change: str = ""
    renewal_info: str = ""
    terms_url: str = ""
    needs_binding: bool = False
    profiles: Mapping[str, str] = attrs.field(factory=dict)
    """Name -> description; empty if the CA announces none."""
    caa_identities: tuple[str, ...] = ()
    """The CA's domains in CAA records."""


@lean.frozen(kw_only=True)
class Account:
    """An account at the CA."""

    url: str
    status: str
    contact: tuple[str, ...] = ()


@lean.frozen(kw_only=True)
class Order:
    """An order; ``url`` is where it is fetched again."""

    url: str
    status: str
    identifiers: tuple[Identifier, ...]
    authorizations: tuple[str, ...]
    finalize: str
    certificate: str = ""
    problem: Problem | None = None


@lean.frozen(kw_only=True)
class Challenge:
    """A challenge; types without a solver are kept, but not answered."""

    kind: str
    url: str
    status: str
    token: str
    problem: Problem | None = None


@lean.frozen(kw_only=True)
class Authorization:
    """The authorization of one identifier, with its challenges."""

    url: str
    identifier: Identifier
    status: str
    wildcard: bool
    challenges: tuple[Challenge, ...]

    @property
    def name(self) -> str:
        """The name that is proven, with ``*.`` for a wildcard."""
        return f"*.{self.identifier.value}" if self.wildcard else self.identifier.value


def document(answer: Answer, what: str) -> dict[str, Any]:
    """Return the JSON object of an answer; ``what`` names it in the IssuerError."""
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        raise invalid_answer(what, "it is not JSON") from None
    if not isinstance(found, dict):
        raise invalid_answer(what, f"it is {kind_of(found)}, not an object")
    return found


def invalid_answer(what: str, why: str) -> IssuerError:
    """Return the error for an answer that violates the protocol."""
    return IssuerError(
        f"the CA's {what} cannot be used: {why}", fix="check directory_url; if it is right, report this to the CA"
    )


def read_directory(found: Mapping[str, Any], check: CheckUrl) -> Directory:
    """Return a directory (RFC 8555, section 7.1.1)."""
    meta = found.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    profiles = meta.get("profiles")
    return Directory(
        new_nonce=_url(found, "newNonce", "directory", check),
        new_account=_url(found, "newAccount", "directory", check),
        new_order=_url(found, "newOrder", "directory", check),
        revoke=_optional_url(found, "revokeCert", "directory", check),
        key_change=_optional_url(found, "keyChange", "directory", check),
        renewal_info=_optional_url(found, "renewalInfo", "directory", check),
        terms_url=_line(meta.get("termsOfService")),
        needs_binding=meta.get("externalAccountRequired") is True,
        profiles=_profiles(profiles),
        caa_identities=_caa_identities(meta.get("caaIdentities")),
    )


def _caa_identities(found: object) -> tuple[str, ...]:
    entries = found[:_MAX_IDENTITIES] if isinstance(found, list) else []
    return tuple(one for one in map(_line, entries) if one)


def read_account(found: Mapping[str, Any], url: str) -> Account:
    """Return an account (section 7.1.2)."""
    contact = found.get("contact")
    entries = contact[:10] if isinstance(contact, list) else []
    status = _line(found.get("status"), 40) or "valid"  # some CAs leave it out
    return Account(url=url, status=status, contact=tuple(one for one in entries if isinstance(one, str)))


def read_order(found: Mapping[str, Any], url: str, check: CheckUrl) -> Order:
    """Return an order (section 7.1.3)."""
    error = found.get("error")
    return Order(
        url=url,
        status=_state(found, "order", _ORDER_STATES),
        identifiers=tuple(_identifier(one, "order") for one in _list(found, "identifiers", "order", MAX_IDENTIFIERS)),
        authorizations=tuple(
            _checked(one, "authorizations", "order", check)
            for one in _list(found, "authorizations", "order", MAX_IDENTIFIERS)
        ),
        finalize=_url(found, "finalize", "order", check),
        certificate=_optional_url(found, "certificate", "order", check),
        problem=read_problem(error) if isinstance(error, dict) else None,
    )


def read_authorization(found: Mapping[str, Any], url: str, check: CheckUrl) -> Authorization:
    """Return an authorization (section 7.1.4); challenges that cannot be read are left out."""
    identifier = _identifier(found.get("identifier"), "authorization")
    return Authorization(
        url=url,
        identifier=Identifier(identifier.kind, identifier.value.removeprefix("*.")),  # some CAs keep the prefix
        status=_state(found, "authorization", _AUTHORIZATION_STATES),
        wildcard=found.get("wildcard") is True or identifier.value.startswith("*."),
        challenges=tuple(
            challenge
            for one in _list(found, "challenges", "authorization", MAX_CHALLENGES)
            if (challenge := _challenge(one, check)) is not None
        ),
    )


def read_challenge(found: Any, check: CheckUrl) -> Challenge:
    """Return a challenge (section 8); raises IssuerError."""
    challenge = _challenge(found, check)
    if challenge is None:
        raise invalid_answer("challenge", "it lacks type, URL, token or status")
    return challenge


def _challenge(found: Any, check: CheckUrl) -> Challenge | None:
    if not isinstance(found, dict):
        return None
    kind, url, token, status, error = (found.get(name) for name in ("type", "url", "token", "status", "error"))
    if not isinstance(kind, str) or not isinstance(url, str) or not isinstance(token, str):
        return None  # types without a token are not supported
    if not _TOKEN.fullmatch(token) or not isinstance(status, str) or status not in _CHALLENGE_STATES:
        return None
    return Challenge(
        kind=one_line(kind, 40),
        url=check(url),
        status=status,
        token=token,
        problem=read_problem(error) if isinstance(error, dict) else None,
    )


def _identifier(found: Any, what: str) -> Identifier:
    kind, value = (found.get(name) if isinstance(found, dict) else None for name in ("type", "value"))
    if not isinstance(kind, str) or not isinstance(value, str) or not 0 < len(value) <= 255:
        raise invalid_answer(what, "an identifier has no type or value")
    return Identifier(one_line(kind, 40), one_line(value.lower(), 255))


def _list(found: Mapping[str, Any], name: str, what: str, most: int) -> list[Any]:
    value = found.get(name)
    if not isinstance(value, list):
        raise invalid_answer(what, f"its {name} is {kind_of(value)}, not a list")
    if len(value) > most:
        raise invalid_answer(what, f"it has {len(value)} {name}; at most {most} are read")
    return value


def _state(found: Mapping[str, Any], what: str, known: frozenset[str]) -> str:
    status = found.get("status")
    if not isinstance(status, str) or status not in known:
        raise invalid_answer(
            what, f"its status is {one_line(status, 40) if isinstance(status, str) else kind_of(status)}"
        )
    return status


def _url(found: Mapping[str, Any], name: str, what: str, check: CheckUrl) -> str:
    return _checked(found.get(name), name, what, check)


def _optional_url(found: Mapping[str, Any], name: str, what: str, check: CheckUrl) -> str:
    return _checked(found[name], name, what, check) if found.get(name) is not None else ""


def _checked(value: Any, name: str, what: str, check: CheckUrl) -> str:
    if not isinstance(value, str) or not value:
        raise invalid_answer(what, f"its {name} is {kind_of(value)}, not a URL")
    return check(value)


def _profiles(found: Any) -> dict[str, str]:
    if not isinstance(found, dict):
        return {}
    items = list(found.items())[:MAX_PROFILES]
    return {one_line(name, 64): _line(words) for name, words in items if isinstance(name, str)}


def _line(value: Any, limit: int = 200) -> str:
    return one_line(value, limit, ascii_only=True) if isinstance(value, str) else ""
