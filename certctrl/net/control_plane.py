"""ControlPlane: the agent's requests to the plane (docs/protocol.md).

Every method raises PlaneError (the plane refused), BadAnswerError (the answer is outside the wire contract) or
another TransportError (there was no answer); `poll` and `poll_grant` return events instead. Answers are never logged,
because they contain tokens and sealed keys.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from certctrl.errors import BadAnswerError, PlaneError, TransportError
from certctrl.model.certificate import CaBundle, CertificateSummary, DeployMaterials
from certctrl.model.config import AgentConfig
from certctrl.model.features import BATCH_FETCH
from certctrl.net.calls import ABSENT, UnsupportedByPlane, parsed
from certctrl.net.certificate_changes import MAX_CERTIFICATES, MAX_LIST_BYTES, MAX_PAGES, PAGE, CertificateChanges
from certctrl.protocol import events
from certctrl.protocol.wire.answer import BATCH_CAP, BUNDLE_CAP, MAX_ETAG, plain_etag
from certctrl.protocol.wire.certificates import (
    Fetched,
    ca_from_wire,
    ca_names_from_wire,
    certificate_from_wire,
    many_materials_from_wire,
    materials_from_wire,
)
from certctrl.protocol.wire.poll import PollRequest, poll_event
from certctrl.protocol.wire.reader import object_in
from certctrl.protocol.wire.signals import report_body

if TYPE_CHECKING:
    from certctrl.model.answer import Answer
    from certctrl.model.priority import Priority
    from certctrl.net.http import Http
    from certctrl.net.stream import Stream
    from certctrl.protocol.steps import Poll

__all__ = ["ControlPlane", "UnsupportedByPlane"]

AHEAD_LIMIT, AHEAD_SECONDS = 100, 5.0
"""Number of signals that are requested ahead of the cursor, and the time limit of that request."""
_SELF = "/apiv1/devices/self"


class ControlPlane(CertificateChanges):
    """The client of one device for one plane."""

    def __init__(self, http: Http, config: AgentConfig, *, wall_now: Callable[[], float], instance: str = "") -> None:
        """``instance`` identifies one start of an agent in its polls; commands that only read have none."""
        super().__init__(http, config, wall_now=wall_now)
        self._instance = {"cert-ctrl-instance": instance} if instance else {}
        self.copies_suspected = False
        """Whether another agent polls as this device, according to the plane's last answer to a poll."""
        self._old_materials = False
        self._old_install_config = False

    # --- updates and acks ---------------------------------------------------------------------------------

    async def poll(self, token: str, step: Poll) -> events.PollAnswer:
        """Poll for signals; return an event even if the network fails."""
        request = PollRequest(step.cursor, step.limit, step.wait)
        settings = self._config.httpclient
        deadline = step.wait + settings.long_poll_extra_seconds if step.wait else settings.request_timeout_seconds
        try:
            answer = await self._send(
                "GET",
                request.path,
                token,
                query=request.query(),
                headers=request.headers() | self._instance,
                deadline=deadline,
            )
        except BadAnswerError as error:
            return events.BadAnswer(str(error))
        except TransportError as error:
            return events.TransportFailed(str(error), fix=error.fix or "", sent=error.maybe_sent)
        event = await parsed(answer, partial(poll_event, answer, step.limit, self._wall_now()))
        self._understood = not isinstance(event, events.BadAnswer)
        if answer.status in (200, 204):
            self.copies_suspected = "cert-ctrl-copies" in answer.headers
        return event

    async def open_stream(self, token: str) -> Stream | Answer:
        """Open the push socket; return the answer that refuses it instead. Raises TransportError."""
        from certctrl.protocol.wire.push import MAX_RECEIVED, STREAM_PATH, SUBPROTOCOL  # here: only push mode needs it

        opened = await self._http.open_stream(
            STREAM_PATH,
            subprotocol=SUBPROTOCOL,
            headers={"authorization": f"Bearer {token}"} | self._instance,
            deadline=self._config.httpclient.request_timeout_seconds,
            cap=MAX_RECEIVED,
        )
        self._note_date(opened.headers)
        self.copies_suspected = "cert-ctrl-copies" in opened.headers
        return opened

    async def look_ahead(self, token: str, cursor: str | None, classes: Collection[Priority]) -> events.PollAnswer:
        """Return signals of some classes that follow the cursor, as `poll`, but the cursor stays where it is.

        For planes that announced `PRIORITY`. Raises TransportError.
        """
        request = PollRequest(cursor, AHEAD_LIMIT)
        query = request.query() | {"ahead": ",".join(sorted(classes))}
        answer = await self._send(
            "GET", request.path, token, query=query, headers=request.headers() | self._instance, deadline=AHEAD_SECONDS
        )
        return await parsed(answer, partial(poll_event, answer, AHEAD_LIMIT, self._wall_now()))

    async def post_notify(self, token: str, notices: Sequence[Mapping[str, Any]]) -> None:
        """Report outcomes, at most 100 in one call.

        Raises UnsupportedByPlane if the plane does not accept outcomes (404, 405, 501). Such an answer in another form
        than the plane's only counts right after an answer in the plane's form: otherwise, the 404 page of a captive
        portal would make the agent discard its outcomes.
        """
        understood = self._understood
        answer = await self._send("POST", f"{_SELF}/notify", token, json=report_body(notices))
        try:
            self._succeeded(answer)
        except (PlaneError, BadAnswerError) as error:
            if answer.status in ABSENT and (understood or (answer.is_json and isinstance(error, PlaneError))):
                raise UnsupportedByPlane(error.what, status=answer.status) from None
            raise

    # --- resources ------------------------------------------------------------------------------------------

    async def fetch_install_config(
        self, token: str, user_id: int | None, device_id: int | None, etag: str | None
    ) -> tuple[str, dict[str, Any]] | None:
        """Return the ETag (empty: none) and the unverified ``data``; None if ``etag`` is still current (304).

        Without ids, or if the plane lacks the path with them, the path below ``/devices/self`` is used.
        """
        paths = [f"{_SELF}/install-config"]
        if user_id is not None and device_id is not None:
            paths.insert(0, f"/apiv1/users/{user_id:d}/devices/{device_id:d}/install-config")
        if self._old_install_config:
            paths.reverse()
        headers = {"if-none-match": etag} if etag else {}
        answer, path = await self._first_present(paths, token, headers=headers)
        self._old_install_config = path.startswith(_SELF)
        if answer.status == 304 and etag:
            return None
        data = await parsed(answer, partial(self._data, answer))
        return _usable_etag(answer.headers.get("etag")), object_in(data, "install config")

    async def fetch_certificates(self, token: str) -> list[CertificateSummary]:
        """Return all certificates assigned to this device, ordered by id.

        One row that does not fit fails the call, because a missing row means "unassigned".
        """
        async with self._listing:
            return await self._list_certificates(token)

    async def _list_certificates(self, token: str) -> list[CertificateSummary]:
        found: dict[int, CertificateSummary] = {}
        size = 0
        for _ in range(MAX_PAGES):
            query = {"after_id": max(found, default=0), "limit": PAGE}
            answer = await self._send("GET", f"{_SELF}/certificates", token, query=query)
            rows = await parsed(answer, partial(self._certificates, answer))
            known = len(found)
            found |= {row.id: row for row in rows}
            if len(rows) < PAGE or len(found) == known:  # the last page, or a plane without paging
                return [found[number] for number in sorted(found)]
            if len(found) > MAX_CERTIFICATES:
                break
            size += sum(map(_size_of, rows))
            if size > MAX_LIST_BYTES:
                raise BadAnswerError(f"the certificate list needs more than {MAX_LIST_BYTES >> 20} MiB of memory")
        raise BadAnswerError(f"the certificate list does not end after {MAX_CERTIFICATES} certificates")

    def _certificates(self, answer: Answer) -> list[CertificateSummary]:
        data = self._data(answer)
        if not isinstance(data, list):
            raise BadAnswerError("the certificate list is not a list")
        if len(data) > MAX_CERTIFICATES:
            raise BadAnswerError(f"more than {MAX_CERTIFICATES} certificates in one page")
        # a detail's texts are never used from a list
        return [attrs.evolve(certificate_from_wire(row), certificate_pem=None, chain_pem=None) for row in data]

    async def fetch_certificate(self, token: str, cert_id: int) -> CertificateSummary:
        """Return one certificate with its PEM texts; raises PlaneError 404 or 410 if it is gone."""
        answer = await self._send("GET", f"{_SELF}/certificates/{cert_id:d}", token, cap=BUNDLE_CAP)
        data = await parsed(answer, partial(self._data, answer, cap=BUNDLE_CAP))
        found = certificate_from_wire(data)
        if found.id != cert_id:
            raise BadAnswerError(f"requested certificate {cert_id}, got {found.id}")
        return found

    async def fetch_materials(self, token: str, cert_id: int) -> DeployMaterials:
        """Return the sealed material of a certificate; missing PEM texts are fetched from its detail.

        Raises PlaneError: 409 ``WRAP_PENDING`` (later), 403 ``EXPORT_FORBIDDEN``, 404 or 410 (gone).
        """
        materials = await self.fetch_changed_materials(token, cert_id, "")
        if materials is None:
            raise BadAnswerError("the plane answers 304 to an unconditional request for material")
        return materials

    async def fetch_changed_materials(self, token: str, cert_id: int, etag: str) -> DeployMaterials | None:
        """Return the material of a certificate, as `fetch_materials`; None if ``etag`` is still current (304)."""
        headers = {"if-none-match": f'"{etag}"'} if etag else {}
        paths = [f"{_SELF}/certificates/{cert_id:d}/{name}" for name in ("deploy-materials", "bundle")]
        if self._old_materials:
            paths.reverse()
        answer, path = await self._first_present(paths, token, headers=headers, cap=BUNDLE_CAP)
        if answer.status == 304 and etag:
            return None
        data = await parsed(answer, partial(self._data, answer, cap=BUNDLE_CAP))
        self._old_materials = path.endswith("/bundle")
        materials = materials_from_wire(data)
        if materials.certificate_pem and (materials.chain_pem or "chain_pem" in data):
            return attrs.evolve(materials, etag=plain_etag(answer.headers.get("etag"), MAX_ETAG))
        detail = await self.fetch_certificate(token, cert_id)
        return attrs.evolve(
            materials,
            certificate_pem=materials.certificate_pem or detail.certificate_pem,
            chain_pem=materials.chain_pem or detail.chain_pem,
            serial_number=materials.serial_number or detail.serial_number,
        )

    async def fetch_many_materials(self, token: str, wanted: Mapping[int, str]) -> dict[int, Fetched]:
        """Return the material of up to 100 certificates by id, the error of one, or None if its ETag is still current.

        ``wanted``: id -> ETag of the live material, or empty. Ids without a result must be fetched alone. Only for
        planes with ``batch-fetch``. Raises UnsupportedByPlane if the plane lacks it after all.
        """
        json: dict[str, Any] = {"cert_ids": [*wanted]}
        if etags := {str(cert_id): etag for cert_id, etag in wanted.items() if etag}:
            json["etags"] = etags
        answer = await self._send("POST", f"{_SELF}/deploy-materials", token, json=json, cap=BATCH_CAP)
        if self.lacks(BATCH_FETCH, answer):
            raise UnsupportedByPlane("the control plane has no batch fetch", status=answer.status)
        return await parsed(answer, lambda: many_materials_from_wire(self._data(answer, cap=BATCH_CAP), wanted))

    async def send_csr(self, token: str, cert_id: int, order_id: int, csr_pem: str) -> None:
        """Send the signing request that an order wants; repeating it with the same key is safe.

        Raises PlaneError: 404 or 410 (the order has ended), 409 ``CSR_CONFLICT`` (it has one with another key).
        """
        body = {"order_id": order_id, "csr_pem": csr_pem}
        self._succeeded(await self._send("POST", f"{_SELF}/certificates/{cert_id:d}/csr", token, json=body))

    async def send_key(self, token: str, public_key: bytes, responses: Mapping[str, str]) -> dict[str, bytes]:
        """Send the public key that this device wants to have; return challenges by name, none if the plane has the key.

        ``responses`` are the answers to these challenges. Raises PlaneError: 409 if the plane wants no other key.
        """
        from certctrl.protocol.wire.registration import key_challenges  # here: few sessions need it

        body = {"dev_pk": base64.b64encode(public_key).decode("ascii"), **responses}
        return key_challenges(self._data(await self._send("POST", f"{_SELF}/key", token, json=body)))

    async def fetch_cas(self, token: str) -> dict[int, str] | None:
        """Return the names, by id, of all CAs that this device must trust; None if the plane has no list of them.

        One row that does not fit fails the call, as for certificates.
        """
        answer = await self._send("GET", f"{_SELF}/cas", token)
        if answer.status in ABSENT:
            return None
        return await parsed(answer, lambda: ca_names_from_wire(self._data(answer)))

    async def fetch_ca(self, token: str, ca_id: int) -> CaBundle:
        """Return a private CA's certificate."""
        data = self._data(await self._send("GET", f"{_SELF}/cas/{ca_id:d}/bundle", token, cap=BUNDLE_CAP))
        return ca_from_wire(data)

    async def request_renewal(
        self, token: str, user_id: int | None, cert_id: int, reason: str = "", *, key_lost: bool = False
    ) -> None:
        """Request new material, which is announced by ``cert.renewed``.

        ``key_lost``: the key that this host made for the current or the coming certificate is gone.
        """
        if user_id is None:
            raise BadAnswerError("the access token contains no user id")
        body: dict[str, Any] = {"action": "renew"} | ({"reason": reason} if reason else {})
        body |= {"key_lost": True} if key_lost else {}
        path = f"/apiv1/users/{user_id:d}/certificates/{cert_id:d}/issues"
        self._succeeded(await self._send("POST", path, token, json=body))


def _size_of(row: CertificateSummary) -> int:
    """Return the memory of a row's texts."""
    texts = (row.domain_name, row.serial_number, row.fingerprint_sha256, row.not_before, row.not_after, row.status)
    return sum(map(sys.getsizeof, (*texts, row.updated_at, *row.sans)))


def _usable_etag(etag: str | None) -> str:
    """Return an ETag if it is valid in a header, otherwise an empty one."""
    if not etag or len(etag) > 256 or not all(" " <= c <= "~" for c in etag):
        return ""
    return etag
