"""Endpoints of devices: enrolment, tokens, updates, resources, reports (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, assert_never
from urllib.parse import quote

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.model.priority import Priority, priority_named
from certctrl.plane.audit.acts import note_request
from certctrl.plane.ca.sealing import device_key
from certctrl.plane.certificates.batch import batch
from certctrl.plane.certificates.revisions import Changes, changes
from certctrl.plane.certificates.views import ListOfDevice
from certctrl.plane.core import Plane
from certctrl.plane.devices.grants import GrantRequest
from certctrl.plane.devices.reports import is_costly, is_few_acks
from certctrl.plane.devices.sessions import DeviceSession, FormerHardwareError, or_error
from certctrl.plane.errors import ErrorResponse, bad_request
from certctrl.plane.http import device_bodies, event_bodies
from certctrl.plane.http.answers import data_answer, empty_answer, json_answer, json_of
from certctrl.plane.http.authentication import Authenticator, ForDevices, address_of, etag_of
from certctrl.plane.http.bodies import body_of, read_as
from certctrl.plane.http.memo import MEMO, remembered
from certctrl.plane.http.middleware import GONE, error_response_of
from certctrl.plane.http.permissions import DECIDE_GRANT
from certctrl.plane.http.reading import LARGE_BODY_CAP, clean_line, query_of, read_object, whole_number
from certctrl.plane.http.routing import SELF
from certctrl.plane.limits import caller_of
from certctrl.plane.polls import DEFAULT_LIMIT, MAX_SIGNALS, MAX_WAIT_SECONDS, Poll
from certctrl.protocol.wire.poll import FREE_HEADER, FREE_VALUE

_MAX_PAGE = 500
_FEW_ROWS = 100
"""Certificates that are compared on the event loop."""


class DeviceApi:
    """The endpoints, one method each."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._authenticator = Authenticator(plane)
        self._polls = ForDevices(plane, plane.polls.begin_all, plane.read_alone)
        self._materials = ForDevices(plane, plane.certificates.materials_of, plane.read_alike)
        self._batches = ForDevices(plane, plane.certificates.batches_of, plane.read_alone)
        self._acks = ForDevices(plane, plane.reports.store_acks, plane.change_alike)
        self._lists = ForDevices(plane, self._read_lists, plane.read_alike)

    def routes(self) -> list[Route]:
        """Return the routes, the most used first."""
        return [
            Route(f"{SELF}/updates", self.updates),
            Route(f"{SELF}/notify", self.notify, methods=["POST"]),
            Route(f"{SELF}/certificates", self.certificates),
            Route(f"{SELF}/certificates/{{cert_id}}", self.certificate),
            Route(f"{SELF}/certificates/{{cert_id}}/deploy-materials", self.materials),
            Route(f"{SELF}/deploy-materials", self.many_materials, methods=["POST"]),
            Route(f"{SELF}/certificates/{{cert_id}}/csr", self.signing_request, methods=["POST"]),
            Route(f"{SELF}/install-config", self.install_config),
            Route(f"{SELF}/cas", self.authorities),
            Route(f"{SELF}/cas/{{ca_id}}/bundle", self.authority),
            Route(f"{SELF}/key", self.new_key, methods=["POST"]),
            Route("/auth/token/refresh", self.refresh, methods=["POST"]),
            Route("/auth/device", self.grant, methods=["POST"]),
            Route("/apiv1/device/registration", self.register, methods=["POST"]),
        ]

    # --- enrolment and tokens ------------------------------------------------------------------------------

    async def grant(self, request: Request) -> Response:
        """Start or poll a device grant, or decide one (operators only)."""
        body = await read_object(request)
        match body_of(device_bodies.Grant, body).action:
            case device_bodies.GrantAction.START:
                return data_answer(await self._start_grant(request, body_of(device_bodies.GrantStart, body)))
            case device_bodies.GrantAction.POLL:
                code, caller = body_of(device_bodies.GrantPoll, body).device_code, caller_of(address_of(request))
                return data_answer(await self._plane.work(self._plane.grants.poll, code, caller))
            case device_bodies.GrantAction.VERIFY:
                return await self._decide_grant(request, body)
            case other:
                assert_never(other)

    async def _decide_grant(self, request: Request, body: dict[str, object]) -> Response:
        caller = await self._authenticator.require_operator(request)
        with self._authenticator.allowed(request, caller, DECIDE_GRANT):
            verify = body_of(device_bodies.GrantVerify, body)
            note_request(verify)
            decided = await self._plane.work(
                self._plane.decide, verify.user_code, approve=verify.approve, user_id=verify.user_id
            )
        return data_answer(decided)

    async def _start_grant(self, request: Request, start: device_bodies.GrantStart) -> dict[str, object]:
        address = address_of(request)
        asked = GrantRequest(
            address=address,
            name=start.name,
            platform=start.platform,
            device_public_id=start.device_public_id,
            user_agent=clean_line(request.headers.get("user-agent", ""), 200),
            scopes=" ".join(start.scopes),
        )
        grant = await self._plane.work(self._plane.grants.start, asked, caller_of(address))
        if isinstance(grant, ErrorResponse):
            raise grant
        page = (self._plane.settings.public_url or str(request.base_url)).rstrip("/") + "/device"
        complete = f"{page}?user_code={quote(grant['user_code'])}"
        return grant | {"verification_uri": page, "verification_uri_complete": complete}

    async def register(self, request: Request) -> Response:
        """Register a device by registration code or enrolment token; the first answer may be a challenge for its key."""
        body, enrolment = await read_object(request), self._plane.enrolment
        if body.get("enrolment_token"):
            token = body_of(device_bodies.UnattendedRegistration, body)
            key = device_key(token.dev_pk)
            facts, proof = token.facts(), token.proof()
            return data_answer(
                await self._plane.work(enrolment.register_unattended, token.enrolment_token, facts, key, proof)
            )
        code = body_of(device_bodies.ApprovedRegistration, body)
        key = device_key(code.dev_pk)
        facts, proof = code.facts(), code.proof()
        return data_answer(
            await self._plane.work(enrolment.register_approved, code.user_id, code.registration_code, facts, key, proof)
        )

    async def new_key(self, request: Request) -> Response:
        """Replace the key of the device, as an operator wants it; the first answer is a challenge for each key."""
        self._authenticator.claimed_device(request)  # read no bodies from strangers
        body = await read_as(device_bodies.NewKey, request)
        key, proofs, rotate = device_key(body.dev_pk), body.proofs(), self._plane.rotation.rotate
        rotated = await self._authenticator.as_device(request, lambda one: rotate(one.device_id, key, proofs))
        return data_answer(rotated)

    async def refresh(self, request: Request) -> Response:
        """Return a new access token for a refresh token, and the anchor that the plane will switch to."""
        body = await read_as(device_bodies.Refresh, request)
        try:
            return data_answer(
                await self._plane.refresh(body.refresh_token, body.device_public_id, body.plane_anchors_sha256)
            )
        except FormerHardwareError as error:
            await self._plane.clones.note_former(error.device_id, address_of(request))
            raise

    # --- updates and reports -------------------------------------------------------------------------------

    async def updates(self, request: Request) -> Response:
        """Respond to a poll: 200 with signals, 204 without; a long poll waits for signals.

        A plane that stops sends devices away for some seconds, so that they do not return to a closed port. They get
        their signals later, too: what these announce could no longer be fetched.
        """
        plane = self._plane
        with plane.stream.waiter(self._authenticator.claimed_device(request)) as waiter:
            poll = or_error(remembered, request.scope.get(MEMO), _poll_of, request)
            _, held = await self._authenticator.as_device_alike(request, self._polls, poll)
            copied = await plane.clones.note(held.session, held.poll.instance)
            page = await plane.polls.finish(held, waiter, _gone(request))
        headers = {"cert-ctrl-copies": "suspected"} if copied else {}
        if plane.polls.draining:
            cursor = held.poll.cursor if page.signals else page.cursor
            headers |= {"retry-after": str(plane.polls.pace.return_seconds())} | ({"etag": cursor} if cursor else {})
            return empty_answer(headers=headers)
        headers |= {"etag": page.cursor} | ({FREE_HEADER: FREE_VALUE} if page.next_is_free else {})
        if not page.signals:
            return empty_answer(headers=headers)
        return data_answer({"cursor": page.cursor, "signals": page.signals}, headers=headers)

    async def notify(self, request: Request) -> Response:
        """Store a batch of outcomes."""
        device_id = self._authenticator.claimed_device(request)  # read no large bodies from strangers
        report: event_bodies.Report | ErrorResponse
        try:
            report = await read_as(event_bodies.Report, request, LARGE_BODY_CAP)
        except ErrorResponse as error:
            report = error  # errors of the session take precedence
        if isinstance(report, ErrorResponse) or is_few_acks(report.events):
            acks = report if isinstance(report, ErrorResponse) else report.events
            await self._authenticator.as_device_alike(request, self._acks, acks)
            return empty_answer()
        events, costly = report.events, is_costly(report.events)

        if costly:  # counted here: a long unit of work runs in a thread, which has no Trio clock
            self._plane.polls.take_costly(device_id)

        def store(session: DeviceSession) -> None:
            self._plane.reports.store(session.device_id, events)

        await self._authenticator.as_device(request, store, long=costly)
        return empty_answer()

    # --- resources -------------------------------------------------------------------------------------------

    async def certificates(self, request: Request) -> Response:
        """Return a page of the device's certificates, or what has changed since a revision (``updated_since``)."""
        if (since := request.query_params.get("updated_since")) is not None:
            return await self._changes(request, since)

        self._plane.polls.take_costly(self._authenticator.claimed_device(request))

        def read(session: DeviceSession) -> list[dict[str, Any]]:
            after_id, limit = _page_of(request)
            return self._plane.certificates.page(session.device_id, after_id, limit)

        return data_answer(await self._authenticator.as_device(request, read))

    def _read_lists(
        self, wanted: Sequence[tuple[DeviceSession, tuple[int, int]]]
    ) -> list[tuple[int, int, ListOfDevice]]:
        """Return ``after_id``, ``limit`` and the whole list for each device and page."""
        return [(*page, self._plane.certificates.list_of(session.device_id)) for session, page in wanted]

    async def _changes(self, request: Request, since: str) -> Response:
        """Return what differs from the device's list of a revision, or a page of the whole list; 304 if nothing does."""
        plane, page = self._plane, or_error(_page_of, request)
        session, answer = await self._authenticator.as_device_alike(request, self._lists, page)
        plane.polls.take_costly(session.device_id)
        after_id, limit, found = answer

        def compare() -> Changes:
            return changes(plane.certificates.listed(found), since, after_id=after_id, limit=limit)

        now = await plane.offload(compare) if len(found.rows) > _FEW_ROWS else compare()
        headers = {"etag": f'"{now.revision}"'}
        if etag_of(request) == now.revision:
            return empty_answer(304, headers)
        more: dict[str, Any] = {"complete": now.parts is None}
        if now.parts is not None:
            more["replaced"] = {"of": now.divisor, "parts": now.parts}
        body = b'{"data":[' + b",".join([row.text for row in now.rows]) + b"]," + json_of(more)[1:]
        return json_answer(body, headers=headers)

    async def certificate(self, request: Request) -> Response:
        """Return one certificate with its PEM texts."""
        return await self._answer(
            request, lambda device_id: self._plane.certificates.detail(device_id, _id(request, "cert_id"))
        )

    async def materials(self, request: Request) -> Response:
        """Return a certificate with its key, sealed to the device; 304 if the device has it."""
        wanted = or_error(_wanted_of, request)
        _, found = await self._authenticator.as_device_alike(request, self._materials, wanted)
        headers = {"etag": f'"{found.etag}"'}
        return empty_answer(304, headers) if found.data is None else data_answer(found.data, headers=headers)

    async def many_materials(self, request: Request) -> Response:
        """Return many certificates with their keys, each with its own status: ``{"cert_ids", "etags"?}``."""
        self._authenticator.claimed_device(request)  # read no bodies from strangers
        wanted: list[tuple[int, str]] | ErrorResponse
        try:
            wanted = (await read_as(device_bodies.WantedMaterials, request)).checked()
        except ErrorResponse as error:
            wanted = error  # errors of the session take precedence
        session, found = await self._authenticator.as_device_alike(request, self._batches, wanted)
        self._plane.polls.take_costly(session.device_id)
        return json_answer(await self._plane.offload(batch, found, json_of, error_response_of))

    async def signing_request(self, request: Request) -> Response:
        """Store the signing request for a key that the device made: ``{"order_id", "csr_pem"}``."""
        self._authenticator.claimed_device(request)  # read no large bodies from strangers
        body = await read_as(device_bodies.SigningRequest, request, LARGE_BODY_CAP)

        def receive(session: DeviceSession) -> dict[str, Any]:
            cert_id = _id(request, "cert_id")
            return self._plane.device_keys.receive(session.device_id, cert_id, body.order_id, body.csr_pem)

        await self._authenticator.as_device(
            request, lambda session: self._plane.device_keys.count_request(session.device_id)
        )
        return data_answer(await self._authenticator.as_device(request, receive, long=True), 202)

    async def install_config(self, request: Request) -> Response:
        """Return the device's install config; 304 if it is unchanged."""
        return await self._authenticator.as_device(
            request, lambda session: install_config_answer(self._plane, session.device_id, request)
        )

    async def authorities(self, request: Request) -> Response:
        """Return the CAs that the device should trust, for a full resync."""
        return await self._answer(request, self._plane.authorities.of_device)

    async def authority(self, request: Request) -> Response:
        """Return a CA that the device should trust."""
        return await self._answer(
            request, lambda device_id: self._plane.authorities.bundle(device_id, _id(request, "ca_id"))
        )

    async def _answer(self, request: Request, read: Callable[[int], Any]) -> Response:
        """Return the result of a function that reads for the calling device."""
        return data_answer(await self._authenticator.as_device(request, lambda session: read(session.device_id)))


