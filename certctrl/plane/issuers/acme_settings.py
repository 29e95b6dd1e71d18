"""Check the settings of an ACME issuer, when it is added."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.plane.acme.accounts import Binding
from certctrl.plane.acme.http import Proxy, check_directory_url, check_proxy_url
from certctrl.plane.acme.jws import read_hmac_key
from certctrl.plane.challenges.making import check_challenges
from certctrl.plane.issuers.acme_budget import Budget, read_budget
from certctrl.text import kind_of, nearest, one_line

DIRECTORIES: Mapping[str, str] = {
    "letsencrypt": "https://acme-v02.api.letsencrypt.org/directory",
    "letsencrypt-staging": "https://acme-staging-v02.api.letsencrypt.org/directory",
    "google": "https://dv.acme-v02.api.pki.goog/directory",
    "zerossl": "https://acme.zerossl.com/v2/DV90",
}
"""Short names for the directory URLs of public CAs."""
HMAC_KEY, PROXY_LOGIN = "eab_hmac_key", "proxy_login"
DEFAULT_BUDGET = "300/3h"
"""Let's Encrypt's limit for new orders."""
_KNOWN = (
    "directory_url", "contact", "terms_agreed", "profile", "preferred_chain", "eab_kid", "ca_file", "other_hosts", "proxy",
    "budget", "challenges",
)  # fmt: skip
_MAIL = re.compile(r"[^\s@,;:<>\"']{1,64}@[^\s@,;:<>\"']{1,190}")
_PROFILE = re.compile(r"[A-Za-z0-9._-]{0,64}")
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?")
_MAX_ENTRIES = 100


@lean.frozen(kw_only=True)
class AcmeSettings:
    """The settings of one ACME issuer."""

    directory_url: str
    contact: tuple[str, ...]
    """URLs, as ACME writes them."""
    terms_agreed: bool
    profile: str
    preferred_chain: str
    """Common name of the preferred root; empty: the CA's choice."""
    ca_file: Path | None
    other_hosts: tuple[str, ...]
    proxy: Proxy | None
    budget: Budget | None
    binding: Binding | None
    challenges: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, checked: Mapping[str, Any], secrets: Mapping[str, bytes]) -> AcmeSettings:
        """Return the settings that `checked_settings` has returned."""
        kid = checked["eab_kid"]
        return cls(
            directory_url=checked["directory_url"],
            contact=tuple(f"mailto:{one}" for one in checked["contact"]),
            terms_agreed=checked["terms_agreed"],
            profile=checked["profile"],
            preferred_chain=checked["preferred_chain"],
            ca_file=Path(checked["ca_file"]) if checked["ca_file"] else None,
            other_hosts=tuple(checked["other_hosts"]),
            proxy=_proxy(checked.get("proxy", ""), secrets),
            budget=read_budget(checked["budget"]),
            binding=Binding(kid, read_hmac_key(secrets[HMAC_KEY])) if kid else None,
            challenges=checked["challenges"],
        )


def checked_settings(settings: Mapping[str, Any], secrets: Mapping[str, bytes]) -> dict[str, Any]:
    """Return all settings with their defaults; raises ConfigError, which names the field."""
    for name in settings:
        if name not in _KNOWN:
            meant = nearest(name, _KNOWN)
            fix = f"write {meant}" if meant else f"use one of {', '.join(_KNOWN)}"
            raise ConfigError("unknown setting", path=one_line(name, 40), fix=fix)
    url = _text(settings, "directory_url")
    if not url:
        fix = f"set it to the URL of the CA's directory, or to one of {', '.join(DIRECTORIES)}"
        raise ConfigError("is not set", path="directory_url", fix=fix)
    checked: dict[str, Any] = {
        "directory_url": check_directory_url(DIRECTORIES.get(url, url)),
        "contact": _contact(settings.get("contact", [])),
        "terms_agreed": _flag(settings, "terms_agreed"),
        "profile": _matching(settings, "profile", _PROFILE, "the name of a profile"),
        "preferred_chain": _text(settings, "preferred_chain"),
        "eab_kid": _text(settings, "eab_kid"),
        "ca_file": _text(settings, "ca_file"),
        "other_hosts": _hosts(settings.get("other_hosts", [])),
        "proxy": check_proxy_url(proxy) if (proxy := _text(settings, "proxy")) else "",
        "budget": _text(settings, "budget") or DEFAULT_BUDGET,
        "challenges": check_challenges(settings.get("challenges", []), secrets),
    }
    _check_binding(checked["eab_kid"], secrets)
    _check_ca_file(checked["ca_file"])
    read_budget(checked["budget"])
    _proxy(checked["proxy"], secrets)
    return checked


