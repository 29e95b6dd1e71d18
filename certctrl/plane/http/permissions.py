"""The table of operator routes: the least role that may use each, and what the audit log calls its change.

A route that is missing here needs the role admin, and its change is recorded under its method and path. A test compares
the table with the routes.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from certctrl import lean
from certctrl.plane.access.roles import Role
from certctrl.plane.http.routing import CERTIFICATE, DEVICE, USER

VIEWER, OPERATOR, ADMIN = Role.VIEWER, Role.OPERATOR, Role.ADMIN


@lean.frozen
class Permission:
    """What a route needs, and what it does."""

    role: Role
    action: str = ""
    """Name of the change in the audit log, ``OBJECT.VERB``; empty: it only reads, or notes no operator's change."""
    kinds: Mapping[str, str] = attrs.field(factory=dict)
    """Field of the path, query or request -> the kind of object that it names, in addition to those of all routes."""
    if_away: bool = False
    """Whether the operator key suffices while the database is away, so that the status says what is wrong."""


_ISSUER, _RULE, _PROFILE = {"name": "issuer"}, {"domain": "issuer-rule"}, {"name": "profile"}
_TLS, _CA, _ISSUERS = "/apiv1/plane/tls", "/apiv1/plane/ca", "/apiv1/issuers/{name}"
_CHANNELS, _MESSAGES = "/apiv1/alert-channels", "/apiv1/alert-messages"
_ORDER, _GRANT = f"{USER}/orders/{{oid}}", "/apiv1/device-grants/{code}"
_PROFILES, _ROLLOUTS = f"{USER}/profiles", f"{USER}/rollouts"

DECIDE_GRANT = Permission(OPERATOR, "grant.decide")
"""For the approval page and ``POST /auth/device``, which are not in the table."""
SIGN_IN = Permission(VIEWER, "session.sign-in")
SIGN_OUT = Permission(VIEWER, "session.sign-out")

