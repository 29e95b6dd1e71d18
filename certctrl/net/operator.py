"""Operator: the client of the reference control plane's operator API."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from certctrl import lean
from certctrl.errors import BadAnswerError, PlaneError
from certctrl.net.calls import data_or_error
from certctrl.protocol.wire.reader import from_answer, integer, object_in, objects_in, wire_class

if TYPE_CHECKING:
    from certctrl.net.http import Http

DEADLINE_SECONDS = 30.0
PAGE = 500
"""Rows of one page of a list."""
MAX_ROWS = 1_000_000
"""Rows of a list."""
CAP = 64 * 1024 * 1024
"""Bytes of one answer: what a change does to each device of a fleet is one."""
MAX_VALUES = 4_000_000
"""Values of one answer; more than an agent takes, whose control plane may be hostile."""


_API, DRY_RUN = "/apiv1/", "/apiv1/dry-run/"
"""Beginnings of paths: of requests, and of their dry runs."""


class TriedError(Exception):
    """A change was tried only; ``answer`` has ``action`` and ``changes``."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__("tried only")
        self.answer = answer


class Operator:
    """Call the operator API of a plane; every method returns the plane's ``data`` as JSON values.

    Raises PlaneError if the plane refuses (on 401 and 403, ``fix`` names the key file), TransportError if it cannot be
    reached. The caller owns and closes ``http``.
    """

    def __init__(self, http: Http, key: str, *, wall_now: Callable[[], float], dry_run: bool = False) -> None:
        """``dry_run``: raise TriedError instead of the first change."""
        self._http = http
        self._dry_run = dry_run
        self._headers = {"authorization": f"Bearer {key}"}
        self._wall_now = wall_now

    def __repr__(self) -> str:
        return "Operator(key=***)"

    # --- devices ------------------------------------------------------------------------------------------

    async def fetch_devices(self, user_id: int) -> list[dict[str, Any]]:
        """Return the devices of a user."""
        return await self.fetch_list(user_id, "devices")

    async def fetch_grant(self, user_code: str) -> dict[str, Any]:
        """Return the device that shows ``user_code``, with ``known_devices``: those that have its id or name."""
        return _row(await self.call("GET", _grant(user_code)))

    async def answer_grant(self, user_code: str, *, approve: bool, user_id: int | None = None) -> dict[str, Any]:
        """Approve or deny the device that shows ``user_code``, like the page ``/device``."""
        body = {"approve": approve} | ({} if user_id is None else {"user_id": user_id})
        return _row(await self.call("POST", _grant(user_code), json=body) or {})

    async def create_enrolment_token(self, user_id: int, **fields: Any) -> dict[str, Any]:
        """Create a token for unattended registration (optional: ``label``, ``uses``, ``expires_in``)."""
        return _row(await self.call("POST", f"/apiv1/users/{user_id:d}/enrolment-tokens", json=fields))

    # --- install configs and assignments -------------------------------------------------------------------

    async def fetch_install_config(self, user_id: int, device_id: int) -> dict[str, Any]:
        """Return a device's install config."""
        return _row(await self.call("GET", f"{_device(user_id, device_id)}/install-config"))

    async def put_install_config(
        self, user_id: int, device_id: int, installs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Replace a device's install items; the plane increases the version and signals ``install.updated``."""
        body = {"installs": [dict(item) for item in installs]}
        return _row(await self.call("PUT", f"{_device(user_id, device_id)}/install-config", json=body))

    async def assign(self, user_id: int, device_id: int, cert_id: int) -> None:
        """Assign a certificate to a device."""
        await self.call("POST", f"{_device(user_id, device_id)}/certificates", json={"cert_id": cert_id})

    async def unassign(self, user_id: int, device_id: int, cert_id: int) -> None:
        """Unassign a certificate from a device, without revoking it."""
        await self.call("DELETE", f"{_device(user_id, device_id)}/certificates/{cert_id:d}")

    # --- certificates -----------------------------------------------------------------------------------------

    async def fetch_certificates(self, user_id: int) -> list[dict[str, Any]]:
        """Return the certificates of a user."""
        return await self.fetch_list(user_id, "certificates")

    async def issue(self, user_id: int, domain_name: str, *, sans: Sequence[str] = (), **fields: Any) -> dict[str, Any]:
        """Issue a certificate; other fields (``key_type``, ``validity_seconds``, …) are passed on."""
        body = {"domain_name": domain_name, "sans": list(sans), **fields}
        return _row(await self.call("POST", f"/apiv1/users/{user_id:d}/certificates", json=body))

    async def renew(self, user_id: int, cert_id: int, reason: str = "") -> dict[str, Any]:
        """Renew a certificate; its devices get the signal ``cert.renewed``."""
        body = {"action": "renew", **({"reason": reason} if reason else {})}
        return _row(await self.call("POST", f"{_certificate(user_id, cert_id)}/issues", json=body) or {})

    async def revoke_certificate(self, user_id: int, cert_id: int, reason: str = "") -> dict[str, Any]:
        """Revoke a certificate; its devices get the signal ``cert.revoked``."""
        body = {"reason": reason} if reason else {}
        return _row(await self.call("POST", f"{_certificate(user_id, cert_id)}/revoke", json=body) or {})

    # --- lists ------------------------------------------------------------------------------------------------

    async def fetch_list(self, user_id: int, kind: str, tags: Collection[str] | None = None) -> list[dict[str, Any]]:
        """Return a list of a user (``devices``, ``certificates``, …) page by page: a whole fleet's exceeds one answer.

        ``tags``: only those that concern devices with all of these tags.
        """
        found: list[dict[str, Any]] = []
        query = {"limit": str(PAGE)} | ({} if tags is None else {"tag": ",".join(tags)})
        while True:
            after = {"after_id": str(found[-1]["id"])} if found else {}
            answer = await self.call("GET", f"/apiv1/users/{user_id:d}/{kind}", query=query | after)
            page = objects_in(answer, "data", MAX_ROWS)
            if found or len(page) >= PAGE:  # a list without pages may have no ids
                for number, row in enumerate(page):
                    from_answer(_read_numbered, row, f"data[{number}]")
            if found and page and page[0]["id"] <= found[-1]["id"]:
                return found  # an older plane, or a list without pages
            found += page
            if len(found) > MAX_ROWS:
                raise BadAnswerError(f"the list has more than {MAX_ROWS} rows")
            if len(page) < PAGE:
                return found

    # --- the plane itself -------------------------------------------------------------------------------------

    async def call(self, method: str, path: str, *, json: Any = None, query: Mapping[str, str] | None = None) -> Any:
        """Return ``data`` of the answer for any path of the operator API; None if there is none."""
        is_trial = self._dry_run and method != "GET"
        if not is_trial and (query or {}).get("dry_run") != "1":
            return await self._call(method, path, json, query)
        data = await self._try(method, path, json, {**(query or {}), "dry_run": "1"})
        if is_trial and isinstance(data, dict) and data.get("dry_run") is True and "action" in data:
            raise TriedError(data)
        return data

    async def _try(self, method: str, path: str, json: Any, query: Mapping[str, str]) -> Any:
        """Return what a change would do, by a path that planes do not have if they would carry the change out."""
        try:
            return await self._call(method, path.replace(_API, DRY_RUN, 1), json, query)
        except PlaneError as error:
            if error.status == 404 and not await self._tries():
                raise PlaneError("this control plane is too old for --dry-run", status=400, fix="update it") from None
            raise

    async def _tries(self) -> bool:
        """Return whether the plane has the paths of dry runs."""
        try:
            whoami = await self._call("GET", "/apiv1/whoami", None, None)
        except PlaneError as error:
            if error.status != 404:
                raise
            return False
        return isinstance(whoami, dict) and whoami.get("dry_run_paths") is True

    async def _call(self, method: str, path: str, json: Any, query: Mapping[str, str] | None) -> Any:
        answer = await self._http.request(
            method, path, query=query or {}, headers=self._headers, json=json, deadline=DEADLINE_SECONDS, cap=CAP
        )
        try:
            return data_or_error(answer, now=self._wall_now(), cap=CAP, most=MAX_VALUES)
        except PlaneError as error:
            if error.status in (401, 403) and error.fix is None:
                error.fix = "check the token, or the operator key (operator.key in the control plane's data directory)"
            raise


def _device(user_id: int, device_id: int) -> str:
    return f"/apiv1/users/{user_id:d}/devices/{device_id:d}"


def _grant(user_code: str) -> str:
    return f"/apiv1/device-grants/{quote(user_code, safe='')}"


def _certificate(user_id: int, cert_id: int) -> str:
    return f"/apiv1/users/{user_id:d}/certificates/{cert_id:d}"


def _row(data: object) -> dict[str, Any]:
    return object_in(data, "data")


@lean.frozen
class _Numbered:
    """A row of a list with pages."""

    id: int


_read_numbered = wire_class(_Numbered, {"id": integer(digits=False)})
