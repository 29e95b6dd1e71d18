"""The file of ``plane serve --oidc``: the OpenID provider and the roles that its claims grant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from certctrl.errors import ConfigError
from certctrl.plane.access.roles import Role
from certctrl.plane.setting_hooks import Hook, SettingsClass, Unfit, choice, line, texts
from certctrl.plane.settings import OidcSettings
from certctrl.plane.sign_in.http import ProviderError, check_url
from certctrl.text import kind_of

EXAMPLE = (
    '{"issuer": "https://id.example.com", "client_id": "certctrl", "client_secret": "…", "roles": {"ops": "operator"}}'
)


def read_settings(path: Path, text: str) -> OidcSettings:
    """Return the settings in the text of a file. Raises ConfigError with the field and its fix."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is not JSON: {error}", file=str(path), fix=f"write an object such as {EXAMPLE}") from None
    try:
        return _SETTINGS.given(value)
    except ConfigError as error:
        raise ConfigError(error.reason, file=str(path), path=error.path, fix=error.fix) from None


def _url(value: Any, _: Any = None) -> str:
    try:
        return check_url(line()(value, None))
    except ProviderError:
        raise Unfit(
            "is not an https URL", "write the issuer as the provider does, such as https://id.example.com"
        ) from None


def _roles(value: Any, _: Any = None) -> dict[str, str]:
    if not isinstance(value, Mapping) or not 0 < len(value) <= 100:
        raise Unfit(f"is {kind_of(value)}", 'use 1 to 100 entries such as {"ops": "operator"}')
    return {str(name): choice([str(one) for one in Role])(role, None) for name, role in value.items()}


def _secret(value: Any, _: Any = None) -> str:
    text = str(line()(value, None))
    if not text:
        raise Unfit("is empty", "write what the provider has given")
    return text


_HOOKS: dict[str, Hook] = {
    "issuer": _url,
    "client_id": _secret,
    "client_secret": _secret,
    "roles": _roles,
    "role_claim": line(),
    "name_claim": line(),
    "scopes": texts,
    "label": line(60),
    "ca_file": line(),
}
_SETTINGS = SettingsClass(OidcSettings, _HOOKS, unknown="is not a setting of an OpenID provider", example=EXAMPLE)