PERMISSIONS: dict[tuple[str, str], Permission] = {
    ("GET", "/apiv1/users"): Permission(VIEWER),
    ("POST", "/apiv1/users"): Permission(ADMIN, "user.add"),
    ("GET", f"{USER}/devices"): Permission(VIEWER),
    ("POST", f"{USER}/devices"): Permission(OPERATOR, "device.expect"),
    ("GET", DEVICE): Permission(VIEWER),
    ("DELETE", DEVICE): Permission(OPERATOR, "device.revoke"),
    ("POST", f"{DEVICE}/name"): Permission(OPERATOR, "device.rename"),
    ("POST", f"{DEVICE}/replacement"): Permission(OPERATOR, "device.replace"),
    ("DELETE", f"{DEVICE}/replacement"): Permission(OPERATOR, "device.cancel-replacement"),
    ("POST", f"{DEVICE}/key-rotation"): Permission(OPERATOR, "device.rotate-key"),
    ("POST", f"{DEVICE}/decommission"): Permission(OPERATOR, "device.decommission"),
    ("GET", f"{DEVICE}/outcomes"): Permission(VIEWER),
    ("POST", f"{DEVICE}/resync"): Permission(OPERATOR, "device.resync"),
    ("GET", f"{DEVICE}/questions"): Permission(VIEWER),
    ("POST", f"{DEVICE}/questions"): Permission(OPERATOR, "device.ask"),
    ("GET", f"{DEVICE}/install-config"): Permission(VIEWER),
    ("PUT", f"{DEVICE}/install-config"): Permission(OPERATOR, "install-config.put"),
    ("GET", f"{USER}/device-tags"): Permission(VIEWER),
    ("POST", f"{USER}/device-tags"): Permission(OPERATOR, "device.tag"),
    ("GET", f"{USER}/enrolment-tokens"): Permission(VIEWER),
    ("POST", f"{USER}/enrolment-tokens"): Permission(OPERATOR, "enrolment-token.create"),
    ("DELETE", f"{USER}/enrolment-tokens/{{tid}}"): Permission(OPERATOR, "enrolment-token.end"),
    ("GET", "/apiv1/device-grants"): Permission(VIEWER),
    ("GET", _GRANT): Permission(VIEWER),
    ("POST", _GRANT): DECIDE_GRANT,
    ("GET", f"{DEVICE}/certificates"): Permission(VIEWER),
    ("POST", f"{DEVICE}/certificates"): Permission(OPERATOR, "certificate.assign"),
    ("DELETE", f"{DEVICE}/certificates/{{cid}}"): Permission(OPERATOR, "certificate.unassign"),
    ("GET", f"{DEVICE}/cas"): Permission(VIEWER),
    ("POST", f"{DEVICE}/cas"): Permission(OPERATOR, "ca.assign"),
    ("DELETE", f"{DEVICE}/cas/{{caid}}"): Permission(OPERATOR, "ca.unassign"),
    ("GET", f"{USER}/certificates"): Permission(VIEWER),
    ("POST", f"{USER}/certificates"): Permission(OPERATOR, "certificate.issue"),
    ("GET", CERTIFICATE): Permission(VIEWER),
    ("PATCH", CERTIFICATE): Permission(OPERATOR, "certificate.set-issuer"),
    ("POST", f"{CERTIFICATE}/issues"): Permission(OPERATOR, "certificate.renew"),
    ("POST", f"{CERTIFICATE}/revoke"): Permission(OPERATOR, "certificate.revoke"),
    ("POST", f"{USER}/certificate-imports"): Permission(OPERATOR, "certificate.import"),
    ("POST", f"{USER}/certificate-checks"): Permission(VIEWER),
    ("POST", f"{USER}/renewals"): Permission(OPERATOR, "certificate.renew"),
    ("GET", f"{USER}/certificate-sets"): Permission(VIEWER),
    ("POST", f"{USER}/certificate-sets"): Permission(OPERATOR, "certificate-set.put", {"name": "certificate-set"}),
    ("GET", f"{USER}/batches"): Permission(VIEWER),
    ("POST", f"{USER}/batches/{{name}}/dissolve"): Permission(OPERATOR, "batch.dissolve", {"name": "batch"}),
    ("GET", f"{USER}/orders"): Permission(VIEWER),
    ("GET", _ORDER): Permission(VIEWER),
    ("POST", f"{_ORDER}/retry"): Permission(OPERATOR, "order.retry"),
    ("POST", f"{_ORDER}/cancel"): Permission(OPERATOR, "order.cancel"),
    ("GET", _PROFILES): Permission(VIEWER),
    ("GET", f"{_PROFILES}/{{name}}"): Permission(VIEWER),
    ("PUT", f"{_PROFILES}/{{name}}"): Permission(OPERATOR, "profile.put", _PROFILE),
    ("DELETE", f"{_PROFILES}/{{name}}"): Permission(OPERATOR, "profile.delete", _PROFILE),
    ("GET", f"{_PROFILES}/{{name}}/history"): Permission(VIEWER),
    ("GET", _ROLLOUTS): Permission(VIEWER),
    ("POST", _ROLLOUTS): Permission(OPERATOR, "rollout.start", {"profile": "profile", "together": "certificate"}),
    ("GET", f"{_ROLLOUTS}/{{rid}}"): Permission(VIEWER),
    ("POST", f"{_ROLLOUTS}/{{rid}}/pause"): Permission(OPERATOR, "rollout.pause"),
    ("POST", f"{_ROLLOUTS}/{{rid}}/resume"): Permission(OPERATOR, "rollout.resume"),
    ("POST", f"{_ROLLOUTS}/{{rid}}/abort"): Permission(OPERATOR, "rollout.abort"),
    ("GET", f"{USER}/rollout-freeze"): Permission(VIEWER),
    ("POST", f"{USER}/rollout-freeze"): Permission(OPERATOR, "rollout.freeze", {"uid": "user"}),
    ("GET", f"{USER}/renewal-rollouts"): Permission(VIEWER),
    ("POST", f"{USER}/renewal-rollouts"): Permission(OPERATOR, "renewal-rollouts.put", {"uid": "user"}),
    ("GET", f"{USER}/fleet/causes"): Permission(VIEWER),
    ("GET", f"{USER}/fleet/devices"): Permission(VIEWER),
    ("GET", f"{USER}/fleet/certificates"): Permission(VIEWER),
    ("GET", _CHANNELS): Permission(VIEWER),
    ("POST", _CHANNELS): Permission(ADMIN, "alert-channel.put", {"name": "alert-channel"}),
    ("GET", f"{_CHANNELS}/{{channel}}"): Permission(VIEWER),
    ("DELETE", f"{_CHANNELS}/{{channel}}"): Permission(ADMIN, "alert-channel.remove"),
    ("POST", f"{_CHANNELS}/{{channel}}/test"): Permission(OPERATOR, "alert-channel.test"),
    ("GET", _MESSAGES): Permission(VIEWER),
    ("GET", f"{_MESSAGES}/{{mid}}"): Permission(VIEWER),
    ("POST", f"{_MESSAGES}/{{mid}}/resend"): Permission(OPERATOR, "alert-message.resend"),
    ("POST", f"{_MESSAGES}/{{mid}}/dismiss"): Permission(OPERATOR, "alert-message.dismiss"),
    ("GET", f"{USER}/cas"): Permission(VIEWER),
    ("POST", f"{USER}/cas"): Permission(ADMIN, "ca.add"),
    ("GET", "/apiv1/issuers"): Permission(VIEWER),
    ("POST", "/apiv1/issuers"): Permission(ADMIN, "issuer.put", _ISSUER),
    ("GET", _ISSUERS): Permission(VIEWER),
    ("DELETE", _ISSUERS): Permission(ADMIN, "issuer.remove", _ISSUER),
    ("POST", f"{_ISSUERS}/check"): Permission(OPERATOR),
    ("POST", f"{_ISSUERS}/change-key"): Permission(ADMIN, "issuer.change-key", _ISSUER),
    ("POST", f"{_ISSUERS}/deactivate"): Permission(ADMIN, "issuer.deactivate", _ISSUER),
    ("GET", "/apiv1/issuer-rules"): Permission(VIEWER),
    ("POST", "/apiv1/issuer-rules"): Permission(ADMIN, "issuer-rule.put", _RULE),
    ("DELETE", "/apiv1/issuer-rules"): Permission(ADMIN, "issuer-rule.remove", _RULE),
    ("GET", _CA): Permission(VIEWER),
    ("POST", f"{_CA}/constraints"): Permission(ADMIN, "plane-ca.constrain"),
    ("GET", _TLS): Permission(VIEWER),
    ("POST", _TLS): Permission(ADMIN, "plane-tls.switch"),
    ("GET", "/apiv1/plane/status"): Permission(VIEWER, if_away=True),
    ("GET", "/apiv1/audit"): Permission(VIEWER),
    ("GET", "/apiv1/operators"): Permission(VIEWER),
    ("POST", "/apiv1/operators"): Permission(ADMIN, "operator.add", {"name": "operator"}),
    ("PATCH", "/apiv1/operators/{operator}"): Permission(ADMIN, "operator.change"),
    ("DELETE", "/apiv1/operators/{operator}"): Permission(ADMIN, "operator.delete"),
    ("GET", "/apiv1/operator-tokens"): Permission(VIEWER),
    ("POST", "/apiv1/operator-tokens"): Permission(ADMIN, "token.create"),
    ("DELETE", "/apiv1/operator-tokens/{ktid}"): Permission(ADMIN, "token.revoke"),
    ("GET", "/apiv1/plane/operator-key"): Permission(VIEWER),
    ("DELETE", "/apiv1/plane/operator-key"): Permission(ADMIN, "operator-key.off"),
    ("GET", "/apiv1/whoami"): Permission(VIEWER),
}


