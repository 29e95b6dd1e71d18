"""Read Apache's configuration: the certificates of virtual hosts with ``SSLEngine on``."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence

import attrs

from certctrl import lean
from certctrl.install.adopt.nginx import listen_place
from certctrl.install.adopt.sources import Kind, Sources
from certctrl.install.adopt.uses import At, Service, Use, pair, probed
from certctrl.model.plan import VerifyTls

_WORD = re.compile(
    r""" "(?P<double>(?:[^"\\]|\\.)*)" | '(?P<single>(?:[^'\\]|\\.)*)' | (?P<plain>[^\s"']\S*) """, re.VERBOSE
)
_ESCAPE = re.compile(r"""\\(["'\\])""")
_VARIABLE = re.compile(r"\$\{(\w{1,100})\}")
_HTTPS = 443
MAX_WORD = 4096
"""Characters of a word with variables; no path is longer."""


@lean.define(eq=False)
class _Host:
    """A virtual host, or the main server."""

    places: list[str] = attrs.field(factory=list)
    engine: str = ""
    certificates: list[tuple[str, At]] = attrs.field(factory=list)
    keys: list[str] = attrs.field(factory=list)
    chain: str = ""
    names: list[str] = attrs.field(factory=list)


def read_apache(sources: Sources, path: str) -> list[Use]:
    """Return the certificates of a configuration; relative paths start at ``ServerRoot``."""
    reader = _Reader(sources, posixpath.dirname(path))
    reader.read(path, At(path))
    return [use for host in reader.hosts for use in reader.uses_of(host)]


class _Reader:
    def __init__(self, sources: Sources, root: str) -> None:
        self.main = _Host()
        self.hosts: list[_Host] = []
        self._sources, self._root = sources, root.removesuffix("/conf")  # Red Hat: /etc/httpd/conf/httpd.conf
        self._defines: dict[str, str] = {}
        self._listens: list[list[str]] = []
        self._host = self.main
        self._macros = 0

    def read(self, path: str, by: At) -> None:
        with self._sources.opened(path, by) as text:
            for line, words in _lines(text or ""):
                self._directive(words, At(path, line))

    def _directive(self, words: Sequence[str], at: At) -> None:
        name, values = words[0].lower(), [self._expanded(word) for word in words[1:]]
        if name in ("<macro", "</macro>"):
            self._macros = max(0, self._macros + (1 if name == "<macro" else -1))
            if name == "<macro":
                self._sources.remark(at, "a macro is not read", "give the paths of its certificates to `adopt`")
        elif self._macros or not (values or name == "</virtualhost>"):
            return
        elif name in ("include", "includeoptional"):
            self._include(values[0], at, optional=name != "include")
        elif name == "serverroot":
            self._root = values[0]
        elif name == "define":
            self._defines[values[0]] = values[1] if len(values) > 1 else ""
        elif name == "listen":
            self._listens.append(values)
        elif name == "mdomain":
            self._sources.remark(
                at, "Apache itself orders the certificates of MDomain", "remove MDomain to have others"
            )
        else:
            self._of_host(name, values, at)

    def _of_host(self, name: str, values: list[str], at: At) -> None:
        match name:
            case "<virtualhost":
                places = [value.rstrip(">") for value in values]
                self._host = _Host(places=[place for place in places if place])
                self.hosts.append(self._host)
            case "</virtualhost>":
                self._host = self.main
            case "sslengine":
                self._host.engine = values[0].lower()
            case "sslcertificatefile":
                self._host.certificates.append((values[0], at))
            case "sslcertificatekeyfile":
                self._host.keys.append(values[0])
            case "sslcertificatechainfile":
                self._host.chain = values[0]
            case "servername":
                self._host.names.insert(0, _server_name(values[0]))
            case "serveralias":
                self._host.names += values

    def _expanded(self, word: str) -> str:
        """Return a word with the variables that the configuration itself defines."""
        if "${" not in word:
            return word
        return _VARIABLE.sub(lambda found: self._defines.get(found[1], found[0]), word[:MAX_WORD])[:MAX_WORD]

    def _include(self, pattern: str, at: At, *, optional: bool) -> None:
        if "${" in pattern:
            self._sources.remark(at, f"{pattern} is not read: the variable is not defined in the configuration")
            return
        todo, depth = list(reversed(self._sources.included(self._path(pattern), at))), 0
        while todo and depth < 10_000:
            path, depth = todo.pop(), depth + 1
            kind = self._sources.files.kind(path)
            if kind is Kind.DIR:  # a directory means all files below it
                todo += [posixpath.join(path, name) for name in reversed(self._sources.listed(path, at))]
            elif kind is not Kind.MISSING or not optional:
                self.read(path, at)

    def _path(self, text: str) -> str:
        return posixpath.normpath(posixpath.join(self._root, text))

    def uses_of(self, host: _Host) -> list[Use]:
        """Return the certificates of a virtual host, its own or the main server's."""
        if (host.engine or self.main.engine) not in ("on", "optional"):
            return []
        owner = host if host.certificates else self.main
        keys, chain, found = host.keys or self.main.keys, host.chain or self.main.chain, []
        for number, (certificate, at) in enumerate(owner.certificates):
            key = keys[number] if number < len(keys) else certificate
            if not self._is_path(at, certificate, key, chain):
                continue
            files = pair(self._path(certificate), self._path(key), leaf_only=bool(chain))
            if chain:
                files += (("chain.pem", self._path(chain)),)
            names = tuple(host.names)
            found.append(Use(service=Service.APACHE, at=at, files=files, names=names, endpoint=self._endpoint(host)))
        return found

    def _is_path(self, at: At, *values: str) -> bool:
        for value in values:
            if "${" in value or value.startswith("pkcs11:"):
                why = "it is in a token" if value.startswith("pkcs11:") else "the variable is not defined here"
                self._sources.remark(at, f"{value} is not a path: {why}", "write the path itself")
                return False
        return True

    def _endpoint(self, host: _Host) -> VerifyTls | None:
        """Return where a virtual host can be probed; without a port in its address, at the first port for TLS."""
        ports = [
            place[1]
            for words in self._listens
            if (place := listen_place(words[0], default=0)) and (place[1] == _HTTPS or words[1:] == ["https"])
        ]
        for text in sorted(host.places, key=lambda text: text.startswith("[")):
            plain = text.replace("_default_", "*").removesuffix(":*")
            place = listen_place(plain if not plain.isdecimal() else "", default=ports[0] if ports else _HTTPS)
            if place is not None:
                return probed(*place, tuple(host.names))
        return None


def _server_name(text: str) -> str:
    """Return the name of ``ServerName [scheme://]name[:port]``."""
    return text.rpartition("://")[2].partition(":")[0]


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and words of each directive; a line that ends in a backslash continues."""
    parts: list[str] = []
    begun = 0
    for number, line in enumerate(text.split("\n"), start=1):
        begun = begun if parts else number
        if line.endswith("\\"):
            parts.append(line[:-1])
            continue
        whole = "".join((*parts, line)).strip()
        parts = []
        if whole and not whole.startswith("#"):
            words = [_ESCAPE.sub(r"\1", found[found.lastgroup or 0]) for found in _WORD.finditer(whole)]
            if words:
                yield begun, words
