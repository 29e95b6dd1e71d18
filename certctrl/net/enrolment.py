"""Requests without an access token: device grant, registration, token refresh (docs/protocol.md)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from certctrl import __version__
from certctrl.errors import BadAnswerError, TransportError
from certctrl.net.calls import PlaneClient
from certctrl.protocol.wire.answer import BUNDLE_CAP
from certctrl.protocol.wire.tokens import Refreshed, refreshed_from_wire

if TYPE_CHECKING:
    from certctrl.protocol.device_flow import GrantEvent, GrantStarted
    from certctrl.protocol.wire.registration import Registration


class Enrolment(PlaneClient):
    """Requests that need no access token."""

    async def start_grant(
        self, scopes: Sequence[str] = (), *, name: str = "", platform: str = "", device_public_id: str = ""
    ) -> GrantStarted:
        """Start a device grant for the device with this id; the approval page shows all three (RFC 8628 §5.4)."""
        from certctrl.protocol.wire.device_grant import grant_from_wire  # here and below: a daemon is registered

        body: dict[str, Any] = {"action": "device_start", "scopes": list(scopes)}
        facts = {"name": name, "platform": platform, "device_public_id": device_public_id}
        body |= {key: text for key, text in facts.items() if text}
        return grant_from_wire(self._data(await self._send("POST", "/auth/device", json=body)))

    async def poll_grant(self, device_code: str) -> GrantEvent:
        """Poll for the operator's decision; return an event for the DeviceFlow even if the network fails."""
        from certctrl.protocol.device_flow import GrantFailed
        from certctrl.protocol.wire.device_grant import grant_event

        body = {"action": "device_poll", "device_code": device_code}
        try:
            answer = await self._send("POST", "/auth/device", json=body, cap=BUNDLE_CAP)
        except TransportError as error:
            return GrantFailed(str(error))
        return grant_event(answer, self._wall_now())

    async def register(
        self,
        *,
        device_public_id: str,
        public_key: bytes,
        name: str,
        platform: str,
        model: str,
        user_id: int | None = None,
        registration_code: str | None = None,
        enrolment_token: str | None = None,
        prove: Callable[[bytes], str] | None = None,
    ) -> Registration:
        """Register this device with a granted code and its ``user_id``, or with an enrolment token.

        ``prove`` answers the plane's challenge, which is sealed to the public key. A plane may send none; it is asked
        for none without ``prove``.
        """
        from certctrl.model.features import AGENT_FEATURES, KEY_PROOF
        from certctrl.protocol.wire.registration import challenge_from_wire, registration_from_wire

        body: dict[str, Any] = {
            "device_public_id": device_public_id,
            "dev_pk": base64.b64encode(public_key).decode("ascii"),
            "name": name,
            "platform": platform,
            "model": model,
            "app_version": __version__,
            "user_agent": f"cert-ctrl/{__version__}",
        }
        if prove is not None:
            body["features"] = [KEY_PROOF, *AGENT_FEATURES]
        if enrolment_token is not None:
            body["enrolment_token"] = enrolment_token
        else:
            body |= {"user_id": user_id, "registration_code": registration_code}
        data = await self._register(body)
        challenge = challenge_from_wire(data)
        if challenge is not None and prove is not None:
            data = await self._register(body | {"challenge_response": prove(challenge.sealed)})
        return registration_from_wire(data)

    async def _register(self, body: dict[str, Any]) -> Any:
        answer = await self._send("POST", "/apiv1/device/registration", json=body, cap=BUNDLE_CAP)
        return self._data(answer, cap=BUNDLE_CAP)

    async def refresh(
        self,
        refresh_token: str,
        device_public_id: str,
        *,
        deadline: float | None = None,
        anchors: Sequence[str] = (),
    ) -> Refreshed:
        """Refresh the access token. After a TransportError with ``maybe_sent``, the refresh token may be used up.

        ``deadline``: seconds for the exchange, if shorter than the configured request timeout. ``anchors``: SHA-256
        fingerprints of the CAs by which this agent verifies the plane.
        """
        body: dict[str, Any] = {"refresh_token": refresh_token, "device_public_id": device_public_id}
        if anchors:
            body["plane_anchors_sha256"] = list(anchors)
        longest = self._config.httpclient.request_timeout_seconds
        seconds = longest if deadline is None else min(deadline, longest)
        path = self._config.application.refresh_path
        answer = await self._send("POST", path, json=body, deadline=seconds, cap=BUNDLE_CAP)
        if answer.status == 401 and not answer.is_json:  # from a gateway: only the plane may end the session
            raise BadAnswerError("status 401 came without JSON")
        return refreshed_from_wire(self._data(answer, cap=BUNDLE_CAP))
