"""The options of ``plane alerts add``."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from certctrl.cli.plane.secrets import refuse_readable
from certctrl.errors import UsageError
from certctrl.text import nearest, one_line

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MAX_FILE_BYTES = 64 * 1024
_TLS = ("starttls", "implicit", "none")
_OF_KIND = {
    "url": ("webhook", "slack", "pagerduty"),
    "url_file": ("webhook", "slack", "pagerduty"),
    "signing_secret_file": ("webhook",),
    "routing_key_file": ("pagerduty",),
    **dict.fromkeys(("smtp", "smtp_tls", "smtp_user", "smtp_password_file", "sender", "to"), ("mail",)),
}
"""Option -> the kinds of channels that it is for."""

NewName = Annotated[str, typer.Argument(metavar="NAME", help="A name of your choice, such as on-call.")]
Kind = Annotated[str, typer.Option("--kind", metavar="KIND", help="webhook, slack, pagerduty or mail.")]
Url = Annotated[str, typer.Option("--url", metavar="URL", help="Where to post; only if the URL is not a secret.")]
UrlFile = Annotated[str, typer.Option("--url-file", metavar="FILE", help="A file that contains the URL; -: stdin.")]
SigningSecretFile = Annotated[
    str,
    typer.Option(
        "--signing-secret-file", metavar="FILE", help="whsec_… that signs webhooks; default: one is made and printed."
    ),
]
RoutingKeyFile = Annotated[
    str, typer.Option("--routing-key-file", metavar="FILE", help="The integration key of PagerDuty.")
]
Smtp = Annotated[str, typer.Option("--smtp", metavar="HOST[:PORT]", help="The mail server.")]
SmtpTls = Annotated[str, typer.Option("--smtp-tls", metavar="HOW", help="starttls (default), implicit or none.")]
SmtpUser = Annotated[str, typer.Option("--smtp-user", metavar="USER", help="User at the mail server.")]
SmtpPasswordFile = Annotated[
    str, typer.Option("--smtp-password-file", metavar="FILE", help="A file that contains the password.")
]
Sender = Annotated[str, typer.Option("--from", metavar="ADDRESS", help="Sender of mails.")]
To = Annotated[list[str] | None, typer.Option("--to", metavar="ADDRESS", help="Receiver of mails; may be repeated.")]
ReceiverCa = Annotated[
    str, typer.Option("--receiver-ca", metavar="FILE", help="CA of the receiver; default: the system's CAs.")
]
Event = Annotated[list[str] | None, typer.Option("--event", metavar="EVENT", help="Only this event; may be repeated.")]
QuietHours = Annotated[
    list[str] | None,
    typer.Option("--quiet-hours", metavar="HH:MM-HH:MM", help="Only critical messages then; may be repeated."),
]
TimeZone = Annotated[str, typer.Option("--time-zone", metavar="ZONE", help="Of the quiet hours; default: UTC.")]
Wait = Annotated[
    str, typer.Option("--wait", metavar="TIME", help="Wait until no condition was added for so long; default: 60s.")
]
Interval = Annotated[
    str, typer.Option("--interval", metavar="TIME", help="Between two messages about a group; default: 10m.")
]
Repeat = Annotated[
    str, typer.Option("--repeat", metavar="TIME", help="Remind of what is not over; 0s: never; default: 1d.")
]
SilentAfter = Annotated[
    str, typer.Option("--silent-after", metavar="TIME", help="A device is silent after so long; default: 1h.")
]
AllowLocal = Annotated[
    bool, typer.Option("--allow-local", help="Allow loopback and link-local addresses of the receiver.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Replace a channel of this name; its other secrets stay.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the channel, and change nothing.")]


def checked_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings and secrets that the options of ``alerts add`` give. Raises UsageError."""
    _check_options(given["kind"], given)
    settings = _settings(given)
    if given["receiver_ca"]:
        settings["ca_pem"] = _read(given["receiver_ca"], "CA", secret=False)
    return {"settings": settings, "secrets": _secrets(given)}


