"""Escape untrusted text for one line of a log, a terminal or a page; names, serials and kinds of JSON values."""

from __future__ import annotations

from collections.abc import Iterable

LINE_LIMIT = 200


def one_line(
    text: str, limit: int | None = LINE_LIMIT, *, replacement: str | None = None, ascii_only: bool = False
) -> str:
    """Return text as one printable line of at most ``limit`` characters; None means unlimited.

    Control, bidirectional and other invisible characters are escaped (``\\n``, ``\\u202e``), or replaced by
    ``replacement``. ``ascii_only`` also escapes all characters outside ASCII.
    """
    if text.isprintable() and (limit is None or len(text) <= limit) and (not ascii_only or text.isascii()):
        return text
    source = text if limit is None else text[: limit + 1]
    line = "".join(
        char if char.isprintable() and (not ascii_only or char.isascii()) else _substitute(char, replacement)
        for char in source
    )
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def counted(count: object, noun: str) -> str:
    """Return a number with its noun, which is in the plural unless the number is one: ``2 devices``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def is_name(text: str) -> bool:
    """Return whether text is a domain name: labels of letters, digits, ``-`` and ``_``; also international ones."""
    labels = text.removesuffix(".").split(".")
    return len(text) <= 255 and all(0 < len(label) <= 63 and all(map(_is_in_label, label)) for label in labels)


def _is_in_label(char: str) -> bool:
    return (char.isalnum() or char in "-_") if char.isascii() else char.isprintable() and not char.isspace()


def ascii_name(name: str) -> str:
    """Return a domain name with its international labels as ``xn--``; any other text unchanged.

    IDNA 2008, with upper case and widths mapped as in UTS 46; labels that it forbids (emoji) as in IDNA 2003.
    """
    if name.isascii() or not is_name(name.removeprefix("*.")):
        return name
    try:
        return ".".join(map(_ascii_label, name.split(".")))
    except UnicodeError:
        return name


def _ascii_label(label: str) -> str:
    if label.isascii():
        return label
    import idna  # imported late: most names are ASCII

    try:
        return idna.encode(label, uts46=True).decode()
    except idna.InvalidCodepoint:
        return label.encode("idna").decode()


def kind_of(value: object) -> str:
    """Return the kind of a JSON value, for messages that must not show the value."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int():
            return "a whole number"
        case float():
            return "a number with a fraction"
        case str():
            return "text" if value else "empty text"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return type(value).__name__


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known word that was probably meant, or None."""
    from difflib import get_close_matches  # here: only mistakes need it

    return next(iter(get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def serial_text(serial: int) -> str:
    """Return a serial number as lower-case hex pairs separated by colons (``04:ab``; ``-04:ab`` as OpenSSL does)."""
    text = f"{abs(serial):x}"
    return ("-" if serial < 0 else "") + bytes.fromhex(text.zfill(len(text) + len(text) % 2)).hex(":")


def same_serial(reported: str, serial: int) -> bool:
    """Return whether text is a serial number: hex, decimal, or for a negative one the hex of its bytes in the certificate."""
    plain = "".join(reported.split()).replace(":", "").lower()
    sign, digits = ("-", plain[1:]) if plain.startswith("-") else ("", plain)
    found = sign + (digits.removeprefix("0x").lstrip("0") or "0")
    size = serial.bit_length() // 8 + 1
    return found in (f"{serial:x}", str(serial), serial.to_bytes(size, "big", signed=True).hex().lstrip("0") or "0")


def _substitute(char: str, replacement: str | None) -> str:
    return char.encode("unicode_escape").decode("ascii") if replacement is None else replacement
