"""Read Dovecot's configuration: ``ssl_cert`` and ``ssl_key`` (2.3), ``ssl_server_cert_file`` and ``_key_file`` (2.4)."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

import attrs

from certctrl import lean
from certctrl.install.adopt.sources import Sources
from certctrl.install.adopt.uses import At, Service, Use, pair, probed
from certctrl.model.plan import StartTls, VerifyTls

_PAIRS = (
    ("ssl_cert", "ssl_key"),
    ("ssl_alt_cert", "ssl_alt_key"),
    ("ssl_server_cert_file", "ssl_server_key_file"),
    ("ssl_server_alt_cert_file", "ssl_server_alt_key_file"),
)
_NAMES = frozenset(name for pair_of_names in _PAIRS for name in pair_of_names)
_COMMENT = re.compile(r"(?:^|\s)#.*")
_LISTENERS = {"imaps": (993, None), "imap": (143, StartTls.IMAP), "pop3s": (995, None), "pop3": (110, StartTls.POP3)}
"""Name of a listener -> its default port, and the protocol before TLS."""


@lean.define(eq=False)
class _Block:
    """A block, such as ``local_name mail.example.com { … }``, or the whole configuration."""

    kind: str = ""
    name: str = ""
    files: dict[str, tuple[str, At]] = attrs.field(factory=dict)


def read_dovecot(sources: Sources, path: str) -> list[Use]:
    """Return the certificates of a configuration; relative paths start at the directory of their file."""
    reader = _Reader(sources)
    reader.read(path, At(path))
    main = reader.blocks[0]
    uses = []
    for block in reader.blocks:
        for certificate, key in _PAIRS:
            value = block.files.get(certificate)
            other = block.files.get(key) or main.files.get(key)
            if value is None:
                continue
            if other is None:
                sources.remark(value[1], f"{value[0]} has no {key}")
                continue
            names = (block.name,) if block.kind == "local_name" else ()
            endpoint = None if block.kind == "local" else reader.endpoint(names)
            uses.append(
                Use(
                    service=Service.DOVECOT, at=value[1], files=pair(value[0], other[0]), names=names, endpoint=endpoint
                )
            )
    return uses


class _Reader:
    def __init__(self, sources: Sources) -> None:
        self.blocks = [_Block()]
        self._sources = sources
        self._ports: dict[str, str] = {}
        self._protocols = ""
        self._is_on = True

    def read(self, path: str, by: At, stack: tuple[_Block, ...] | None = None) -> None:
        """Read a file, within the block that includes it."""
        outer = stack or (self.blocks[0],)
        inside = list(outer)
        with self._sources.opened(path, by) as text:
            for number, line in _logical_lines(text or ""):
                at = At(path, number)
                words = line.split(None, 1)
                if words[0] in ("!include", "!include_try") and len(words) == 2:
                    self._include(words[1].strip().strip('"'), at, tuple(inside), optional=words[0] != "!include")
                elif line == "}":
                    del inside[max(len(outer), len(inside) - 1) :]
                elif line.endswith("{"):
                    head = line[:-1].strip().split(None, 1)
                    block = _Block(head[0] if head else "", head[1].strip('"') if len(head) > 1 else "")
                    inside.append(block)
                    if block.kind in ("local_name", "local"):
                        self.blocks.append(block)
                else:
                    self._setting(line, at, tuple(inside))

    def _include(self, pattern: str, at: At, stack: tuple[_Block, ...], *, optional: bool) -> None:
        whole = posixpath.join(posixpath.dirname(at.file), pattern)
        for path in self._sources.included(posixpath.normpath(whole), at):
            if not optional or self._sources.matching(path, at):
                self.read(path, at, stack)

    def _setting(self, line: str, at: At, stack: tuple[_Block, ...]) -> None:
        name, equals, value = (part.strip() for part in line.partition("="))
        value = value.strip('"')
        kinds = [block.kind for block in stack[1:]]
        if not equals:
            return
        if "ssl_server" in kinds and name in ("cert_file", "key_file", "alt_cert_file", "alt_key_file"):
            name = f"ssl_server_{name}"
        if name in _NAMES:
            owner = next((one for one in reversed(stack) if one.kind in ("local_name", "local")), stack[0])
            if path := self._path(value, at):
                owner.files[name] = (path, at)
        elif name == "port" and kinds[-1:] == ["inet_listener"]:
            self._ports[stack[-1].name] = value
        elif name == "protocols" and not kinds:
            self._protocols = value
        elif name == "ssl" and not kinds:
            self._is_on = value != "no"

    def _path(self, value: str, at: At) -> str:
        """Return the absolute path of a value; ``<`` before it means the contents of the file."""
        text = value.removeprefix("<").strip()
        if not text:
            return ""
        if "%{" in text or "$" in text:
            self._sources.remark(
                at, f"{text} is not a path: its value is known to Dovecot only", "write the path itself"
            )
            return ""
        if text.startswith("-----BEGIN"):
            self._sources.remark(at, "a certificate within the configuration is not taken over", "name a file")
            return ""
        return posixpath.normpath(posixpath.join(posixpath.dirname(at.file), text))

    def endpoint(self, names: tuple[str, ...]) -> VerifyTls | None:
        """Return where the service can be probed: IMAP or POP3, with TLS from the start if possible."""
        for name, (default, starttls) in _LISTENERS.items():
            port = self._ports.get(name, str(default))
            is_served = not self._protocols or name.removesuffix("s") in self._protocols.split()
            if self._is_on and is_served and port.isascii() and port.isdecimal() and 0 < int(port[:6]) <= 65_535:
                return attrs.evolve(probed("127.0.0.1", int(port), names), starttls=starttls)
        return None


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line without comment; a line that ends in a backslash continues."""
    parts: list[str] = []
    begun = 0
    for number, line in enumerate(text.split("\n"), start=1):
        begun = begun if parts else number
        plain = _COMMENT.sub("", line).strip()
        if plain.endswith("\\"):
            parts.append(plain[:-1])
            continue
        whole = " ".join((*parts, plain)).strip()
        parts = []
        head, begins, body = whole.removesuffix("}").partition("{")
        if whole.endswith("}") and begins and "=" not in head:  # a block on one line
            yield from ((begun, one) for one in (f"{head.strip()} {{", body.strip(), "}") if one)
        elif whole:
            yield begun, whole
