"""An ACME CA in this process, whose answers a test can replace: for what no real CA can be made to do.

It follows RFC 8555 as far as a client sees: signatures, nonces, URLs and states are checked as a real CA does.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any, cast

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certctrl.model.answer import Answer
from certctrl.plane.acme.http import CaPlaces
from certctrl.plane.ca.x509 import Authority, PublicKey, new_intermediate, new_root, sign_leaf

BASE = "https://ca.test"
DIRECTORY_URL = f"{BASE}/directory"
PREFIX = "urn:ietf:params:acme:error:"
Reply = tuple[int, dict[str, str], Any]
"""Status, headers, and a JSON value or bytes."""
Hook = Callable[[str, str, Any], Reply | None]
"""Called with method, path and payload; returns an answer that replaces the CA's, or None."""


def problem(kind: str, detail: str = "", status: int = 400, **more: object) -> Reply:
    """Return the answer of a refusal."""
    body = {"type": f"{PREFIX}{kind}", "detail": detail, "status": status} | more
    return status, {"content-type": "application/problem+json"}, body


class ScriptedCa:
    """The CA, with its state as attributes."""

    def __init__(self, now: float, *, names: Sequence[str] = ("root A", "root B")) -> None:
        self.now = now
        self.roots = [new_root(name, not_before=now - 9e6, not_after=now + 9e8) for name in names]
        self.issuers = [self._below(root) for root in self.roots]
        self.meta: dict[str, Any] = {"termsOfService": f"{BASE}/terms"}
        self.with_ari = True
        self.challenge_kinds = ["http-01", "dns-01", "tls-alpn-01", "future-42"]
        self.verdict: Callable[[str, str], dict[str, Any] | None] = lambda kind, name: None
        """Called with challenge type and name; returns a problem, or None: valid."""
        self.polls_until_decided = 1
        self.polls_until_issued = 1
        self.hooks: list[Hook] = []
        self.accounts: dict[str, dict[str, Any]] = {}
        self.orders: dict[str, dict[str, Any]] = {}
        self.authorizations: dict[str, dict[str, Any]] = {}
        self.certificates: dict[str, x509.Certificate] = {}
        self.revoked: dict[int, int] = {}
        self.requests: list[tuple[str, str, Any]] = []
        """Method, path, payload."""
        self.count: Counter[str] = Counter()
        self._nonces: set[str] = set()
        self._made = 0
        self.places = CaPlaces(DIRECTORY_URL)

    def _below(self, root: Authority) -> Authority:
        return new_intermediate(root, "below " + root.certificate.subject.rfc4514_string()[3:], not_before=self.now - 9e6,
                                not_after=self.now + 8e8)  # fmt: skip

    def check_url(self, url: str) -> str:
        return self.places.check(url)

    async def request(self, method: str, url: str, body: bytes | None = None) -> Answer:
        """Answer as `CaHttp` does."""
        self.check_url(url)
        path = url.removeprefix(BASE)
        if body is None:
            status, headers, found = self._answered(method, path, None, lambda: self._plain(method, path))
        else:
            status, headers, found = self._signed(url, path, json.loads(body))
        headers = {name.lower(): value for name, value in headers.items()} | {"replay-nonce": self._nonce()}
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        return Answer(status, headers, data)

    def _answered(self, method: str, path: str, payload: object, usual: Callable[[], Reply]) -> Reply:
        self.requests.append((method, path, payload))
        self.count[path.split("/")[1]] += 1
        for hook in list(self.hooks):
            reply = hook(method, path, payload)
            if reply is not None:
                return reply
        return usual()

    def _plain(self, method: str, path: str) -> Reply:
        if path == "/directory":
            urls = {
                name: f"{BASE}/{name}" for name in ("newNonce", "newAccount", "newOrder", "revokeCert", "keyChange")
            }
            if self.with_ari:
                urls["renewalInfo"] = f"{BASE}/renewalInfo"
            return 200, {}, urls | {"meta": self.meta}
        if path == "/newNonce":
            return 200, {}, b""
        if path.startswith("/renewalInfo/"):
            at = [datetime.fromtimestamp(self.now + days * 86_400, UTC).isoformat() for days in (10, 12)]
            return 200, {"Retry-After": "7200"}, {"suggestedWindow": {"start": at[0], "end": at[1]}}
        return problem("malformed", "no such resource", 404)

    def _nonce(self) -> str:
        self._made += 1
        nonce = f"nonce-{self._made}"
        self._nonces.add(nonce)
        return nonce

    def _signed(self, url: str, path: str, outer: dict[str, str]) -> Reply:
        header = json.loads(_unbase(outer["protected"]))
        assert header["url"] == url and header["alg"] == "ES256"
        if header["nonce"] not in self._nonces:
            return problem("badNonce")
        self._nonces.remove(header["nonce"])
        assert ("jwk" in header) == (path == "/newAccount"), path
        if "kid" in header:
            account = self.accounts.get(header["kid"])
            if account is None:
                return problem("accountDoesNotExist", "who?", 400)
            if account["status"] != "valid":
                return problem("unauthorized", "the account is deactivated", 403)
            key = account["key"]
        else:
            key = header["jwk"]
        token = f"{outer['protected']}.{outer['payload']}.{outer['signature']}".encode()
        try:
            jwt.api_jws.decode(token, jwt.PyJWK(key).key, algorithms=["ES256"])  # the library's judgement
        except jwt.InvalidSignatureError:
            return problem("malformed", "JWS verification error")
        payload = json.loads(_unbase(outer["payload"])) if outer["payload"] else None
        return self._answered("POST", path, payload, lambda: self._post(path, payload, header))

    def _post(self, path: str, payload: object, header: dict[str, Any]) -> Reply:
        head, _, rest = path[1:].partition("/")
        method = {
            "newAccount": self._new_account, "acct": self._account, "newOrder": self._new_order, "order": self._order,
            "authz": self._authorization, "chall": self._challenge, "finalize": self._finalize, "cert": self._certificate,
            "revokeCert": self._revoke, "keyChange": self._key_change,
        }.get(head)  # fmt: skip
        return problem("malformed", "no such resource", 404) if method is None else method(rest, payload, header)

    def _new_account(self, _: str, payload: Any, header: dict[str, Any]) -> Reply:
        for url, account in self.accounts.items():
            if account["key"] == header["jwk"]:
                return 200, {"Location": url}, {"status": account["status"]}
        if payload.get("onlyReturnExisting"):
            return problem("accountDoesNotExist", "no account with this key", 400)
        url = f"{BASE}/acct/{len(self.accounts) + 1}"
        self.accounts[url] = {"status": "valid", "key": header["jwk"], "payload": payload}
        return 201, {"Location": url}, {"status": "valid", "contact": payload.get("contact", [])}

    def _account(self, rest: str, payload: Any, header: dict[str, Any]) -> Reply:
        account = self.accounts[header["kid"]]
        if payload and "status" in payload:
            account["status"] = payload["status"]
        elif payload:
            account["payload"] |= payload
        return 200, {}, {"status": account["status"], "contact": account["payload"].get("contact", [])}

    def _key_change(self, _: str, payload: Any, header: dict[str, Any]) -> Reply:
        inner = json.loads(_unbase(payload["protected"]))
        token = f"{payload['protected']}.{payload['payload']}.{payload['signature']}".encode()
        wanted = json.loads(jwt.api_jws.decode(token, jwt.PyJWK(inner["jwk"]).key, algorithms=["ES256"]))
        account = self.accounts[header["kid"]]
        assert wanted == {"account": header["kid"], "oldKey": account["key"]} and "nonce" not in inner
        account["key"] = inner["jwk"]
        return 200, {}, {"status": "valid"}

    def _new_order(self, _: str, payload: Any, header: dict[str, Any]) -> Reply:
        number = len(self.orders) + 1
        found = []
        for identifier in payload["identifiers"]:
            name = identifier["value"].removeprefix("*.")
            url = f"{BASE}/authz/{len(self.authorizations) + 1}"
            wildcard = identifier["value"].startswith("*.")
            kinds = ["dns-01"] if wildcard else self.challenge_kinds
            challenges = [
                {"type": kind, "url": url.replace("/authz/", f"/chall/{kind}/"), "status": "pending", "token": f"t{number}-{kind}-{name}"
                 .replace(".", "-").replace(":", "-")}
                for kind in kinds
            ]  # fmt: skip
            self.authorizations[url] = {
                "identifier": identifier | {"value": name}, "status": "pending", "challenges": challenges, "polls": 0,
            } | ({"wildcard": True} if wildcard else {})  # fmt: skip
            found.append(url)
        url = f"{BASE}/order/{number}"
        self.orders[url] = {
            "status": "pending", "identifiers": payload["identifiers"], "authorizations": found,
            "finalize": f"{BASE}/finalize/{number}", "payload": payload,
        }  # fmt: skip
        return 201, {"Location": url}, self._shown(url)

    def _shown(self, url: str) -> dict[str, Any]:
        order = self.orders[url]
        states = [self.authorizations[one]["status"] for one in order["authorizations"]]
        if order["status"] == "pending":
            if "invalid" in states:
                order["status"] = "invalid"
            elif set(states) == {"valid"}:
                order["status"] = "ready"
        elif order["status"] == "processing":
            order["polls"] += 1
            if order["polls"] >= self.polls_until_issued:
                order["status"], order["certificate"] = "valid", url.replace("/order/", "/cert/")
        return {name: value for name, value in order.items() if name not in ("payload", "polls", "csr")}

    def _order(self, rest: str, payload: object, header: dict[str, Any]) -> Reply:
        url = f"{BASE}/order/{rest}"
        return (200, {}, self._shown(url)) if url in self.orders else problem("malformed", "no such order", 404)

    def _authorization(self, rest: str, payload: object, header: dict[str, Any]) -> Reply:
        found = self.authorizations[f"{BASE}/authz/{rest}"]
        answered = next((one for one in found["challenges"] if one["status"] == "processing"), None)
        if answered is not None:
            found["polls"] += 1
            if found["polls"] >= self.polls_until_decided:
                error = self.verdict(answered["type"], found["identifier"]["value"])
                answered["status"] = found["status"] = "invalid" if error else "valid"
                if error:
                    answered["error"] = error
        return 200, {}, {name: value for name, value in found.items() if name != "polls"}

    def _challenge(self, rest: str, payload: object, header: dict[str, Any]) -> Reply:
        assert payload == {}
        kind, _, number = rest.partition("/")
        found = self.authorizations[f"{BASE}/authz/{number}"]
        challenge = next(one for one in found["challenges"] if one["type"] == kind)
        challenge["status"] = "processing"
        return 200, {}, challenge

    def _finalize(self, rest: str, payload: Any, header: dict[str, Any]) -> Reply:
        order = self.orders[f"{BASE}/order/{rest}"]
        if self._shown(f"{BASE}/order/{rest}")["status"] != "ready":
            return problem("orderNotReady", "not ready", 403)
        order |= {"status": "processing", "polls": 0, "csr": _unbase(payload["csr"])}
        return 200, {}, {**self._shown(f"{BASE}/order/{rest}")}

    def _certificate(self, rest: str, payload: object, header: dict[str, Any]) -> Reply:
        number, _, chain = rest.partition("/")
        order = self.orders[f"{BASE}/order/{number}"]
        index = int(chain or 0)
        links = ", ".join(
            f'<{BASE}/cert/{number}/{one}>;rel="alternate"' for one in range(len(self.roots)) if one != index
        )
        leaf = self.leaf(number, order, index)
        pems = [leaf, self.issuers[index].certificate, self.roots[index].certificate]
        return 200, {"Link": links}, b"".join(one.public_bytes(Encoding.PEM) for one in pems)

    def leaf(self, number: str, order: dict[str, Any], index: int = 0) -> x509.Certificate:
        """Return the certificate of an order."""
        if (key := f"{number}/{index}") not in self.certificates:
            csr = x509.load_der_x509_csr(order["csr"])
            names = [one["value"] for one in order["identifiers"]]
            self.certificates[key] = sign_leaf(
                self.issuers[index],
                cast(PublicKey, csr.public_key()),
                names,
                not_before=self.now - 60,
                not_after=self.now + 90 * 86_400,
            )
        return self.certificates[key]

    def _revoke(self, _: str, payload: Any, header: dict[str, Any]) -> Reply:
        serial = x509.load_der_x509_certificate(_unbase(payload["certificate"])).serial_number
        if serial in self.revoked:
            return problem("alreadyRevoked", "it is revoked", 400)
        self.revoked[serial] = payload["reason"]
        return 200, {}, b""


def new_csr(names: Sequence[str]) -> bytes:
    """Return a request for names with a new key."""
    sans: list[x509.GeneralName] = []
    for name in names:
        try:
            sans.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            sans.append(x509.DNSName(name))
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName(sans), critical=True)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        .public_bytes(Encoding.DER)
    )


def self_signed(name: str, now: float) -> bytes:
    """Return an unrelated certificate in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    at = datetime.fromtimestamp(now, UTC)
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(at).not_valid_after(at + timedelta(days=9))
        .sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    )  # fmt: skip


def _unbase(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
