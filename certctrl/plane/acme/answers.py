"""Parse the objects in a CA's answers, strictly and within bounds; a missing or invalid field is an IssuerError.

URLs must be at the directory's host or at one that the operator allows: signed requests go nowhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import attrs

from certctrl import lean
from certctrl.model.answer import Answer
from certctrl.plane.acme.problems import Problem, line, problem_hook
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.protocol.wire.reader import (
    Hook,
    Misfit,
    Read,
    bounded_list,
    flag,
    json_object,
    or_default,
    text,
    wire_class,
)
from certctrl.text import kind_of, one_line

T = TypeVar("T", bound=attrs.AttrsInstance)

MAX_IDENTIFIERS = 100
MAX_CHALLENGES = 20
MAX_PROFILES = 50
_MAX_IDENTITIES = 20
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,200}")
_ORDER_STATES = frozenset({"pending", "ready", "processing", "valid", "invalid"})
_AUTHORIZATION_STATES = frozenset({"pending", "valid", "invalid", "deactivated", "expired", "revoked"})
_CHALLENGE_STATES = frozenset({"pending", "processing", "valid", "invalid"})

_CONTACTS = 10

CheckUrl = Callable[[str], str]
"""Returns a URL of the CA that may be requested; raises IssuerError."""


@lean.frozen(kw_only=True)
class Meta:
    """What a CA says about itself; fields that do not fit are left out."""

    terms_url: str = ""
    needs_binding: bool = False
    profiles: Mapping[str, str] = attrs.field(factory=dict)
    """Name -> description; empty if the CA announces none."""
    caa_identities: tuple[str, ...] = ()
    """The CA's domains in CAA records."""


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
    meta: Meta = Meta()


@lean.frozen(kw_only=True)
class Account:
    """An account at the CA."""

    url: str = ""
    status: str = "valid"
    """Some CAs leave it out."""
    contact: tuple[str, ...] = ()


@lean.frozen(kw_only=True)
class Order:
    """An order; ``url`` is where it is fetched again."""

    url: str = ""
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
    """The authorization of one identifier, with its challenges; those that cannot be read are left out."""

    url: str = ""
    identifier: Identifier
    status: str
    wildcard: bool = False
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
    directory = read_as(_directory, found, "directory")
    urls = (
        directory.new_nonce, directory.new_account, directory.new_order,
        directory.revoke, directory.key_change, directory.renewal_info,
    )  # fmt: skip
    _check_urls(urls, check)
    return directory


def read_account(found: Mapping[str, Any], url: str) -> Account:
    """Return an account (section 7.1.2)."""
    return attrs.evolve(read_as(_account, found, "account"), url=url)


def read_order(found: Mapping[str, Any], url: str, check: CheckUrl) -> Order:
    """Return an order (section 7.1.3)."""
    order = read_as(_order, found, "order")
    _check_urls((*order.authorizations, order.finalize, order.certificate), check)
    return attrs.evolve(order, url=url)


def read_authorization(found: Mapping[str, Any], url: str, check: CheckUrl) -> Authorization:
    """Return an authorization (section 7.1.4)."""
    authorization = read_as(_authorization, found, "authorization")
    _check_urls([challenge.url for challenge in authorization.challenges], check)
    return attrs.evolve(authorization, url=url)


def read_challenge(found: Any, check: CheckUrl) -> Challenge:
    """Return a challenge (section 8); raises IssuerError."""
    challenge = read_as(_challenge, found, "challenge")
    _check_urls([challenge.url], check)
    return challenge


def read_as(read: Read[T], found: object, what: str) -> T:
    """Return an object of a CA; raises IssuerError, which names the first field that does not fit."""
    try:
        return read(found, what)
    except Misfit as misfit:
        raise invalid_answer(what, str(misfit)) from None


def _check_urls(urls: Collection[str], check: CheckUrl) -> None:
    for url in filter(None, urls):
        check(url)


# --- hooks -------------------------------------------------------------------------------------------------------


