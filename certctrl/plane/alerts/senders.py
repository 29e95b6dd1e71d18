"""Senders: give a message the form of its channel and deliver it, once."""

from __future__ import annotations

from collections.abc import Callable

from certctrl.plane.alerts import mail, texts, webhook
from certctrl.plane.alerts.channels import Channel, context_of
from certctrl.plane.alerts.settings import MAIL, PAGERDUTY, SLACK, WEBHOOK
from certctrl.plane.alerts.texts import Message


class Senders:
    """Delivers messages of one installation."""

    def __init__(self, installation: str, source: Callable[[], str], wall_now: Callable[[], float]) -> None:
        """``installation``: the same at all planes on one database; ``source``: how messages name the plane."""
        self.installation = installation
        self._source = source
        self._wall_now = wall_now

    async def deliver(self, channel: Channel, message: Message, message_id: int | str, created_at: float) -> str:
        """Deliver a message, and return a problem that remains, if any; raises DeliveryError, or ConfigError if the channel cannot be used on this host.

        Its delivery id is the same in each attempt, so that receivers can drop repetitions.
        """
        delivery = f"alert-{self.installation}-{message_id}"
        if channel.kind == MAIL:
            return await self._send_mail(channel, message, delivery, created_at)
        body = self._body(channel, message, delivery)
        headers = {"webhook-id": delivery}
        if channel.kind == WEBHOOK:
            headers = webhook.signed(delivery, self._wall_now(), body, channel.secrets["signing_secret"])
        context = context_of(channel.settings)
        await webhook.post(channel.url, body, headers, context, allow_local=channel.settings.allow_local)
        return ""

    def _body(self, channel: Channel, message: Message, delivery: str) -> bytes:
        if channel.kind == SLACK:
            return texts.as_slack(message, self._source())
        if channel.kind == PAGERDUTY:
            key = channel.secrets["routing_key"]
            return texts.as_pagerduty(message, delivery, self._source(), key, self.installation)
        return texts.as_json(message, delivery, self._source())

    async def _send_mail(self, channel: Channel, message: Message, delivery: str, created_at: float) -> str:
        settings = channel.settings
        server = mail.MailServer(
            host=settings.host,
            port=settings.mail_port,
            tls=settings.tls,
            user=settings.user,
            password=channel.secrets.get("password", ""),
            allow_local=settings.allow_local,
        )
        built = mail.Mail(
            sender=settings.sender,
            recipients=settings.recipients,
            subject=f"[certctrl] {message['title']}",
            text=texts.as_mail_text(message, self._source()),
            message_id=delivery,
            at=created_at,
        )
        return await mail.send(built, server, context_of(settings))
