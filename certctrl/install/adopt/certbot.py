"""Read certbot's lineages: ``renewal/NAME.conf``, whose links in ``live/NAME/`` lead to files in ``archive/NAME/``."""

from __future__ import annotations

import posixpath

import attrs

from certctrl import lean
from certctrl.install.adopt.sources import Sources
from certctrl.install.adopt.uses import At

FILES = {"cert": "certificate.pem", "chain": "chain.pem", "fullchain": "fullchain.pem", "privkey": "private.key"}
"""Key in a renewal configuration -> virtual file."""
_HOOKS = ("renew_hook", "post_hook", "pre_hook", "deploy_hook")


@lean.frozen(kw_only=True)
class Lineage:
    """A certificate that certbot renews."""

    name: str
    at: At
    files: tuple[tuple[str, str], ...]
    """Virtual file -> link below ``live/``."""
    renews: bool = True
    """Whether ``certbot renew`` renews it."""
    hooks: tuple[str, ...] = attrs.field(default=(), repr=False)
    """Commands that certbot runs at a renewal."""


def read_certbot(sources: Sources, directory: str) -> list[Lineage]:
    """Return the lineages of certbot's directory."""
    renewal = posixpath.join(directory, "renewal")
    found = []
    for name in sources.listed(renewal, At(renewal)):
        path = posixpath.join(renewal, name)
        if name.endswith(".conf"):
            with sources.opened(path, At(renewal)) as text:
                if text is not None and (lineage := _lineage(name.removesuffix(".conf"), path, text)) is not None:
                    found.append(lineage)
    return found


def _lineage(name: str, path: str, text: str) -> Lineage | None:
    """Return the lineage of a renewal configuration; None if it does not name all four files."""
    values: dict[str, str] = {}
    section = ""
    for line in text.split("\n"):
        plain = line.strip()
        if plain.startswith("["):
            section = plain.strip("[] \t")
        elif not plain.startswith("#") and section in ("", "renewalparams"):
            key, equals, value = (part.strip() for part in plain.partition("="))
            if equals:
                values[f"{section}.{key}" if section else key] = value.strip("'\"")
    files = tuple((virtual, values[key]) for key, virtual in FILES.items() if values.get(key, "").startswith("/"))
    if len(files) < len(FILES):
        return None
    hooks = tuple(hook for key in _HOOKS if (hook := values.get(f"renewalparams.{key}", "")) not in ("", "None"))
    renews = values.get("renewalparams.autorenew", "True").lower() not in ("false", "no", "off", "0")
    return Lineage(name=name, at=At(path), files=files, renews=renews, hooks=hooks)
