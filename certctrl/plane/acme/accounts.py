"""Accounts at a CA: register, find, change contact and key, deactivate (RFC 8555, section 7.3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs

from certctrl import lean
from certctrl.model.answer import Answer
from certctrl.plane.acme.answers import Account, Directory, document, invalid_answer, read_account
from certctrl.plane.acme.client import AcmeClient
from certctrl.plane.acme.jws import AccountKey, external_account_binding, signed_request
from certctrl.plane.acme.problems import BINDING_FIX, AcmeError, Problem, refusal
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.text import one_line

_REGISTERING = "to register an account"


@lean.frozen
class Binding:
    """External account binding: an account at the CA outside of ACME, to which a new account is bound."""

    kid: str
    hmac_key: bytes = attrs.field(repr=False)


async def register(
    client: AcmeClient, *, contact: Sequence[str], terms_agreed: bool, binding: Binding | None
) -> Account:
    """Return the account of the client's key, and create it if needed."""
    directory = await client.directory()
    if directory.meta.terms_url and not terms_agreed:
        terms = Problem(
            kind="userActionRequired", detail="no account without consent", instance=directory.meta.terms_url
        )
        raise refusal(_REGISTERING, terms)
    if directory.meta.needs_binding and binding is None:
        raise refusal(
            _REGISTERING,
            Problem(kind="externalAccountRequired", detail="no account without an external account binding"),
        )
    payload: dict[str, Any] = {"contact": list(contact)} if contact else {}
    if terms_agreed:
        payload["termsOfServiceAgreed"] = True
    if binding is not None:
        url = directory.new_account
        payload["externalAccountBinding"] = external_account_binding(client.key, url, binding.kid, binding.hmac_key)
    try:
        return await _new_account(client, directory, payload, _REGISTERING)
    except AcmeError as error:
        if error.problem.kind == "malformed":
            error.fix = "set contact to a mail address" if not contact else "check contact"
            error.fix += "" if binding is None else f", then {BINDING_FIX}"
        elif binding is not None and error.problem.kind == "unauthorized":
            error.is_permanent, error.fix = True, BINDING_FIX
        raise


async def find(client: AcmeClient) -> Account:
    """Return the existing account of the client's key; AcmeError ``accountDoesNotExist``."""
    directory = await client.directory()
    return await _new_account(client, directory, {"onlyReturnExisting": True}, "to find the account")


async def fetch(client: AcmeClient) -> Account:
    """Return the client's account, read from the CA."""
    return _read(await client.post(client.account_url, None, "to show the account"), client.account_url)


async def set_contact(client: AcmeClient, contact: Sequence[str]) -> Account:
    """Replace the contact of the client's account."""
    answer = await client.post(client.account_url, {"contact": list(contact)}, "the contact of the account")
    return _read(answer, client.account_url)


async def change_key(client: AcmeClient, new_key: AccountKey) -> None:
    """Replace the key of the client's account, and use the new key from now on."""
    directory = await client.directory()
    if not directory.key_change:
        raise IssuerError("the CA does not change account keys", fix="register a new account", is_permanent=True)
    payload = {"account": client.account_url, "oldKey": client.key.jwk()}
    inner = json.loads(signed_request(new_key, directory.key_change, payload, nonce=None))
    await client.post(directory.key_change, inner, "the new key of the account")
    client.key = new_key


async def deactivate(client: AcmeClient) -> None:
    """Deactivate the client's account, which cannot be undone."""
    await client.post(client.account_url, {"status": "deactivated"}, "to deactivate the account")


async def _new_account(client: AcmeClient, directory: Directory, payload: dict[str, Any], doing: str) -> Account:
    answer = await client.post(directory.new_account, payload, doing, key=client.key)
    url = answer.headers.get("location", "")
    if not url:
        raise invalid_answer("answer to newAccount", "it has no Location")
    account = _read(answer, client.http.check_url(url))
    if account.status != "valid":
        status = one_line(account.status, 40)
        raise IssuerError(
            f"the CA says that the account {one_line(url)} is {status}",
            fix="add the issuer again under another name, which registers a new account",
            is_permanent=True,
        )
    client.account_url = account.url
    return account


def _read(answer: Answer, url: str) -> Account:
    if not answer.body.strip():  # a CA may omit the object if nothing has changed
        return Account(url=url, status="valid")
    return read_account(document(answer, "account"), url)
