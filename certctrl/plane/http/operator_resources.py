"""Operator endpoints for install configs, certificates and CAs (docs/protocol.md).

Devices may use two of them: to read their own install config, and to renew certificates assigned to them.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.ca.x509 import KEY_TYPES
from certctrl.plane.core import Plane
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.errors import bad_request, forbidden, not_found
from certctrl.plane.http import operator_bodies
from certctrl.plane.http.answers import data_answer, empty_answer
from certctrl.plane.http.authentication import Authenticator
from certctrl.plane.http.bodies import read_as
from certctrl.plane.http.device_api import install_config_answer
from certctrl.plane.http.listing import listed_by_tag
from certctrl.plane.http.reading import LARGE_BODY_CAP, read_json
from certctrl.plane.http.routing import (
    CERTIFICATE,
    DEVICE,
    USER,
    Endpoint,
    number,
    routes_of,
    user_and_certificate,
    user_and_device,
)
from certctrl.plane.http.scopes import tags_of
from certctrl.protocol.wire.install_config import listed_items
from certctrl.protocol.wire.reader import Misfit

_USERS = "/apiv1/users"


class OperatorResources:
    """The endpoints, one method each."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._authenticator = Authenticator(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        guarded: list[tuple[str, str, Endpoint]] = [
            ("PUT", f"{DEVICE}/install-config", self.put_install_config),
            ("GET", f"{DEVICE}/certificates", self.device_certificates),
            ("POST", f"{DEVICE}/certificates", self.assign),
            ("DELETE", f"{DEVICE}/certificates/{{cid}}", self.unassign),
            ("GET", f"{DEVICE}/cas", self.device_authorities), ("POST", f"{DEVICE}/cas", self.assign_authority),
            ("DELETE", f"{DEVICE}/cas/{{caid}}", self.unassign_authority),
            ("GET", f"{USER}/certificates", self.certificates), ("POST", f"{USER}/certificates", self.issue),
            ("GET", CERTIFICATE, self.certificate), ("PATCH", CERTIFICATE, self.change_certificate),
            ("POST", f"{CERTIFICATE}/revoke", self.revoke_certificate),
            ("GET", f"{USER}/cas", self.authorities), ("POST", f"{USER}/cas", self.add_authority),
        ]  # fmt: skip
        shared = self._authenticator.operators_or_devices
        only = self._authenticator.operators_only
        return routes_of(
            [
                *((method, path, only(endpoint)) for method, path, endpoint in guarded),
                ("GET", f"{DEVICE}/install-config", shared(self.install_config)),
                ("POST", f"{CERTIFICATE}/issues", shared(self.renew)),
            ]
        )

    # --- install configs --------------------------------------------------------------------------------------

    async def install_config(self, request: Request) -> Response:
        """Return a device's install config, to operators and to the device itself; ``?own=1``: to operators, its own items."""
        user_id, device_id = user_and_device(request)

        def read(session: DeviceSession | None = None) -> Response:
            if session is not None and (session.user_id, session.device_id) != (user_id, device_id):
                raise forbidden("This belongs to another device")
            self._plane.devices.row(user_id, device_id)
            if session is None and request.query_params.get("own") == "1":
                return data_answer({"installs": self._plane.installs.own(device_id)})
            return install_config_answer(self._plane, device_id, request)

        if self._authenticator.is_operator(request):
            return await self._plane.work(read)
        return await self._authenticator.as_device(request, read)

    async def put_install_config(self, request: Request) -> Response:
        """Replace the items: ``{"installs": […]}`` or the list itself; ``?unchecked=1`` skips the check."""
        user_id, device_id = user_and_device(request)
        try:
            items = listed_items(await read_json(request, LARGE_BODY_CAP))
        except Misfit:
            raise bad_request('Send {"installs": […]}, a list of items', field="installs") from None
        check = request.query_params.get("unchecked") != "1"
        return data_answer(await self._plane.installs.put(device_id, items, check=check, user_id=user_id))

    # --- certificates -------------------------------------------------------------------------------------------

    async def certificates(self, request: Request) -> Response:
        """Return a user's certificates; ``?after_id=&limit=`` for a page, ``?tag=`` for those on devices with a tag."""
        return await listed_by_tag(self._plane, request, self._plane.certificates.page_of_user)

    async def issue(self, request: Request) -> Response:
        """Issue or order a certificate; the body is a ``operator_bodies.NewCertificate``."""
        user_id = number(request, "uid")
        body = await read_as(operator_bodies.NewCertificate, request)
        row = await self._plane.certificates.issue(
            user_id,
            [body.domain_name, *body.sans],
            key_type=body.key_type or KEY_TYPES[0],
            validity_seconds=body.validity_seconds,
            device_ids=body.device_ids,
            issuer=body.issuer,
            profile=body.profile,
            must_staple=body.must_staple,
            reuse_key=body.reuse_key,
            key_origin=body.key_origin,
        )
        return data_answer(row, 202 if row["status"] == "pending" else 201)

    async def certificate(self, request: Request) -> Response:
        """Return one certificate."""
        ids, scope = user_and_certificate(request), tags_of(request)
        return data_answer(await self._plane.work_long(self._plane.certificates.show, *ids, scope))

    async def change_certificate(self, request: Request) -> Response:
        """Change the issuer of a certificate: ``{"issuer"}``."""
        body = await read_as(operator_bodies.CertificateChange, request)
        changed = await self._plane.certificates.change(*user_and_certificate(request), issuer=body.issuer)
        return data_answer(changed)

    async def renew(self, request: Request) -> Response:
        """Renew: ``{"action": "renew", "reason"?}``, by an operator or a device with the certificate."""
        user_id, cert_id = user_and_certificate(request)
        device_id = None
        if not self._authenticator.is_operator(request):
            session = await self._authenticator.as_device(request, lambda session: session)
            if session.user_id != user_id:
                raise not_found("No such certificate")
            device_id = session.device_id
        body = await read_as(operator_bodies.Renewal, request)
        lost = body.key_lost and device_id is not None
        renewal = await self._plane.certificates.renew(
            user_id, cert_id, reason=body.reason, device_id=device_id, key_lost=lost
        )
        return data_answer(renewal, 202)

    async def revoke_certificate(self, request: Request) -> Response:
        """Revoke: ``{"reason"?, "reason_code"?, "serial_number"?, "replace"?, "confirmed"?}``."""
        body = await read_as(operator_bodies.Revocation, request)
        user_id, cert_id = user_and_certificate(request)
        revoked = await self._plane.certificates.revoke(
            user_id,
            cert_id,
            reason=body.reason,
            reason_code=body.reason_code,
            serial_number=body.serial_number,
            replace=body.replace,
            confirmed=body.confirmed,
        )
        return data_answer(revoked)

    async def device_certificates(self, request: Request) -> Response:
        """Return the certificates assigned to a device."""
        user_id, device_id = user_and_device(request)

        def read() -> list[dict[str, Any]]:
            self._plane.devices.row(user_id, device_id)
            return self._plane.certificates.page(device_id, 0, 10_000)

        return data_answer(await self._plane.work_long(read))

    async def assign(self, request: Request) -> Response:
        """Assign a certificate to a device: ``{"cert_id"}``."""
        body = await read_as(operator_bodies.CertificateAssignment, request)
        return data_answer(
            await self._plane.certificates.assign(*user_and_device(request), body.cert_id, tags_of(request))
        )

    async def unassign(self, request: Request) -> Response:
        """Unassign a certificate from a device."""
        await self._plane.certificates.unassign(*user_and_device(request), number(request, "cid"))
        return empty_answer()

    # --- CAs ------------------------------------------------------------------------------------------------------

    async def authorities(self, request: Request) -> Response:
        """Return a user's CAs."""
        return data_answer(await self._plane.work_long(self._plane.authorities.show_all, number(request, "uid")))

    async def add_authority(self, request: Request) -> Response:
        """Store a CA: ``{"name", "ca_certificate_pem"?}``; without a certificate, the plane's own root."""
        user_id = number(request, "uid")
        body = await read_as(operator_bodies.NewAuthority, request, LARGE_BODY_CAP)
        added = await self._plane.work(self._plane.authorities.add, user_id, body.name, body.ca_certificate_pem)
        return data_answer(added, 201)

    async def device_authorities(self, request: Request) -> Response:
        """Return the CAs assigned to a device."""
        user_id, device_id = user_and_device(request)

        def read() -> list[dict[str, Any]]:
            self._plane.devices.row(user_id, device_id)
            return self._plane.authorities.of_device(device_id)

        return data_answer(await self._plane.work(read))

    async def assign_authority(self, request: Request) -> Response:
        """Make a device trust a CA: ``{"ca_id"}``."""
        body = await read_as(operator_bodies.AuthorityAssignment, request)
        return data_answer(await self._plane.authorities.assign(*user_and_device(request), body.ca_id))

    async def unassign_authority(self, request: Request) -> Response:
        """Make a device stop trusting a CA."""
        await self._plane.authorities.unassign(*user_and_device(request), number(request, "caid"))
        return empty_answer()
