"""The table of operator routes for tokens with a scope: what each means to a token that is only for certain devices.

A route that is missing here is refused. A test compares the table with the routes.
"""

from __future__ import annotations

from enum import Enum

from starlette.requests import Request

from certctrl.plane.access.roles import Caller
from certctrl.plane.http.routing import CERTIFICATE, DEVICE, METHOD, OPERATOR, ROUTE, USER


class Within(Enum):
    """What a route may do for a token with a scope."""

    NOTHING = "nothing"
    """Refused: it is about the whole fleet, or could widen the scope."""
    CALLER = "caller"
    """About the caller alone."""
    ENDPOINT = "endpoint"
    """The endpoint itself keeps within `tags_of` the request: lists, and profiles."""
    NAMED = "named"
    """Every device, certificate and order that its path and body name must be seen, otherwise it answers 404."""
    WHOLE = "whole"
    """Also, no device outside the scope may have the certificates, or what is renewed with them."""


_ORDER, _GRANT = f"{USER}/orders/{{oid}}", "/apiv1/device-grants/{code}"
_PROFILES, _ROLLOUTS = f"{USER}/profiles", f"{USER}/rollouts"
_CHANNELS, _MESSAGES = "/apiv1/alert-channels", "/apiv1/alert-messages"
_ISSUERS, _TOKENS, _OPERATORS = "/apiv1/issuers", "/apiv1/operator-tokens", "/apiv1/operators"
_PLANE = "/apiv1/plane"

