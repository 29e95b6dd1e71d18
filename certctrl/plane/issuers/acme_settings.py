"""Check the settings of an ACME issuer, when it is added."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.plane.acme.accounts import Binding
from certctrl.plane.acme.http import Proxy, check_directory_url, check_proxy_url
from certctrl.plane.acme.jws import read_hmac_key
from certctrl.plane.challenges.making import check_challenges
from certctrl.plane.issuers.acme_budget import Budget, read_budget
from certctrl.plane.setting_hooks import SettingsClass, Unfit, flag, line, to_store, unread
from certctrl.text import kind_of, one_line

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
        found = _SETTINGS.stored(checked)
        return cls(
            directory_url=found.directory_url,
            contact=tuple(f"mailto:{one}" for one in found.contact),
            terms_agreed=found.terms_agreed,
            profile=found.profile,
            preferred_chain=found.preferred_chain,
            ca_file=Path(found.ca_file) if found.ca_file else None,
            other_hosts=found.other_hosts,
            proxy=_proxy(found.proxy, secrets),
            budget=read_budget(found.budget),
            binding=Binding(found.eab_kid, read_hmac_key(secrets[HMAC_KEY])) if found.eab_kid else None,
            challenges=found.challenges,
        )


@lean.frozen(kw_only=True)
class _Settings:
    """The settings as an operator writes them."""

    directory_url: str = ""
    contact: tuple[str, ...] = ()
    terms_agreed: bool = False
    profile: str = ""
    preferred_chain: str = ""
    eab_kid: str = ""
    ca_file: str = ""
    other_hosts: tuple[str, ...] = ()
    proxy: str = ""
    budget: str = DEFAULT_BUDGET
    challenges: Any = attrs.field(factory=list)


def checked_settings(settings: Mapping[str, Any], secrets: Mapping[str, bytes]) -> dict[str, Any]:
    """Return all settings with their defaults; raises ConfigError, which names the field."""
    found = _SETTINGS.given(settings)
    url = found.directory_url
    if not url:
        fix = f"set it to the URL of the CA's directory, or to one of {', '.join(DIRECTORIES)}"
        raise ConfigError("is not set", path="directory_url", fix=fix)
    found = attrs.evolve(
        found,
        directory_url=check_directory_url(DIRECTORIES.get(url, url)),
        proxy=check_proxy_url(found.proxy) if found.proxy else "",
        budget=found.budget or DEFAULT_BUDGET,
        challenges=check_challenges(found.challenges, secrets),
    )
    _check_binding(found.eab_kid, secrets)
    _check_ca_file(found.ca_file)
    read_budget(found.budget)
    _proxy(found.proxy, secrets)
    return to_store(found)


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


# --- hooks ---------------------------------------------------------------------------------------------------------


def _contact(value: Any, _: Any = None) -> tuple[str, ...]:
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or len(entries) > 10:
        raise Unfit(f"expected mail addresses, got {kind_of(value)}", "write one address")
    plain = [one.removeprefix("mailto:") if isinstance(one, str) else "" for one in entries if one != ""]
    for one in plain:
        if not _MAIL.fullmatch(one):
            raise Unfit(f"{one_line(one, 80) or 'an entry'} is not a mail address", "write name@example.com")
    return tuple(plain)


def _hosts(value: Any, _: Any = None) -> tuple[str, ...]:
    entries = [value] if isinstance(value, str) and value else value or []
    if not isinstance(entries, list) or not all(isinstance(one, str) and _HOST.fullmatch(one) for one in entries):
        raise Unfit("expected a list of hosts", "write HOST or HOST:PORT")
    return tuple(one.lower() for one in entries[:_MAX_ENTRIES])


def _profile(value: Any, _: Any = None) -> str:
    text: str = line()(value, str)
    if not _PROFILE.fullmatch(text):
        what, fix = (
            f"{one_line(text, 80)} is not the name of a profile",
            "write the name of a profile, as the CA announces it",
        )
        raise Unfit(what, fix)
    return text


_line = line(2000)
_SETTINGS = SettingsClass(
    _Settings,
    {
        "directory_url": _line,
        "contact": _contact,
        "terms_agreed": flag,
        "profile": _profile,
        "preferred_chain": _line,
        "eab_kid": _line,
        "ca_file": _line,
        "other_hosts": _hosts,
        "proxy": _line,
        "budget": _line,
        "challenges": unread,
    },
    unknown="unknown setting",
)
