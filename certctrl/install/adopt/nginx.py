"""Read nginx's configuration: ``ssl_certificate`` and ``ssl_certificate_key`` of each server that listens with TLS."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import attrs

from certctrl import lean
from certctrl.install.adopt.sources import Sources
from certctrl.install.adopt.uses import At, Service, Use, pair, probed
from certctrl.model.plan import StartTls, VerifyTls

_TOKEN = re.compile(
    r"""
    (?P<space> \s+ | \#[^\n]* )
  | "(?P<double> (?: [^"\\] | \\. )* )"
  | '(?P<single> (?: [^'\\] | \\. )* )'
  | (?P<mark> [;{}] )
  | (?P<word> (?!["']) (?: \\. | \$\{\w{0,100}\} | [^\s;{}\\] )+ )
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_BLOCKS = ("http", "mail", "stream", "server")
_PROTOCOLS = {one.value: one for one in (StartTls.SMTP, StartTls.IMAP, StartTls.POP3)}
_FOREIGN = ("data:", "engine:", "store:", "$")
"""Values of ``ssl_certificate`` that are not paths."""


class _Token(NamedTuple):
    text: str
    line: int
    is_mark: bool


@lean.define(eq=False)
class _Block:
    """A block whose settings servers inherit, or a server."""

    kind: str
    outer: _Block | None
    certificates: list[tuple[str, At]] = attrs.field(factory=list)
    keys: list[str] = attrs.field(factory=list)
    names: list[str] = attrs.field(factory=list)
    listens: list[list[str]] = attrs.field(factory=list)
    settings: dict[str, str] = attrs.field(factory=dict)
    """``ssl``, ``starttls`` and ``protocol``."""

    def setting(self, name: str) -> str:
        """Return a setting, of the nearest block that has it."""
        block: _Block | None = self
        while block is not None:
            if name in block.settings:
                return block.settings[name]
            block = block.outer
        return ""


def read_nginx(sources: Sources, path: str) -> list[Use]:
    """Return the certificates of a configuration; relative paths start at the directory of its main file."""
    reader = _Reader(sources, posixpath.dirname(path))
    reader.read(path, At(path), None)
    return [use for server in reader.servers for use in reader.uses_of(server)]


class _Reader:
    def __init__(self, sources: Sources, prefix: str) -> None:
        self.servers: list[_Block] = []
        self._sources, self._prefix = sources, prefix

    def read(self, path: str, by: At, within: _Block | None) -> None:
        with self._sources.opened(path, by) as text:
            if text is not None:
                self._parse(path, text, within)

    def _parse(self, path: str, text: str, within: _Block | None) -> None:
        """Read the statements of one file. Blocks end in the file in which they begin."""
        stack: list[_Block | None] = [within]
        words: list[_Token] = []
        for token in self._tokens(path, text):
            if not token.is_mark:
                words.append(token)
                continue
            if token.text == ";" and words:
                self._directive(path, words, stack[-1])
            elif token.text == "{":
                stack.append(self._begun(words, stack[-1]))
            elif token.text == "}" and len(stack) > 1:
                stack.pop()
            words = []

    def _tokens(self, path: str, text: str) -> Iterator[_Token]:
        at, line, first = 0, 1, ""
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                self._sources.remark(At(path, line), "a quoted text does not end; the rest of the file is not read")
                return
            at, kind = found.end(), found.lastgroup or ""
            if kind != "space":
                word = found[kind]
                yield _Token(word if kind == "mark" else _ESCAPE.sub(r"\1", word), line, kind == "mark")
                first = "" if kind == "mark" and word != "{" else first or word
                if word == "{" and kind == "mark":
                    if first.endswith("_by_lua_block"):
                        yield _Token("}", line, True)
                        at = _end_of_block(text, at)
                    first = ""
            line += text.count("\n", found.start(), at)

    def _begun(self, words: Sequence[_Token], outer: _Block | None) -> _Block | None:
        """Return the block that begins; None for one in which no certificate is configured."""
        kind = words[0].text if words else ""
        if kind not in _BLOCKS:
            return None
        block = _Block(kind, outer)
        if kind == "server":
            self.servers.append(block)
        return block

    def _directive(self, path: str, words: Sequence[_Token], block: _Block | None) -> None:
        name, values, at = words[0].text, [word.text for word in words[1:]], At(path, words[0].line)
        if name == "include" and values:
            for found in self._sources.included(self._path(values[0]), at):
                self.read(found, at, block)
        elif block is None or not values:
            return
        elif name == "ssl_certificate":
            block.certificates.append((values[0], at))
        elif name == "ssl_certificate_key":
            block.keys.append(values[0])
        elif name == "server_name":
            block.names += values
        elif name == "listen":
            block.listens.append(values)
        elif name in ("ssl", "starttls", "protocol"):
            block.settings[name] = values[0]

    def _path(self, text: str) -> str:
        return posixpath.normpath(posixpath.join(self._prefix, text))

    def uses_of(self, server: _Block) -> list[Use]:
        """Return the certificates of a server, its own or inherited ones."""
        endpoint, is_tls = _endpoint(server)
        if not is_tls:
            return []
        owner: _Block | None = server
        while owner is not None and not owner.certificates:
            owner = owner.outer
        if owner is None:
            return []
        keys: _Block | None = server
        while keys is not None and not keys.keys:
            keys = keys.outer
        found = []
        for number, (certificate, at) in enumerate(owner.certificates):
            key = keys.keys[number] if keys is not None and number < len(keys.keys) else ""
            if self._is_path(at, certificate, key):
                files = pair(self._path(certificate), self._path(key))
                names = tuple(server.names)
                found.append(Use(service=Service.NGINX, at=at, files=files, names=names, endpoint=endpoint))
        return found

    def _is_path(self, at: At, certificate: str, key: str) -> bool:
        if not key:
            self._sources.remark(at, f"{certificate} has no ssl_certificate_key")
            return False
        for value in (certificate, key):
            if value.startswith(_FOREIGN) or "$" in value:
                fix = "name one file for each server, or leave it as it is"
                self._sources.remark(at, f"{value} is not one file: nginx finds it out for each connection", fix)
                return False
        return True


def _end_of_block(text: str, at: int) -> int:
    """Return where a block of another language ends: after the brace that matches the one before ``at``."""
    depth = 1
    for found in re.compile(r"[{}]").finditer(text, at):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return found.end()
    return len(text)


def _endpoint(server: _Block) -> tuple[VerifyTls | None, bool]:
    """Return where a server can be probed, and whether it uses TLS at all."""
    names = tuple(server.names)
    starttls = _PROTOCOLS.get(server.setting("protocol")) if server.setting("starttls") in ("on", "only") else None
    all_tls = server.setting("ssl") == "on"
    tls = [words for words in server.listens if all_tls or "ssl" in words[1:]]
    is_tls = bool(tls) or starttls is not None or any("quic" in words for words in server.listens)
    for words in sorted(tls or (server.listens if starttls else []), key=lambda words: words[0].startswith("[")):
        place = listen_place(words[0], default=80)
        if place is not None and "proxy_protocol" not in words:
            found = probed(*place, names)
            return (attrs.evolve(found, starttls=starttls) if not tls else found), is_tls
    return None, is_tls


def listen_place(text: str, *, default: int) -> tuple[str, int] | None:
    """Return the host and port under which this host reaches a listening address; None if it cannot."""
    if text.startswith("unix:"):
        return None
    host, colon, port = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        host, port = text, str(default)
    elif not colon:
        host, port = ("", text) if text.isdecimal() else (text, str(default))
    if not (port.isascii() and port.isdecimal()) or not 0 < int(port[:6]) <= 65_535:
        return None
    host = host.removeprefix("[").removesuffix("]")
    return {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), int(port)