def _check_options(kind: str, given: Mapping[str, Any]) -> None:
    """Raise UsageError for options that do not fit the kind."""
    one_of(kind, ("webhook", "slack", "pagerduty", "mail"), "a kind of channel")
    for option, kinds in _OF_KIND.items():
        if given[option] and kind not in kinds:
            flag = "--from" if option == "sender" else f"--{option.replace('_', '-')}"
            raise UsageError(f"{flag} belongs to channels of kind {', '.join(kinds)}", fix="leave it out")
    if given["url"] and given["url_file"]:
        raise UsageError("--url and --url-file are given", fix="leave one of them out")
    if given["url"] and kind == "slack":
        fix = "write the URL to a file, mode 0600, and name it with --url-file"
        raise UsageError("the URL of a Slack webhook is a secret, and --url is visible to other users", fix=fix)
    one_of(given["smtp_tls"], _TLS, "a way to use TLS")


def one_of(given: str, known: Sequence[str], what: str) -> None:
    """Raise UsageError unless a text is empty or one of the known ones."""
    if given and given not in known:
        meant = nearest(given, known)
        fix = f"did you mean {meant}?" if meant else f"use {', '.join(known)}"
        raise UsageError(f"{one_line(given, 40)!r} is not {what}", fix=fix)


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that options give; the control plane checks them. Raises UsageError."""
    found: dict[str, Any] = {
        "events": given["event"],
        "quiet": given["quiet_hours"],
        "time_zone": given["time_zone"],
        "allow_local": given["allow_local"],
        "tls": given["smtp_tls"],
        "user": given["smtp_user"],
        "sender": given["sender"],
        "recipients": given["to"],
    }
    times = {"wait": "wait_seconds", "interval": "interval_seconds", "repeat": "repeat_seconds"}
    for option, name in {**times, "silent_after": "silent_seconds"}.items():
        if given[option]:
            found[name] = _seconds(given[option])
    if given["smtp"]:
        host, port = _place(given["smtp"])
        found |= {"host": host, "port": port}
    return {name: value for name, value in found.items() if value or (name.endswith("_seconds") and value == 0)}


def _seconds(text: str) -> int:
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdigit() and len(number) < 8 and unit in _UNITS):
        raise UsageError(f"{one_line(text, 40)!r} is not a time", fix="use 90s, 10m, 2h or 1d")
    return int(number) * _UNITS[unit]


def _place(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST[:PORT]``, 0 without a port. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        return text, 0
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65_536):
        raise UsageError(f"{one_line(text, 60)!r} is not HOST[:PORT]", fix="use for example mail.example.com:587")
    return host, int(port)


def _secrets(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the secrets in the files that options name. Raises UsageError."""
    files = {
        "url": given["url_file"],
        "signing_secret": given["signing_secret_file"],
        "routing_key": given["routing_key_file"],
        "password": given["smtp_password_file"],
    }
    if list(files.values()).count("-") > 1:
        raise UsageError("stdin can be read once only", fix="use files")
    found = {"url": given["url"]} if given["url"] else {}
    for name, file in files.items():
        if file:
            text = _read(file, name.replace("_", " "), secret=True).strip()
            if not text or not text.isprintable():
                raise UsageError(f"the file of the {name.replace('_', ' ')} must contain one line", fix="correct it")
            found[name] = text
    return found


def _read(file: str, what: str, *, secret: bool) -> str:
    try:
        with open(0 if file == "-" else Path(file), "rb", closefd=file != "-") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            data = opened.read(_MAX_FILE_BYTES + 1)
        text = data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"the file of the {what} is not text", fix="name another file") from None
    except OSError as error:
        raise UsageError(f"cannot read the file of the {what}: {error.strerror}", fix="name a readable file") from None
    if secret:
        refuse_readable(mode, f"the file of the {what}", file)
    if len(data) > _MAX_FILE_BYTES or not text.strip():
        size = "empty" if not text.strip() else f"larger than {_MAX_FILE_BYTES} bytes"
        raise UsageError(f"the file of the {what} is {size}", fix="name another file")
    return text
