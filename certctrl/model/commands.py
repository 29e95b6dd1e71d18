"""Which words of a command name the script that its program runs, or a unit, as far as the text shows. Pure.

An interpreter runs the file that another word names, so a user who may change that file decides what runs, as with the
program itself. ``sh -c LINE``, ``python -m MODULE`` and the like have no such file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_LANGUAGES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(ba|da|a|k|mk|z|fi|c|tc)?sh"), "c"),
    (re.compile(r"python[0-9.]*|pypy[0-9.]*"), "cm"),
    (re.compile(r"(perl|ruby|lua|luajit|tclsh)[0-9.]*"), "eE"),
    (re.compile(r"node|nodejs"), "ep"),
    (re.compile(r"php[0-9.]*"), "r"),
)
"""Names of interpreters -> letters of the options that give the program in the next word."""
_OPTION = re.compile(r"-[A-Za-z]+")
_WRAPPERS = re.compile(
    r"env|busybox|nice|ionice|chrt|timeout|sudo|doas|setsid|nohup|stdbuf|setpriv|runuser|systemd-run|time"
)
"""Programs that run the program that their arguments name."""


def script_words(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the absolute paths that may be scripts or programs run by a command's program.

    Up to the first word that is an absolute path: the words before it may be values of options. A relative word
    stands for a file below ``/``, where commands run.
    """
    words, found = list(argv), list[str]()
    while words:
        name = words[0].rpartition("/")[2]
        if _WRAPPERS.fullmatch(name):
            start = next((n for n, word in enumerate(words[1:], 1) if _is_program(word)), len(words))
            words = words[start:]
            found += words[:1] if words and words[0].startswith("/") else []
            continue
        inline = next((letters for pattern, letters in _LANGUAGES if pattern.fullmatch(name)), None)
        return (*found, *(_operands(words[1:], inline) if inline is not None else ()))
    return tuple(found)


def _is_program(word: str) -> bool:
    known = (_WRAPPERS, *(pattern for pattern, _ in _LANGUAGES))
    return word.startswith("/") or any(pattern.fullmatch(word) for pattern in known)


def _operands(words: Sequence[str], inline: str) -> list[str]:
    found = list[str]()
    for word in words:
        if word.startswith("-"):
            if _OPTION.fullmatch(word) and not set(inline).isdisjoint(word):
                break
            continue
        found.append(word if word.startswith("/") else f"/{word}")
        if word.startswith("/"):
            break
    return found


_SYSTEMCTL = ("/usr/bin/systemctl", "/bin/systemctl")
_TEMPLATE = "cert-ctrl-reload@"


def unit_of(argv: Sequence[str]) -> tuple[str, str] | None:
    """Return the verb and the unit of a command that only reloads or restarts one unit; None for any other command.

    A start of ``cert-ctrl-reload@NAME.service`` reloads NAME.service.
    """
    if len(argv) != 3 or argv[0] not in _SYSTEMCTL:
        return None
    _, verb, unit = argv
    if verb == "start" and unit.startswith(_TEMPLATE):
        verb, unit = "reload", unit.removeprefix(_TEMPLATE)
    if verb not in ("reload", "restart") or unit.startswith("-"):
        return None
    return verb, unit if unit.endswith(".service") else f"{unit}.service"
