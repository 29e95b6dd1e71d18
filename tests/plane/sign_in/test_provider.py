"""ID tokens that are accepted, and all that are not; keys that change; settings."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs
import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from certctrl.errors import ConfigError
from certctrl.plane.access.roles import Role
from certctrl.plane.settings import OidcSettings
from certctrl.plane.sign_in.file import read_settings
from certctrl.plane.sign_in.http import ProviderError, check_url
from certctrl.plane.sign_in.provider import Attempt, Provider, provider_of

NOW = 1_790_000_000.0
ISSUER = "https://id.example"
SETTINGS = OidcSettings(
    issuer=ISSUER,
    client_id="plane",
    client_secret="s3cret&",
    roles={"ops": "operator", "root": "admin", "all": "viewer"},
)
BACK = "https://plane.test/device/oidc/callback"
KEY = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
CURVE = ec.generate_private_key(ec.SECP256R1())
ATTEMPT = Attempt.new()


def published(key: Any, key_id: str) -> dict[str, Any]:
    kind = jwt.algorithms.ECAlgorithm if key is CURVE else jwt.algorithms.RSAAlgorithm
    return json.loads(kind.to_jwk(key.public_key())) | {"kid": key_id, "use": "sig"}


class Scripted:
    """A provider without a network."""

    def __init__(self) -> None:
        self.keys = [published(KEY, "one"), {"kty": "RSA", "kid": "broken"}, published(CURVE, "curve")]
        self.token = ""
        self.fetched: list[str] = []
        self.form: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.metadata = {
            "issuer": ISSUER, "authorization_endpoint": f"{ISSUER}/authorize?tenant=1", "token_endpoint": f"{ISSUER}/token",
            "jwks_uri": f"{ISSUER}/jwks",
        }  # fmt: skip

    async def get(self, url: str) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self.fetched.append(url.removeprefix(ISSUER))
        return {"keys": self.keys} if url.endswith("/jwks") else self.metadata

    async def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self.form, self.headers = dict(form), dict(headers)
        return {"id_token": self.token}


@pytest.fixture
def remote() -> Scripted:
    return Scripted()


@pytest.fixture
def provider(remote: Scripted) -> Provider:
    return Provider(SETTINGS, remote, lambda: NOW)


def claims(**changes: Any) -> dict[str, Any]:
    made = {
        "iss": ISSUER, "aud": "plane", "sub": "u1", "exp": NOW + 300, "iat": NOW, "nonce": ATTEMPT.nonce,
        "email": "Alice@Example.com", "groups": ["ops", "other", "all"],
    } | changes  # fmt: skip
    return {name: value for name, value in made.items() if value is not None}


def signed(key: Any = KEY, key_id: str = "one", algorithm: str = "RS256", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers={"kid": key_id})


async def test_a_person_signs_in(provider: Provider, remote: Scripted) -> None:
    url = urlsplit(await provider.authorization_url(ATTEMPT, BACK))
    sent = {name: values[0] for name, values in parse_qs(url.query).items()}
    challenge = base64.urlsafe_b64encode(hashlib.sha256(ATTEMPT.verifier.encode()).digest()).rstrip(b"=").decode()
    assert sent == {
        "tenant": "1", "response_type": "code", "client_id": "plane", "redirect_uri": BACK, "scope": "openid profile email",
        "state": ATTEMPT.state, "nonce": ATTEMPT.nonce, "code_challenge": challenge, "code_challenge_method": "S256",
    }  # fmt: skip
    remote.token = signed()
    person = await provider.person("code", ATTEMPT, BACK)
    assert (person.subject, person.name, person.role) == ("https://id.example u1", "alice@example.com", Role.OPERATOR)
    assert remote.form == {
        "grant_type": "authorization_code", "code": "code", "redirect_uri": BACK, "code_verifier": ATTEMPT.verifier,
    }  # fmt: skip
    assert base64.b64decode(remote.headers["authorization"].split()[1]) == b"plane:s3cret%26"
    assert "s3cret" not in repr(SETTINGS) and ATTEMPT.verifier not in repr(ATTEMPT)


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        (["all", "root", "ops"], Role.ADMIN), ("all", Role.VIEWER), ([], None), (None, None), ({"root": 1}, None),
        ([["root"], 3, None], None), ("ROOT", None),
    ],
)  # fmt: skip
async def test_roles_come_from_a_claim(provider: Provider, remote: Scripted, groups: Any, role: Role | None) -> None:
    remote.token = signed(groups=groups)
    assert (await provider.person("code", ATTEMPT, BACK)).role == role


def unsigned() -> str:
    return jwt.encode(claims(), None, "none")


def with_public_key_as_secret() -> str:
    """Return a token that is signed with the public key, as if it were the secret of HMAC."""
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"one"}').rstrip(b"=").decode()
    body = jwt.encode(claims(), "x" * 32, "HS256").split(".")[1]
    return f"{head}.{body}.AAAA"


@pytest.mark.parametrize(
    "token",
    [
        lambda: signed(iss="https://evil.example"), lambda: signed(aud="other"), lambda: signed(aud=["plane", "other"]),
        lambda: signed(aud=["plane", "other"], azp="other"), lambda: signed(exp=NOW - 61), lambda: signed(iat=NOW + 61),
        lambda: signed(nbf=NOW + 61), lambda: signed(nbf=True), lambda: signed(iat=True), lambda: signed(exp=True),
        lambda: signed(sub="x" * 256), lambda: signed(exp=None), lambda: signed(nonce="other"),
        lambda: signed(nonce=None), lambda: signed(sub=None), lambda: signed(sub=""), lambda: signed(OTHER),
        lambda: signed(sub="\ud800"), lambda: signed(sub="a\0"), lambda: signed(sub="a b\n"), lambda: signed(nonce="\ud800"),
        lambda: signed(OTHER, "unknown"), lambda: signed(key_id="broken"), lambda: signed(key_id="curve"),
        lambda: signed(email=None), lambda: signed(email=3), lambda: signed(email_verified=False), unsigned,
        with_public_key_as_secret, lambda: "a.b.c", lambda: "", lambda: "x" * 40_000, lambda: signed()[:-8] + "AAAAAAAA",
    ],
)  # fmt: skip
async def test_other_tokens_are_refused(provider: Provider, remote: Scripted, token: Any) -> None:
    remote.token = token()
    with pytest.raises(ProviderError):
        await provider.person("code", ATTEMPT, BACK)


async def test_several_audiences_and_other_algorithms(provider: Provider, remote: Scripted) -> None:
    remote.token = signed(aud=["plane", "other"], azp="plane")
    assert (await provider.person("code", ATTEMPT, BACK)).role
    remote.token = signed(CURVE, "curve", "ES256", exp=NOW - 59)
    assert (await provider.person("code", ATTEMPT, BACK)).role


async def test_a_key_for_encryption_signs_nothing(provider: Provider, remote: Scripted) -> None:
    remote.keys, remote.token = [published(KEY, "one") | {"use": "enc"}], signed()
    with pytest.raises(ProviderError, match="does not publish"):
        await provider.person("code", ATTEMPT, BACK)


async def test_limits_that_are_just_kept(provider: Provider, remote: Scripted) -> None:
    remote.token = signed(sub="x" * 255, iat=NOW + 60, nbf=NOW + 60)
    assert (await provider.person("code", ATTEMPT, BACK)).subject == f"{ISSUER} {'x' * 255}"


async def test_an_issuer_may_end_with_a_slash(remote: Scripted) -> None:
    remote.metadata["issuer"] = f"{ISSUER}/"
    await Provider(attrs.evolve(SETTINGS, issuer=f"{ISSUER}/"), remote, lambda: NOW).authorization_url(ATTEMPT, BACK)
    assert remote.fetched == ["/.well-known/openid-configuration"]


def test_a_provider_with_a_ca_of_its_own(tmp_path: Path) -> None:
    assert provider_of(SETTINGS, lambda: NOW).label == "single sign-on"
    ca = tmp_path / "ca.pem"
    ca.write_text("not a certificate")
    with pytest.raises(ConfigError, match=re.escape(str(ca))):
        provider_of(attrs.evolve(SETTINGS, ca_file=str(ca)), lambda: NOW)


async def test_keys_are_kept_and_change(remote: Scripted, provider: Provider, autojump_clock: trio.abc.Clock) -> None:
    remote.token = signed()
    for _ in range(3):
        await provider.person("code", ATTEMPT, BACK)
    assert remote.fetched == ["/.well-known/openid-configuration", "/jwks"]
    remote.keys, remote.token = [published(OTHER, "two")], signed(OTHER, "two")
    for _ in range(3):
        with pytest.raises(ProviderError, match="does not publish"):
            await provider.person("code", ATTEMPT, BACK)
    assert remote.fetched.count("/jwks") == 1, "at most twice a minute"
    await trio.sleep(31)
    assert (await provider.person("code", ATTEMPT, BACK)).role
    remote.token = signed()
    with pytest.raises(ProviderError, match="does not publish"):
        await provider.person("code", ATTEMPT, BACK)
    await trio.sleep(3601)
    remote.keys = []
    remote.token = signed(OTHER, "two")
    with pytest.raises(ProviderError, match="does not publish"):
        await provider.person("code", ATTEMPT, BACK)


async def test_a_key_without_a_name(remote: Scripted, provider: Provider) -> None:
    remote.token = jwt.encode(claims(), KEY, "RS256")
    with pytest.raises(ProviderError, match="does not publish"):
        await provider.person("code", ATTEMPT, BACK)
    only = Provider(SETTINGS, remote, lambda: NOW)
    remote.keys = [published(KEY, "one")]
    assert (await only.person("code", ATTEMPT, BACK)).role


async def test_metadata_of_another_provider(remote: Scripted, provider: Provider) -> None:
    remote.metadata["issuer"] = f"{ISSUER}/"
    with pytest.raises(ProviderError, match="calls itself"):
        await provider.authorization_url(ATTEMPT, BACK)
    remote.metadata |= {"issuer": ISSUER, "authorization_endpoint": "http://id.example/authorize"}
    with pytest.raises(ProviderError, match="not an https URL"):
        await provider.authorization_url(ATTEMPT, BACK)
    remote.metadata["authorization_endpoint"] = f"{ISSUER}/authorize"
    for name in ("token_endpoint", "jwks_uri"):
        metadata = dict(remote.metadata)
        remote.metadata[name], remote.token = "http://127.0.0.1:9090/", signed()
        with pytest.raises(ProviderError, match="not an https URL"):
            await Provider(SETTINGS, remote, lambda: NOW).person("code", ATTEMPT, BACK)
        remote.metadata = metadata


async def test_a_published_private_key_counts_as_its_public_half(remote: Scripted, provider: Provider) -> None:
    remote.keys = [json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY)) | {"kid": "one"}]
    remote.token = signed()
    assert (await provider.person("code", ATTEMPT, BACK)).role


@pytest.mark.parametrize(
    "url",
    [
        "https://x/\r\ny:z",
        "https://x/\ty",
        "http://id.example",
        "ftp://x",
        "https://",
        "https://u@x",
        "https://x:99999",
        "x",
        "",
    ],
)
def test_urls(url: str) -> None:
    with pytest.raises(ProviderError):
        check_url(url)


GOOD = {"issuer": ISSUER, "client_id": "plane", "client_secret": "s3cret", "roles": {"ops": "operator"}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"issuer": "http://id.example"}, "issuer is not an https URL"),
        ({"roles": {"ops": "operater"}}, "use 'operator'"),
        ({"roles": {}}, "roles"),
        ({"role_clam": "x"}, "use 'role_claim'"),
        ({"client_secret": ""}, "client_secret"),
        ({"client_secret": None}, "client_secret"),
    ],
)
def test_settings(change: dict[str, object], said: str, tmp_path: Path) -> None:
    made = read_settings(tmp_path / "oidc", json.dumps(GOOD))
    assert (made.role_claim, made.label) == ("groups", "single sign-on")
    with pytest.raises(ConfigError) as raised:
        read_settings(tmp_path / "oidc", json.dumps(GOOD | change))
    shown = f"{raised.value} {raised.value.fix}"
    assert said in shown.replace(": ", " ") or said in shown, shown
    assert "s3cret" not in shown


def test_settings_that_are_not_json(tmp_path: Path) -> None:
    for text in ("{", "[]", '"x"'):
        with pytest.raises(ConfigError):
            read_settings(tmp_path / "oidc", text)