WITHIN: dict[tuple[str, str], Within] = {
    ("GET", "/apiv1/whoami"): Within.CALLER,
    # Devices
    ("GET", f"{USER}/devices"): Within.ENDPOINT,
    ("GET", DEVICE): Within.NAMED,
    ("DELETE", DEVICE): Within.NAMED,
    ("POST", f"{DEVICE}/replacement"): Within.NAMED,
    ("DELETE", f"{DEVICE}/replacement"): Within.NAMED,
    ("POST", f"{DEVICE}/key-rotation"): Within.NAMED,
    ("POST", f"{DEVICE}/decommission"): Within.NAMED,
    ("GET", f"{DEVICE}/outcomes"): Within.NAMED,
    ("POST", f"{DEVICE}/resync"): Within.NAMED,
    ("GET", f"{DEVICE}/questions"): Within.NAMED,
    ("POST", f"{DEVICE}/questions"): Within.NAMED,
    ("GET", f"{DEVICE}/install-config"): Within.NAMED,
    ("PUT", f"{DEVICE}/install-config"): Within.NAMED,
    ("GET", f"{DEVICE}/certificates"): Within.NAMED,
    ("GET", f"{DEVICE}/cas"): Within.NAMED,
    ("GET", f"{USER}/device-tags"): Within.ENDPOINT,
    ("POST", f"{USER}/device-tags"): Within.NAMED,  # but not the tags of the scope
    ("GET", f"{USER}/fleet/causes"): Within.ENDPOINT,
    ("GET", f"{USER}/fleet/devices"): Within.ENDPOINT,
    ("GET", f"{USER}/fleet/certificates"): Within.ENDPOINT,
    # Certificates
    ("GET", f"{USER}/certificates"): Within.ENDPOINT,
    ("GET", CERTIFICATE): Within.NAMED,
    ("POST", f"{DEVICE}/certificates"): Within.NAMED,
    ("DELETE", f"{DEVICE}/certificates/{{cid}}"): Within.NAMED,
    ("POST", f"{CERTIFICATE}/issues"): Within.WHOLE,
    ("POST", f"{CERTIFICATE}/revoke"): Within.WHOLE,
    ("POST", f"{USER}/renewals"): Within.WHOLE,
    ("GET", f"{USER}/orders"): Within.ENDPOINT,
    ("GET", _ORDER): Within.NAMED,
    ("POST", f"{_ORDER}/retry"): Within.WHOLE,
    ("POST", f"{_ORDER}/cancel"): Within.WHOLE,
    # Profiles for no other devices
    ("GET", _PROFILES): Within.ENDPOINT,
    ("GET", f"{_PROFILES}/{{name}}"): Within.ENDPOINT,
    ("PUT", f"{_PROFILES}/{{name}}"): Within.ENDPOINT,
    ("DELETE", f"{_PROFILES}/{{name}}"): Within.ENDPOINT,
    ("GET", f"{_PROFILES}/{{name}}/history"): Within.ENDPOINT,
    # Names of certificates, and of devices among all others
    ("POST", f"{USER}/certificates"): Within.NOTHING,
    ("POST", f"{USER}/certificate-imports"): Within.NOTHING,
    ("POST", f"{USER}/certificate-checks"): Within.NOTHING,
    ("PATCH", CERTIFICATE): Within.NOTHING,
    ("POST", f"{DEVICE}/name"): Within.NOTHING,
    # New devices, which could get the tags of any scope
    ("POST", f"{USER}/devices"): Within.NOTHING,
    ("GET", f"{USER}/enrolment-tokens"): Within.NOTHING,
    ("POST", f"{USER}/enrolment-tokens"): Within.NOTHING,
    ("DELETE", f"{USER}/enrolment-tokens/{{tid}}"): Within.NOTHING,
    ("GET", "/apiv1/device-grants"): Within.NOTHING,
    ("GET", _GRANT): Within.NOTHING,
    ("POST", _GRANT): Within.NOTHING,
    # What is for many devices at once
    ("GET", f"{USER}/certificate-sets"): Within.NOTHING,
    ("POST", f"{USER}/certificate-sets"): Within.NOTHING,
    ("GET", f"{USER}/batches"): Within.NOTHING,
    ("POST", f"{USER}/batches/{{name}}/dissolve"): Within.NOTHING,
    ("GET", _ROLLOUTS): Within.NOTHING,
    ("POST", _ROLLOUTS): Within.NOTHING,
    ("GET", f"{_ROLLOUTS}/{{rid}}"): Within.NOTHING,
    ("POST", f"{_ROLLOUTS}/{{rid}}/pause"): Within.NOTHING,
    ("POST", f"{_ROLLOUTS}/{{rid}}/resume"): Within.NOTHING,
    ("POST", f"{_ROLLOUTS}/{{rid}}/abort"): Within.NOTHING,
    ("GET", f"{USER}/rollout-freeze"): Within.NOTHING,
    ("POST", f"{USER}/rollout-freeze"): Within.NOTHING,
    ("GET", f"{USER}/renewal-rollouts"): Within.NOTHING,
    ("POST", f"{USER}/renewal-rollouts"): Within.NOTHING,
    # CAs and issuers
    ("POST", f"{DEVICE}/cas"): Within.NOTHING,
    ("DELETE", f"{DEVICE}/cas/{{caid}}"): Within.NOTHING,
    ("GET", f"{USER}/cas"): Within.NOTHING,
    ("POST", f"{USER}/cas"): Within.NOTHING,
    ("GET", _ISSUERS): Within.NOTHING,
    ("POST", _ISSUERS): Within.NOTHING,
    ("GET", f"{_ISSUERS}/{{name}}"): Within.NOTHING,
    ("DELETE", f"{_ISSUERS}/{{name}}"): Within.NOTHING,
    ("POST", f"{_ISSUERS}/{{name}}/check"): Within.NOTHING,
    ("POST", f"{_ISSUERS}/{{name}}/change-key"): Within.NOTHING,
    ("POST", f"{_ISSUERS}/{{name}}/deactivate"): Within.NOTHING,
    ("GET", "/apiv1/issuer-rules"): Within.NOTHING,
    ("POST", "/apiv1/issuer-rules"): Within.NOTHING,
    ("DELETE", "/apiv1/issuer-rules"): Within.NOTHING,
    # The control plane, and who may operate it
    ("GET", "/apiv1/users"): Within.NOTHING,
    ("POST", "/apiv1/users"): Within.NOTHING,
    ("GET", _CHANNELS): Within.NOTHING,
    ("POST", _CHANNELS): Within.NOTHING,
    ("GET", f"{_CHANNELS}/{{channel}}"): Within.NOTHING,
    ("DELETE", f"{_CHANNELS}/{{channel}}"): Within.NOTHING,
    ("POST", f"{_CHANNELS}/{{channel}}/test"): Within.NOTHING,
    ("GET", _MESSAGES): Within.NOTHING,
    ("GET", f"{_MESSAGES}/{{mid}}"): Within.NOTHING,
    ("POST", f"{_MESSAGES}/{{mid}}/resend"): Within.NOTHING,
    ("POST", f"{_MESSAGES}/{{mid}}/dismiss"): Within.NOTHING,
    ("GET", f"{_PLANE}/ca"): Within.NOTHING,
    ("POST", f"{_PLANE}/ca/constraints"): Within.NOTHING,
    ("GET", f"{_PLANE}/tls"): Within.NOTHING,
    ("POST", f"{_PLANE}/tls"): Within.NOTHING,
    ("GET", f"{_PLANE}/status"): Within.NOTHING,
    ("GET", f"{_PLANE}/operator-key"): Within.NOTHING,
    ("DELETE", f"{_PLANE}/operator-key"): Within.NOTHING,
    ("GET", "/apiv1/audit"): Within.NOTHING,
    ("GET", _OPERATORS): Within.NOTHING,
    ("POST", _OPERATORS): Within.NOTHING,
    ("PATCH", f"{_OPERATORS}/{{operator}}"): Within.NOTHING,
    ("DELETE", f"{_OPERATORS}/{{operator}}"): Within.NOTHING,
    ("GET", _TOKENS): Within.NOTHING,
    ("POST", _TOKENS): Within.NOTHING,
    ("DELETE", f"{_TOKENS}/{{ktid}}"): Within.NOTHING,
}


def within(request: Request) -> Within:
    """Return what the route of a request may do for a token with a scope."""
    return WITHIN.get((request.scope[METHOD], request.scope[ROUTE]), Within.NOTHING)


def tags_of(request: Request) -> tuple[str, ...]:
    """Return the tags of which devices must carry all for the caller to see them; empty: it sees all devices."""
    caller: Caller | None = request.scope.get(OPERATOR)
    return () if caller is None else caller.tags