def _proxy(url: str, secrets: Mapping[str, bytes]) -> Proxy | None:
    """Return the proxy of a URL and the secret login; raises ConfigError."""
    if not url:
        if PROXY_LOGIN in secrets:
            raise ConfigError("is given, but proxy is not set", path=PROXY_LOGIN, fix="set proxy to http://HOST:PORT")
        return None
    try:
        login = secrets.get(PROXY_LOGIN, b"").decode("utf-8").strip()
    except UnicodeDecodeError:
        login = "?"
    if login and (not login.isprintable() or ":" not in login):
        raise ConfigError("is not USER:PASSWORD", path=PROXY_LOGIN, fix="write user and password in one line")
    return Proxy(check_proxy_url(url), login)


def _check_binding(kid: str, secrets: Mapping[str, bytes]) -> None:
    if kid and HMAC_KEY not in secrets:
        raise ConfigError(
            "is set, but the secret eab_hmac_key is not", path="eab_kid", fix="give the HMAC key of the CA as a secret"
        )
    if HMAC_KEY in secrets:
        if not kid:
            raise ConfigError(
                "is given, but eab_kid is not set", path=HMAC_KEY, fix="set eab_kid to the key id that the CA shows"
            )
        read_hmac_key(secrets[HMAC_KEY])


def _check_ca_file(name: str) -> None:
    if not name:
        return
    if not Path(name).is_absolute():
        raise ConfigError("expected an absolute path", path="ca_file", fix="write the whole path, starting with /")
    try:
        if not Path(name).is_file():  # opening a pipe would block the plane
            raise FileNotFoundError(errno.ENOENT, "no such file, or not a regular one")
        with Path(name).open("rb") as file:
            start = file.read(1024 * 1024)
    except OSError as error:
        raise ConfigError(
            f"cannot read {one_line(name)}: {error.strerror}", path="ca_file", fix="name a readable PEM file"
        ) from None
    if b"-----BEGIN CERTIFICATE-----" not in start:
        raise ConfigError(f"{one_line(name)} contains no PEM certificate", path="ca_file", fix="name a PEM file")


def _contact(value: Any) -> list[str]:
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or len(entries) > 10:
        raise ConfigError(f"expected mail addresses, got {kind_of(value)}", path="contact", fix="write one address")
    plain = [one.removeprefix("mailto:") if isinstance(one, str) else "" for one in entries if one != ""]
    for one in plain:
        if not _MAIL.fullmatch(one):
            raise ConfigError(
                f"{one_line(one, 80) or 'an entry'} is not a mail address", path="contact", fix="write name@example.com"
            )
    return plain


def _hosts(value: Any) -> list[str]:
    entries = [value] if isinstance(value, str) and value else value or []
    if not isinstance(entries, list) or not all(isinstance(one, str) and _HOST.fullmatch(one) for one in entries):
        raise ConfigError("expected a list of hosts", path="other_hosts", fix="write HOST or HOST:PORT")
    return [one.lower() for one in entries[:_MAX_ENTRIES]]


def _text(settings: Mapping[str, Any], name: str) -> str:
    value = settings.get(name, "")
    if not isinstance(value, str) or len(value) > 2000 or not value.isprintable():
        raise ConfigError(f"expected one line of text, got {kind_of(value)}", path=name, fix="write text in quotes")
    return value.strip()


def _matching(settings: Mapping[str, Any], name: str, pattern: re.Pattern[str], what: str) -> str:
    text = _text(settings, name)
    if not pattern.fullmatch(text):
        raise ConfigError(f"{one_line(text, 80)} is not {what}", path=name, fix=f"write {what}, as the CA announces it")
    return text


def _flag(settings: Mapping[str, Any], name: str) -> bool:
    value = settings.get(name, False)
    if value in ("true", "false"):
        return bool(value == "true")
    if not isinstance(value, bool):
        raise ConfigError(f"expected true or false, got {kind_of(value)}", path=name, fix="write true or false")
    return value
