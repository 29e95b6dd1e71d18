"""Operator endpoints for imports, and for checks and renewals of many certificates (docs/protocol.md)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.ca.x509 import KEY_TYPES
from certctrl.plane.certificates.imports import ImportRequest
from certctrl.plane.core import Plane
from certctrl.plane.http import operator_bodies
from certctrl.plane.http.answers import data_answer
from certctrl.plane.http.authentication import Authenticator
from certctrl.plane.http.bodies import read_as
from certctrl.plane.http.reading import LARGE_BODY_CAP
from certctrl.plane.http.routing import USER, Endpoint, number, routes_of


class LifecycleApi:
    """The endpoints, one method each."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._authenticator = Authenticator(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        guarded: list[tuple[str, str, Endpoint]] = [
            ("POST", f"{USER}/certificate-imports", self.add_import),
            ("POST", f"{USER}/certificate-checks", self.check),
            ("POST", f"{USER}/renewals", self.renew),
            ("GET", f"{USER}/certificate-sets", self.sets), ("POST", f"{USER}/certificate-sets", self.put_set),
            ("GET", f"{USER}/batches", self.batches), ("POST", f"{USER}/batches/{{name}}/dissolve", self.dissolve),
        ]  # fmt: skip
        only = self._authenticator.operators_only
        return routes_of([(method, path, only(endpoint)) for method, path, endpoint in guarded])

    async def add_import(self, request: Request) -> Response:
        """Import a certificate: ``{"certificate_pem", "private_key_pem", "chain_pem"?, "cert_id"?, "device_ids"?}``."""
        body = await read_as(operator_bodies.CertificateImport, request, LARGE_BODY_CAP)
        user_id, new = number(request, "uid"), import_of(body)
        row = await self._plane.imports.add(user_id, new, cert_id=body.cert_id, device_ids=body.device_ids)
        return data_answer(row, 201)

    async def check(self, request: Request) -> Response:
        """Check certificates without issuing them: ``{"certificates": [as for POST certificates]}``."""
        body = await read_as(operator_bodies.CertificateChecks, request, LARGE_BODY_CAP)
        wanted = [issue_arguments(one) for one in body.certificates]
        return data_answer(await self._plane.bulk.check(number(request, "uid"), wanted))

    async def renew(self, request: Request) -> Response:
        """Order renewals: ``{"cert_ids", "reason"?, "together"?}``."""
        body = await read_as(operator_bodies.Renewals, request)
        renew, user_id = self._plane.bulk.renew, number(request, "uid")
        return data_answer(await renew(user_id, body.cert_ids, body.reason, together=body.together), 202)

    async def sets(self, request: Request) -> Response:
        """Return the sets of certificates that are renewed together."""
        return data_answer(await self._plane.work(self._plane.batches.sets, number(request, "uid")))

    async def put_set(self, request: Request) -> Response:
        """Set or end a set: ``{"name", "cert_ids"}``."""
        body, user_id = await read_as(operator_bodies.CertificateSet, request), number(request, "uid")
        return data_answer(await self._plane.work(self._plane.batches.mark, user_id, body.name, body.cert_ids))

    async def batches(self, request: Request) -> Response:
        """Return the batches that wait for certificates."""
        return data_answer(await self._plane.work(self._plane.batches.open_batches, number(request, "uid")))

    async def dissolve(self, request: Request) -> Response:
        """Deliver the issued certificates of a batch separately."""
        user_id, batch = number(request, "uid"), request.path_params["name"]
        return data_answer(await self._plane.work_long(self._plane.batches.dissolve, user_id, batch))


def import_of(body: operator_bodies.CertificateImport) -> ImportRequest:
    """Return the certificates and the key of a body."""
    chain = body.chain_pem or ""
    return ImportRequest(certificate_pem=body.certificate_pem, private_key_pem=body.private_key_pem, chain_pem=chain)


def issue_arguments(body: operator_bodies.NewCertificate) -> dict[str, object]:
    """Return the arguments of ``Certificates.issue`` for a body."""
    fields = ("validity_seconds", "device_ids", "issuer", "profile", "must_staple", "reuse_key", "key_origin")
    return {
        "domains": [body.domain_name, *body.sans],
        "key_type": body.key_type or KEY_TYPES[0],
        **{name: getattr(body, name) for name in fields},
    }
