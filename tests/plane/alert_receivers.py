"""Real receivers of alerts: an HTTPS server with a private CA that obeys a script, and a mail server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import attrs
import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


@attrs.frozen
class Received:
    """One request."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@attrs.define
class HttpsReceiver:
    """What the server has received, and what it answers."""

    url: str
    ca_pem: str
    script: list[str] = attrs.field(factory=list)
    """One word for each next request: a status, ``hang``, ``redirect``, ``garbage``; without one, 204."""
    received: list[Received] = attrs.field(factory=list)
    released: threading.Event = attrs.field(factory=threading.Event)
    """Ends the requests that hang."""
    arrived: threading.Event = attrs.field(factory=threading.Event)


@contextlib.contextmanager
def https_receiver() -> Iterator[HttpsReceiver]:
    """Run a server on this machine for the block."""
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    found = HttpsReceiver("", ca.cert_pem.bytes().decode())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.received.append(Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            found.arrived.set()
            word = found.script.pop(0) if found.script else "204"
            if word == "hang":
                found.released.wait(60)
                return
            if word == "garbage":
                self.wfile.write(b"\x00not http at all\r\n\r\n")
                self.close_connection = True
                return
            self.send_response(302 if word == "redirect" else int(word))
            if word == "redirect":
                self.send_header("location", f"{found.url}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def get_request(self) -> tuple[Any, Any]:
            sock, address = super().get_request()
            return context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, *_: Any) -> None:  # clients that do not trust the server, or have gone
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        found.url = f"https://127.0.0.1:{server.server_port}/hooks/secret-path"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield found
        finally:
            found.released.set()
            server.shutdown()
            thread.join()


@attrs.define
class MailServer:
    """What a mail server has received."""

    port: int
    ca_pem: str
    mails: list[EmailMessage] = attrs.field(factory=list)
    recipients: list[list[str]] = attrs.field(factory=list)
    logins: list[tuple[bytes, bytes]] = attrs.field(factory=list)
    unknown: str = ""
    """A recipient that is refused."""
    refuse: str = ""
    """The answer to the next mail, such as ``451 later``."""


@contextlib.contextmanager
def mail_server(*, tls: str = "starttls", password: bytes = b"") -> Iterator[MailServer]:
    """Run a mail server on this machine for the block; ``password``: that of every user, empty: none."""
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    found = MailServer(0, ca.cert_pem.bytes().decode())

    class Handler:
        async def handle_RCPT(
            self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
        ) -> str:
            if address == found.unknown:
                return "550 no such user"
            envelope.rcpt_tos.append(address)
            return "250 OK"

        async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
            if found.refuse:
                answer, found.refuse = found.refuse, ""
                return answer
            assert isinstance(envelope.content, bytes)
            parsed = message_from_bytes(envelope.content, policy=policy.default)
            assert isinstance(parsed, EmailMessage)
            found.mails.append(parsed)
            found.recipients.append(list(envelope.rcpt_tos))
            return "250 OK"

    def authenticate(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: LoginPassword) -> AuthResult:
        found.logins.append((data.login, data.password))
        return AuthResult(success=data.password == password, handled=False)

    options: dict[str, Any] = {}
    if tls == "starttls":
        options |= {"tls_context": context, "require_starttls": True}
    if password:
        options |= {"authenticator": authenticate, "auth_required": True, "auth_require_tls": tls == "starttls"}
    loop = asyncio.new_event_loop()
    start = loop.create_server(
        lambda: SMTP(Handler(), loop=loop, hostname="mail.test", **options), "127.0.0.1", 0,
        ssl=context if tls == "implicit" else None,
    )  # fmt: skip
    server = loop.run_until_complete(start)
    found.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def stop() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    try:
        yield found
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
