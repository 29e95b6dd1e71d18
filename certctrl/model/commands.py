"""Which words of a command name the script that its program runs, or a unit, as far as the text shows. Pure.

An interpreter runs the file that another word names, so a user who may change that file decides what runs, as with the
program itself. ``sh -c LINE``, ``python -m MODULE`` and the like have no such file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_LANGUAGES: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (re.compile(r"(r?ba|da|a|r?k|mk|z|fi|c|tc)?sh[0-9.]*"), "c", "oO"),
    (re.compile(r"python[0-9.]*|pypy[0-9.]*"), "cm", "WX"),
    (re.compile(r"(perl|ruby|lua|luajit|tclsh)[0-9.]*"), "eE", "IrC"),
    (re.compile(r"node|nodejs"), "ep", "r"),
    (re.compile(r"php[0-9.]*"), "r", "cdz"),
)
"""Names of interpreters, letters of the options that give the program in the next word, and of those whose value is
in the next word."""
_OPTION = re.compile(r"-[A-Za-z]+")
_WITH_VALUE = re.compile(r"--(rcfile|init-file|require|import|loader|experimental-loader|env-file|php-ini|define)")
_WRAPPERS = re.compile(
    r"env|busybox|nice|ionice|chrt|timeout|sudo|doas|setsid|nohup|stdbuf|setpriv|runuser|systemd-run|time"
    r"|flock|taskset|prlimit|unshare|nsenter|numactl|runcon|xargs|pkexec|chronic"
)
"""Programs that run the program that their arguments name."""


def script_words(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the absolute paths that may be scripts or programs run by a command's program.

    Up to the first word that is an absolute path and not the value of an option; other words before it may be such
    values. A relative word stands for a file below ``/``, where commands run.
    """
    words, found = list(argv), list[str]()
    while words:
        name = words[0].rpartition("/")[2]
        if _WRAPPERS.fullmatch(name):
            words = _split(words) if name == "env" else words
            first = 1 + _lock(words) if name == "flock" else 1
            start = next((n for n, word in enumerate(words[first:], first) if _is_program(word)), len(words))
            words = words[start:]
            found += words[:1] if words and words[0].startswith("/") else []
            continue
        letters = next((each for pattern, *each in _LANGUAGES if pattern.fullmatch(name)), None)
        return (*found, *(_operands(words[1:], *letters) if letters is not None else ()))
    return tuple(found)


def _split(words: list[str]) -> list[str]:
    """Return the words of ``env`` with those that ``-S`` gives in one word."""
    for n, word in enumerate(words[1:], 1):
        if word in ("-S", "--split-string"):
            return words[:n] + [part for each in words[n + 1 : n + 2] for part in each.split()] + words[n + 2 :]
        if match := re.match(r"-S|--split-string=", word):
            return words[:n] + word[match.end() :].split() + words[n + 1 :]
    return words


def _lock(words: list[str]) -> int:
    """Return the number of the word that is the lock of ``flock``, which runs nothing that is in it."""
    return next((n for n, word in enumerate(words[1:], 1) if word.startswith("/")), 0)


def _is_program(word: str) -> bool:
    known = (_WRAPPERS, *(pattern for pattern, *_ in _LANGUAGES))
    return word.startswith("/") or any(pattern.fullmatch(word) for pattern in known)


def _operands(words: Sequence[str], inline: str, valued: str) -> list[str]:
    found, is_value = list[str](), False
    for word in words:
        if word.startswith("-"):
            is_short = _OPTION.fullmatch(word) is not None
            if is_short and not set(inline).isdisjoint(word):
                break
            is_value = word[-1] in valued if is_short else _WITH_VALUE.fullmatch(word) is not None
            continue
        found.append(word if word.startswith("/") else f"/{word}")
        if word.startswith("/") and not is_value:
            break
        is_value = False
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