def _gone(request: Request) -> Callable[[], Awaitable[object]]:
    """Return a function that returns when the client of a request has left."""
    return request.scope.get(GONE) or _Disconnect(request).wait


class _Disconnect:
    """The end of a request's connection, where the server does not tell it."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive

    async def wait(self) -> None:
        """Return when the connection has ended."""
        # A GET has one empty body message, if it is unread, and later the disconnect.
        for _ in range(3):
            if (await self._receive())["type"] == "http.disconnect":
                return
        await trio.sleep_forever()  # the server repeats other messages: stop reading them


def install_config_answer(plane: Plane, device_id: int, request: Request) -> Response:
    """Return the install config of a device, or 304 if the client has it."""
    etag = plane.installs.etag(device_id)
    headers = {"etag": f'"{etag}"'}
    if etag_of(request) == etag:
        return empty_answer(304, headers)
    return data_answer(plane.installs.document(device_id), headers=headers)


def _poll_of(request: Request) -> Poll:
    query = query_of(request)
    return Poll(
        cursor=query.get("cursor") or etag_of(request) or None,
        limit=whole_number(query.get("limit", str(DEFAULT_LIMIT)), "limit", 1, MAX_SIGNALS),
        wait=whole_number(query.get("wait", "0"), "wait", 0, MAX_WAIT_SECONDS),
        address=address_of(request),
        instance=clean_line(request.headers.get("cert-ctrl-instance", ""), 64),
        ahead=_classes(query["ahead"]) if "ahead" in query else frozenset(),
    )


def _page_of(request: Request) -> tuple[int, int]:
    """Return ``after_id`` and ``limit`` of a request for a list."""
    query = request.query_params
    return (
        whole_number(query.get("after_id", "0"), "after_id", 0),
        whole_number(query.get("limit", str(_MAX_PAGE)), "limit", 1, _MAX_PAGE),
    )


def _wanted_of(request: Request) -> tuple[int, str]:
    """Return the certificate whose material is requested, and the ETag of what the device has."""
    return _id(request, "cert_id"), etag_of(request)


def _classes(names: str) -> frozenset[Priority]:
    """Return the classes of a comma-separated list, without those that this plane does not know; ErrorResponse 400."""
    known = frozenset(filter(None, map(priority_named, names.split(","))))
    if not known:
        raise bad_request(f"ahead must name classes of signals: {', '.join(Priority)}", field="ahead")
    return known


def _id(request: Request, name: str) -> int:
    return whole_number(request.path_params[name], name, 1)