def permission_of(method: str, path: str) -> Permission:
    """Return the permission of a route; for one that is missing in the table, that of an admin."""
    found = PERMISSIONS.get((method, path))
    if found is not None:
        return found
    return Permission(ADMIN, "" if method == "GET" else f"{method} {path}")


def actions() -> list[str]:
    """Return the names of all changes."""
    named = [permission.action for permission in (*PERMISSIONS.values(), SIGN_IN, SIGN_OUT)]
    return sorted({action for action in named if action} | set(OTHER_ACTIONS))


NEVER_TRIED = frozenset(
    {
        ("POST", f"{DEVICE}/questions"),
        ("POST", f"{_ISSUERS}/change-key"),
        ("POST", f"{_ISSUERS}/deactivate"),
        ("POST", f"{_CA}/constraints"),
        ("POST", _TLS),
        ("POST", f"{_CHANNELS}/{{channel}}/test"),
    }
)
"""Routes that have no dry run: they ask a host or a CA, send an alert, or change what a control plane has in memory."""

OTHER_ACTIONS = (
    "audit.expire", "device.key-rotated", "device.replaced", "operator-key.on", "operator-key.rotate", "plane.migrate",
    "plane.restore", "rollout.end", "rollout.halt", "rollout.release", "storage-key.rotate",
)  # fmt: skip
"""Changes without a route: by the plane itself, and by commands on the data directory."""