def _one_of(known: Collection[str]) -> Hook:
    def structure(value: Any, _: Any = None) -> str:
        word = str(line(40)(value))
        if word not in known:
            raise Misfit(f"unknown: {word}")
        return word

    return structure


def _token(value: Any, _: Any = None) -> str:
    """Return a token, which becomes a part of URLs and names."""
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise Misfit("expected 1 to 200 characters of base64url")
    return value


def _name(value: Any, _: Any = None) -> str:
    return one_line(text(255)(value).lower(), 255)


def _each(read: Callable[[Any], Any], most: int) -> Hook:
    """Return a hook for a list of at most ``most`` items."""

    def structure(value: Any, _: Any = None) -> tuple[Any, ...]:
        found = []
        for i, one in enumerate(bounded_list(value, most)):
            try:
                found.append(read(one))
            except Misfit as misfit:
                raise Misfit(misfit.what, f"[{i}]{misfit.path}") from None
        return tuple(found)

    return structure


def _some(read: Callable[[Any], Any], most: int) -> Hook:
    """Return a hook for a list of which only the first items are kept, without those that do not fit."""

    def structure(value: Any, _: Any = None) -> tuple[Any, ...]:
        found = (or_default(read)(one) for one in bounded_list(value)[:most])
        return tuple(one for one in found if one)

    return structure


def _profiles(value: Any, _: Any = None) -> dict[str, str]:
    items = list(json_object(value).items())[:MAX_PROFILES]
    return {one_line(name, 64): or_default(line(200, ascii_only=True), "")(words) for name, words in items}


def _readable_challenges(value: Any, _: Any = None) -> tuple[Challenge, ...]:
    return tuple(filter(None, map(or_default(lambda one: _challenge(one, "")), bounded_list(value, MAX_CHALLENGES))))


def _without_prefix(authorization: Authorization) -> Authorization:
    """Return an authorization whose name has no ``*.``, which some CAs keep."""
    name = authorization.identifier.value
    return attrs.evolve(
        authorization,
        identifier=Identifier(authorization.identifier.kind, name.removeprefix("*.")),
        wildcard=authorization.wildcard or name.startswith("*."),
    )


_meta = wire_class(
    Meta,
    {
        "terms_url": or_default(line(200, ascii_only=True), ""),
        "needs_binding": or_default(flag, False),
        "profiles": or_default(_profiles, {}),
        "caa_identities": or_default(_some(line(200, ascii_only=True), _MAX_IDENTITIES), ()),
    },
    names={
        "terms_url": "termsOfService",
        "needs_binding": "externalAccountRequired",
        "caa_identities": "caaIdentities",
    },
)
_directory = wire_class(
    Directory,
    {"meta": or_default(lambda value: _meta(value, ""), Meta())},
    names={
        "new_nonce": "newNonce",
        "new_account": "newAccount",
        "new_order": "newOrder",
        "revoke": "revokeCert",
        "key_change": "keyChange",
        "renewal_info": "renewalInfo",
    },
)
_account = wire_class(
    Account,
    {"status": or_default(line(40, ascii_only=True), "valid"), "contact": or_default(_some(text(), _CONTACTS), ())},
    omit=("url",),
)
_identifier = wire_class(Identifier, {"kind": line(40), "value": _name}, names={"kind": "type"})
_order = wire_class(
    Order,
    {
        "status": _one_of(_ORDER_STATES),
        "identifiers": _each(lambda one: _identifier(one, ""), MAX_IDENTIFIERS),
        "authorizations": _each(text(), MAX_IDENTIFIERS),
        "problem": problem_hook,
    },
    names={"problem": "error"},
    omit=("url",),
)
_challenge = wire_class(
    Challenge,
    {"kind": line(40), "status": _one_of(_CHALLENGE_STATES), "token": _token, "problem": problem_hook},
    names={"kind": "type", "problem": "error"},
)
_authorization = wire_class(
    Authorization,
    {
        "status": _one_of(_AUTHORIZATION_STATES),
        "wildcard": or_default(flag, False),
        "challenges": _readable_challenges,
    },
    omit=("url",),
    check=_without_prefix,
)
