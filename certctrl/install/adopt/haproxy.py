"""Read HAProxy's configuration: ``crt`` and ``crt-list`` of each ``bind`` line, and directories of certificates."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence

from certctrl.install.adopt.nginx import listen_place
from certctrl.install.adopt.sources import Kind, Sources
from certctrl.install.adopt.uses import At, Service, Use, probed
from certctrl.model.plan import VerifyTls

_WORD = re.compile(r""" \#.* | (?: \\. | "(?:[^"\\]|\\.)*" | '[^']*' | [^\s\\"'#] )+ """, re.VERBOSE)
_PART = re.compile(r"""\\(.)|"((?:[^"\\]|\\.)*)"|'([^']*)'|([^\\"']+)""")
_SECTIONS = (
    "global", "defaults", "frontend", "backend", "listen", "peers", "mailers", "resolvers", "userlist", "program",
    "http-errors", "ring", "log-forward", "cache", "fcgi-app", "crt-store", "traces", "acme",
)  # fmt: skip
_EXTRAS = (".key", ".ocsp", ".issuer", ".sctl", ".dh")
"""Endings of files that belong to the certificate of the same name."""
_KINDS = (".rsa", ".ecdsa", ".dsa")
"""Endings of the certificates of a bundle, whose own name does not exist."""
_MODES = ("ipv4@", "ipv6@", "tcp@", "tcp4@", "tcp6@", "quic4@", "quic6@")


def read_haproxy(sources: Sources, path: str) -> list[Use]:
    """Return the certificates of a configuration file, or of all ``.cfg`` files of a directory."""
    reader = _Reader(sources)
    at = At(path)
    if sources.files.kind(path) is Kind.DIR:
        files = [posixpath.join(path, name) for name in sources.listed(path, at) if name.endswith(".cfg")]
    else:
        files = [path]
    return [use for file in files for use in reader.read(file, at)]


class _Reader:
    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._base = ""

    def read(self, path: str, by: At) -> Iterator[Use]:
        with self._sources.opened(path, by) as text:
            section = ""
            for number, line in enumerate((text or "").split("\n"), start=1):
                words = _words(line)
                if not words:
                    continue
                at = At(path, number)
                if words[0] in _SECTIONS:
                    section = words[0]
                elif section == "global" and words[0] == "crt-base" and words[1:]:
                    self._base = words[1]
                elif words[0] == "bind" and "ssl" in words:
                    yield from self._bind(words[1:], at)
                elif words[0] in ("server", "default-server") and "crt" in words:
                    self._client_certificate(words, at)
                elif section == "crt-store" and words[0] == "load":
                    what = "a certificate of a crt-store is not read"
                    self._sources.remark(at, what, "give the paths of its files to `adopt`")

    def _client_certificate(self, words: Sequence[str], at: At) -> None:
        self._sources.remark(at, f"the certificate of a client is not taken over: {_after(words, 'crt')}")

    def _bind(self, words: Sequence[str], at: At) -> Iterator[Use]:
        endpoint = _endpoint(words)
        for number, word in enumerate(words[:-1]):
            if word == "crt":
                yield from self._certificate(words[number + 1], at, endpoint, ())
            elif word == "crt-list":
                yield from self._list(words[number + 1], at, endpoint)

    def _list(self, file: str, at: At, endpoint: VerifyTls | None) -> Iterator[Use]:
        """Read a crt-list: a file on each line, then options in brackets, then names."""
        if self._is_variable(file, at):
            return
        with self._sources.opened(posixpath.join("/", file), at) as text:
            for number, line in enumerate((text or "").split("\n"), start=1):
                plain = re.sub(r"\[[^\]]*\]", " ", line.partition("#")[0])
                words = plain.split()
                if words:
                    names = tuple(word for word in words[1:] if not word.startswith("!"))
                    yield from self._certificate(words[0], At(file, number), endpoint, names)

    def _certificate(self, text: str, at: At, endpoint: VerifyTls | None, names: tuple[str, ...]) -> Iterator[Use]:
        if self._is_variable(text, at):
            return
        path = posixpath.normpath(posixpath.join("/", self._base, text))
        kind = self._sources.files.kind(path)
        if kind is Kind.DIR:
            for name in self._sources.listed(path, at):
                if not name.startswith(".") and not name.endswith(_EXTRAS):
                    yield self._use(posixpath.join(path, name), at, endpoint, names)
        elif kind is Kind.MISSING and (several := [path + end for end in _KINDS if self._is_file(path + end)]):
            for one in several:
                yield self._use(one, at, endpoint, names)
        else:
            yield self._use(path, at, endpoint, names)

    def _use(self, path: str, at: At, endpoint: VerifyTls | None, names: tuple[str, ...]) -> Use:
        if self._is_file(f"{path}.ocsp"):
            what = f"{path}.ocsp is of the present certificate, and is not updated"
            self._sources.remark(at, what, f"remove {path}.ocsp")
        if endpoint is not None and names:
            endpoint = probed(endpoint.host, endpoint.port, names)
        return Use(service=Service.HAPROXY, at=at, files=(("combined.pem", path),), names=names, endpoint=endpoint)

    def _is_file(self, path: str) -> bool:
        return self._sources.files.kind(path) is Kind.FILE

    def _is_variable(self, text: str, at: At) -> bool:
        if "$" in text or text.startswith("@"):
            self._sources.remark(
                at, f"{text} is not a path: its value is known to haproxy only", "write the path itself"
            )
            return True
        return False


def _endpoint(words: Sequence[str]) -> VerifyTls | None:
    """Return where a ``bind`` line can be probed; None for sockets, ranges of ports, and the PROXY protocol."""
    if "accept-proxy" in words or not words:
        return None
    for text in words[0].split(","):
        for mode in _MODES:
            text = text.removeprefix(mode)
        bare = text if text.startswith("[") else _bracketed(text)
        place = None if "@" in text or text.startswith("/") else listen_place(bare, default=0)
        if place is not None:
            return probed(*place)
    return None


def _bracketed(text: str) -> str:
    """Return ``:::443`` and ``fd00::1:443``, as haproxy accepts them, in the usual form."""
    host, _, port = text.rpartition(":")
    return f"[{host}]:{port}" if ":" in host else text


def _words(line: str) -> list[str]:
    """Return the words of a line without comment; quotes and escapes are removed."""
    found = []
    for word in _WORD.findall(line):
        if word.startswith("#"):
            break
        found.append("".join(map("".join, _PART.findall(word))))
    return found


def _after(words: Iterable[str], name: str) -> str:
    """Return the word after another one."""
    rest = iter(words)
    return next(rest, "") if name in rest else ""
