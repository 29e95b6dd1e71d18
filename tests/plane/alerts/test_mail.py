"""Mail by a real mail server: STARTTLS, TLS from the start, passwords, refusals, a server that hangs."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from alert_receivers import MailServer, mail_server

from certctrl.plane.alerts import mail
from certctrl.plane.alerts.addresses import DeliveryError
from certctrl.plane.alerts.channels import context_of
from certctrl.plane.alerts.mail import Mail
from certctrl.plane.alerts.mail import MailServer as Server
from certctrl.plane.alerts.settings import ChannelSettings

MAIL = Mail(
    sender="certctrl <certctrl@example.com>", recipients=("ops@example.com", "b@example.com"),
    subject="device silent: wéb-7\r\nBcc: x@example.com", text="cause: it is silent – since long\n.\nend\n",
    message_id="alert-1", at=1_790_000_000.0,
)  # fmt: skip


def server_of(real: MailServer, **changes: Any) -> Server:
    options: dict[str, Any] = {"host": "127.0.0.1", "port": real.port, "tls": "starttls", "allow_local": True}
    return Server(**options | changes)


def trusting(real: MailServer) -> ssl.SSLContext:
    return context_of(ChannelSettings(ca_pem=real.ca_pem))


@pytest.fixture
def real() -> Iterator[MailServer]:
    with mail_server(password=b"pass word") as found:
        yield found


async def test_a_mail_by_starttls_with_a_password(real: MailServer) -> None:
    await mail.send(MAIL, server_of(real, user="ops", password="pass word"), trusting(real))
    (received,) = real.mails
    assert received["subject"] == r"device silent: wéb-7\r\nBcc: x@example.com"
    assert received["bcc"] is None
    assert real.recipients == [["ops@example.com", "b@example.com"]]
    assert received["auto-submitted"] == "auto-generated"
    assert received["message-id"] == "<alert-1@certctrl.invalid>"
    assert received.get_content().splitlines() == ["cause: it is silent – since long", ".", "end"]
    assert real.logins[-1] == (b"ops", b"pass word")


async def test_a_mail_by_tls_from_the_start_and_one_without() -> None:
    for tls in ("implicit", "none"):
        with mail_server(tls=tls) as real:
            await mail.send(MAIL, server_of(real, tls=tls), trusting(real))
            assert len(real.mails) == 1


async def test_a_wrong_password_a_refusal_and_a_server_that_is_not_trusted(real: MailServer) -> None:
    with pytest.raises(DeliveryError, match="answered with 535") as wrong:
        await mail.send(MAIL, server_of(real, user="ops", password="hunter2"), trusting(real))
    assert "hunter2" not in str(wrong.value)
    real.refuse = "451 later"
    with pytest.raises(DeliveryError, match="answered with 451: later"):
        await mail.send(MAIL, server_of(real, user="ops", password="pass word"), trusting(real))
    with mail_server() as other:
        with pytest.raises(DeliveryError, match=r"the certificate of 127\.0\.0\.1:\d+ is not accepted"):
            await mail.send(MAIL, server_of(real, user="ops", password="pass word"), trusting(other))
    assert real.mails == []
    assert [login for login in real.logins if login[1] == b"hunter2"], "only the wrong one was wrong"


async def test_a_server_without_starttls_gets_neither_password_nor_mail() -> None:
    with mail_server(tls="none") as real:
        with pytest.raises(DeliveryError, match="STARTTLS is refused"):
            await mail.send(MAIL, server_of(real, user="ops", password="secret"), trusting(real))
        assert (real.mails, real.logins) == ([], [])


async def test_a_server_on_this_host_needs_to_be_allowed(real: MailServer) -> None:
    with pytest.raises(DeliveryError, match="control plane's own host"):
        await mail.send(MAIL, server_of(real, host="localhost", allow_local=False), trusting(real))


async def test_a_server_that_says_nothing_does_not_hold_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        server = Server(host="127.0.0.1", port=port, tls="starttls", allow_local=True)
        for _ in range(6):  # more than there are threads
            with pytest.raises(DeliveryError, match="has not accepted the mail"):
                await mail.send(MAIL, server, context_of(ChannelSettings()))


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(DeliveryError, match="Connection refused"):
        await mail.send(
            MAIL, Server(host="127.0.0.1", port=port, tls="none", allow_local=True), context_of(ChannelSettings())
        )


async def test_a_mail_that_some_recipients_get_is_not_sent_again() -> None:
    with mail_server() as real:
        real.unknown = "b@example.com"
        note = await mail.send(MAIL, server_of(real), trusting(real))
        assert note.endswith("refuses b@example.com: 550 no such user")
        assert real.recipients == [["ops@example.com"]]
        only = attrs.evolve(MAIL, recipients=("b@example.com",))
        with pytest.raises(DeliveryError, match=r"refuses b@example\.com"):
            await mail.send(only, server_of(real), trusting(real))
