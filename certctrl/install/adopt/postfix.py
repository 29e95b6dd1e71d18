"""Read Postfix's ``main.cf`` and ``master.cf``: the certificates of its SMTP server."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import attrs

from certctrl import lean
from certctrl.install.adopt.nginx import listen_place
from certctrl.install.adopt.sources import Sources
from certctrl.install.adopt.uses import AS_THEY_ARE, At, Service, Use, pair, probed
from certctrl.model.plan import StartTls, VerifyTls

_PARAMETER = re.compile(r"\$(?:(\w{1,100})|\{(\w{1,100})\}|\((\w{1,100})\))")
_DEEPEST = 10
_PAIRS = (
    ("smtpd_tls_cert_file", "smtpd_tls_key_file"),
    ("smtpd_tls_eccert_file", "smtpd_tls_eckey_file"),
    ("smtpd_tls_dcert_file", "smtpd_tls_dkey_file"),
)
_DEFAULTS = {key: f"${certificate}" for certificate, key in _PAIRS}
_CHAINS = "smtpd_tls_chain_files"
_CLIENT = ("smtp_tls_cert_file", "smtp_tls_eccert_file", "smtp_tls_chain_files")
_PORTS = {"smtp": 25, "submission": 587, "submissions": 465, "smtps": 465}
_YES = ("yes", "encrypt", "may", "must")


class _Value(NamedTuple):
    text: str
    at: At


@lean.define(eq=False)
class _Server:
    """An entry of master.cf that runs smtpd."""

    at: At
    place: str
    overrides: dict[str, str] = attrs.field(factory=dict)


def read_postfix(sources: Sources, path: str) -> list[Use]:
    """Return the certificates of ``main.cf`` and of the ``master.cf`` next to it."""
    directory = posixpath.dirname(path)
    with sources.opened(path, At(path)) as text:
        settings = _settings(text or "", path)
    settings.setdefault("config_directory", _Value(directory, At(path)))
    for name in _CLIENT:
        if name in settings and settings[name].text:
            what = f"the certificate of a client is not taken over: {name} = {settings[name].text}"
            sources.remark(settings[name].at, what)
    if "tls_server_sni_maps" in settings and settings["tls_server_sni_maps"].text:
        what = "the certificates of tls_server_sni_maps are copied into its table, so they are not taken over"
        sources.remark(settings["tls_server_sni_maps"].at, what, "use smtpd_tls_chain_files with one certificate")
    master = posixpath.join(directory, "master.cf")
    with sources.opened(master, At(path)) as text:
        servers = list(_servers(text or "", master))
    reader = _Reader(sources, directory, settings)
    found = [use for server in servers for use in reader.uses(server)] or list(reader.uses(None))
    first = {use.files: use for use in reversed(found)}  # the first server of each certificate proves it
    return list(reversed(first.values()))


class _Reader:
    def __init__(self, sources: Sources, directory: str, settings: Mapping[str, _Value]) -> None:
        self._sources, self._directory, self._settings = sources, directory, settings

    def uses(self, server: _Server | None) -> Iterator[Use]:
        """Yield the certificates of one entry of master.cf; None: of all."""
        settings = dict(self._settings)
        if server is not None:
            settings |= {name: _Value(text, server.at) for name, text in server.overrides.items()}
        names = tuple(filter(None, [self._expanded("$myhostname", settings)]))
        endpoint = _endpoint(server, settings, names)
        for files, at in self._files(settings):
            yield Use(service=Service.POSTFIX, at=at, files=files, names=names, endpoint=endpoint)

    def _files(self, settings: Mapping[str, _Value]) -> Iterator[tuple[tuple[tuple[str, str], ...], At]]:
        chains = settings.get(_CHAINS, _Value("", At("")))
        if chains.text:  # takes precedence over the older settings
            yield from self._chains(chains, settings)
            return
        for certificate_name, key_name in _PAIRS:
            value = settings.get(certificate_name)
            if value is None or value.text in ("", "none"):
                continue
            key = settings.get(key_name, _Value(_DEFAULTS[key_name], value.at)).text
            certificate = self._path(value.text, value.at, settings)
            if certificate and (path := self._path(key, value.at, settings)):
                yield pair(certificate, path), value.at

    def _chains(
        self, value: _Value, settings: Mapping[str, _Value]
    ) -> Iterator[tuple[tuple[tuple[str, str], ...], At]]:
        """Read a list of files: each has key and certificate, or the key is in one and the certificate in the next."""
        paths = [self._path(text, value.at, settings) for text in re.split(r"[,\s]+", value.text) if text]
        if all(paths):
            yield tuple((AS_THEY_ARE, path) for path in paths), value.at

    def _path(self, text: str, at: At, settings: Mapping[str, _Value]) -> str:
        """Return an absolute path; empty, with a remark, if it cannot be known."""
        found = self._expanded(text, settings)
        if not found:
            self._sources.remark(
                at, f"{text} is not a path: a parameter is not set in main.cf", "write the path itself"
            )
            return ""
        if ":" in found.partition("/")[0]:
            self._sources.remark(at, f"{found} is a table, not a file", "write the path itself")
            return ""
        return posixpath.normpath(posixpath.join(self._directory, found))

    def _expanded(self, text: str, settings: Mapping[str, _Value]) -> str:
        """Return a value with the parameters that main.cf sets; empty if one is not set there."""
        for _ in range(_DEEPEST):
            names = ["".join(groups) for groups in _PARAMETER.findall(text)]
            known = {name: settings[name].text for name in names if name in settings}
            known |= {name: _DEFAULTS[name] for name in names if name in _DEFAULTS and name not in settings}
            if not known.keys() >= set(names):
                return ""
            if not names:
                return "" if "$" in text else text
            text = _substituted(text, known)[:4096]
        return ""


def _substituted(text: str, known: Mapping[str, str]) -> str:
    def value_of(found: re.Match[str]) -> str:
        return known["".join(filter(None, found.groups()))]

    return _PARAMETER.sub(value_of, text)


def _endpoint(server: _Server | None, settings: Mapping[str, _Value], names: tuple[str, ...]) -> VerifyTls | None:
    place = listen_place(_numbered(server.place if server is not None else "smtp"), default=25)
    level = settings["smtpd_tls_security_level"].text if "smtpd_tls_security_level" in settings else ""
    older = settings["smtpd_use_tls"].text if "smtpd_use_tls" in settings else ""
    wrapped = "smtpd_tls_wrappermode" in settings and settings["smtpd_tls_wrappermode"].text == "yes"
    proxied = any(name in settings and settings[name].text for name in ("smtpd_upstream_proxy_protocol",))
    if place is None or proxied or not (wrapped or level in _YES or older in _YES):
        return None
    found = probed(*place, names)
    return found if wrapped else attrs.evolve(found, starttls=StartTls.SMTP)


def _numbered(place: str) -> str:
    host, colon, port = place.rpartition(":")
    return f"{host}{colon}{_PORTS.get(port, port)}"


def _settings(text: str, path: str) -> dict[str, _Value]:
    """Return the parameters of main.cf; the last one of a name counts."""
    found = {}
    for line, whole in _logical_lines(text):
        name, equals, value = whole.partition("=")
        if equals:
            found[name.strip()] = _Value(value.strip(), At(path, line))
    return found


def _servers(text: str, path: str) -> Iterator[_Server]:
    """Yield the entries of master.cf that run smtpd, or postscreen in front of it, at a port."""
    for line, whole in _logical_lines(text):
        words = whole.split()
        if len(words) < 8 or words[1] not in ("inet", "pass") or words[7] not in ("smtpd", "postscreen"):
            continue
        overrides = {}
        for option, value in pairwise(words[8:]):
            if option == "-o":
                name, _, text = value.partition("=")
                overrides[name] = text
        yield _Server(At(path, line), words[0], overrides)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each logical line: a line that begins with white space continues the last one."""
    parts: list[str] = []
    begun = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not line[0].isspace():
            if parts:
                yield begun, " ".join(parts)
            parts, begun = [], number
        parts.append(line.strip())
    if parts:
        yield begun, " ".join(parts)
