"""Mail: one message by SMTP in a worker thread, with STARTTLS or TLS from the start, and bounded in time."""

from __future__ import annotations

import contextlib
import smtplib
import socket
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr

import attrs
import trio

from certctrl import __version__, lean
from certctrl.plane.alerts.addresses import DeliveryError, allowed_addresses
from certctrl.text import one_line

SECONDS = 60.0
"""For the whole conversation."""
_STEP_SECONDS = 20.0
_MAX_THREADS = 20
"""As many as messages are sent at a time: none waits for a thread, so that a server that hangs fails no other's mail."""
STARTTLS, IMPLICIT, NONE = "starttls", "implicit", "none"
_THREADS = trio.CapacityLimiter(_MAX_THREADS)


@lean.frozen(kw_only=True)
class MailServer:
    """Where mail is handed in, and how."""

    host: str
    port: int
    tls: str
    user: str = ""
    password: str = attrs.field(default="", repr=False)
    allow_local: bool = False

    @property
    def place(self) -> str:
        """The form ``host:port``, for messages."""
        return f"{self.host}:{self.port}"


@lean.frozen(kw_only=True)
class Mail:
    """One mail."""

    sender: str
    recipients: Sequence[str]
    subject: str
    text: str
    message_id: str
    at: float

    def built(self) -> EmailMessage:
        """Return it with its headers."""
        made = EmailMessage()
        made["From"], made["To"] = self.sender, ", ".join(self.recipients)
        made["Subject"] = one_line(self.subject, 250)
        made["Date"] = format_datetime(datetime.fromtimestamp(int(self.at), UTC))
        made["Message-ID"] = f"<{self.message_id}@certctrl.invalid>"
        made["Auto-Submitted"], made["X-Mailer"] = "auto-generated", f"certctrl/{__version__}"
        made.set_content(self.text)
        return made


class _Conversation:
    """One conversation, whose socket another thread may shut down to end it.

    The connection and its TLS are made here, not by the library: to addresses that were checked, and so that they can be
    ended at any time.
    """

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._is_ended = False

    def hand_in(self, mail: Mail, server: MailServer, context: ssl.SSLContext) -> dict[str, tuple[int, bytes]]:
        """Send a mail, and return the recipients that the server refuses, unless it refuses all.

        Raises DeliveryError, OSError and the exceptions of smtplib.
        """
        made = mail.built()
        plain = self._connected(server)
        smtp = smtplib.SMTP(local_hostname="certctrl.invalid", timeout=_STEP_SECONDS)
        try:
            self._use(smtp, plain)
            if server.tls == IMPLICIT:
                self._use(smtp, context.wrap_socket(plain, server_hostname=server.host))
            code, said = smtp.getreply()
            if code != 220:
                raise smtplib.SMTPConnectError(code, said)
            if server.tls == STARTTLS:
                self._start_tls(smtp, plain, server.host, context)
            smtp.ehlo_or_helo_if_needed()
            if server.user:
                smtp.login(server.user, server.password)
            sender, recipients = parseaddr(mail.sender)[1], [parseaddr(one)[1] for one in mail.recipients]
            return smtp.send_message(made, sender, recipients)
        finally:
            smtp.close()  # without QUIT: its failure would not mean that the mail was not accepted

    def _connected(self, server: MailServer) -> socket.socket:
        found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
        addresses = allowed_addresses(server.host, (str(one[4][0]) for one in found), allow_local=server.allow_local)
        failure: OSError | None = None
        for address in addresses:
            try:
                return socket.create_connection((address, server.port), timeout=_STEP_SECONDS)
            except OSError as error:
                failure = error
        raise failure or OSError("the name has no address")

    def _use(self, smtp: smtplib.SMTP, sock: socket.socket) -> None:
        self._sock, smtp.sock, smtp.file = sock, sock, None
        if self._is_ended:
            self.end()

    def _start_tls(self, smtp: smtplib.SMTP, plain: socket.socket, host: str, context: ssl.SSLContext) -> None:
        smtp.ehlo_or_helo_if_needed()
        code, _ = smtp.docmd("STARTTLS")
        if code != 220:
            raise smtplib.SMTPNotSupportedError(f"STARTTLS is refused with {code}")
        self._use(smtp, context.wrap_socket(plain, server_hostname=host))
        smtp.ehlo_resp = smtp.helo_resp = None  # what was said without TLS does not count
        smtp.esmtp_features, smtp.does_esmtp = {}, False

    def end(self) -> None:
        """End it from another thread."""
        self._is_ended = True
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)


async def send(mail: Mail, server: MailServer, context: ssl.SSLContext) -> str:
    """Hand a mail in; return which recipients were refused, empty if none was.

    A mail that the server has accepted for some is not sent again: they would receive it each time. Raises DeliveryError,
    which contains no secret.
    """
    unreached: dict[str, tuple[int, bytes]] = {}
    conversation = _Conversation()
    try:
        with trio.move_on_after(SECONDS) as scope:
            try:
                unreached = await trio.to_thread.run_sync(
                    conversation.hand_in, mail, server, context, abandon_on_cancel=True, limiter=_THREADS
                )
            except BaseException:
                conversation.end()  # if it was cancelled; otherwise the socket is closed already
                raise
    except ssl.SSLCertVerificationError as error:
        why = one_line(error.verify_message or "not trusted")
        raise DeliveryError(f"the certificate of {server.place} is not accepted: {why}") from None
    except smtplib.SMTPResponseException as error:
        raise DeliveryError(f"{server.place} answered with {error.smtp_code}: {_said(error.smtp_error)}") from None
    except smtplib.SMTPRecipientsRefused as error:
        raise DeliveryError(_refused(server, error.recipients)) from None
    except (smtplib.SMTPException, OSError, UnicodeError) as error:
        why = one_line(str(getattr(error, "strerror", "") or error) or type(error).__name__)
        raise DeliveryError(f"the mail server {server.place}: {why}") from None
    if scope.cancelled_caught:
        raise DeliveryError(f"the mail server {server.place} has not accepted the mail within {SECONDS:g} s")
    return _refused(server, unreached) if unreached else ""


def _refused(server: MailServer, recipients: Mapping[str, tuple[int, bytes]]) -> str:
    code, said = next(iter(recipients.values()))
    return f"{server.place} refuses {one_line(', '.join(recipients), 100)}: {code} {_said(said)}"


def _said(text: object) -> str:
    """Return what a mail server has said, in one short line."""
    return one_line(text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text), 120)
