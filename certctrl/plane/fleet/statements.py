"""The statements about the state of a fleet: one text for both engines, as common table expressions.

``wrong``: of each certificate on each device, the endpoint that has been wrong for longest. ``copies``: each certificate
on each device. ``troubles``: all that needs an operator. ``states``: each device.
``certs``: each certificate.
"""

from __future__ import annotations

from certctrl import lean
from certctrl.plane.devices.tags import carried_by

_IN_USE_ENDS = "CASE WHEN x.serial_number = c.serial_number THEN c.not_after ELSE o.not_after END"
_ENDS = f"CASE WHEN e.not_after < coalesce({_IN_USE_ENDS}, 1e11) THEN e.not_after ELSE {_IN_USE_ENDS} END"
_SOON = "CASE WHEN c.not_after - c.not_before < 3628800.0 THEN (c.not_after - c.not_before) / 6 ELSE 604800.0 END"
"""Seconds before its end in which a certificate is expiring: a week, or a sixth of its life."""
_WRONG = """wrong AS (
  SELECT * FROM (SELECT p.device_id, p.cert_id, p.endpoint, p.deployed, p.serial_number, p.not_after, p.reason, p.since, p.at,
      row_number() OVER (PARTITION BY p.device_id, p.cert_id ORDER BY p.since, p.endpoint) AS place
    FROM endpoints p WHERE p.reason != '' AND p.at > ?) r WHERE place = 1)"""
_COPIES = f"""copies AS (
  SELECT a.device_id AS device_id, d.name AS device, a.cert_id AS cert_id, c.domain_name AS certificate,
    CASE
      WHEN c.status = 'revoked' THEN CASE
        WHEN x.reason IN ('still-served', 'kept') THEN 'still served' WHEN x.failing = 1 THEN 'stuck'
        WHEN x.serial_number = '' THEN 'withdrawn' ELSE 'waiting' END
      WHEN {_ENDS} < ? THEN 'expired'
      WHEN x.failing = 1 THEN 'stuck'
      WHEN e.reason IS NOT NULL THEN 'not served'
      WHEN {_ENDS} - {_SOON} < ? THEN 'expiring'
      WHEN c.serial_number != '' AND x.serial_number = c.serial_number
        THEN CASE WHEN x.served_at IS NULL THEN 'deployed' ELSE 'served' END
      ELSE 'waiting' END AS word,
    {_ENDS} AS ends_at, {_ENDS} - {_SOON} AS expires_soon_at,
    CASE WHEN c.status = 'active' AND c.serial_number != '' AND x.serial_number = c.serial_number AND x.failing = 0
      THEN 1 ELSE 0 END AS is_newest,
    CASE WHEN e.reason IS NOT NULL THEN 'probe' ELSE coalesce(x.step, '') END AS step,
    coalesce(e.reason, x.reason, '') AS reason,
    CASE WHEN e.reason IS NULL THEN coalesce(x.detail, '') WHEN e.serial_number = '' THEN e.endpoint
      ELSE e.endpoint || ' serves ' || e.serial_number END AS detail,
    coalesce(e.since, x.since) AS since, coalesce(e.since, x.failing_since) AS failing_since,
    CASE WHEN e.reason IS NULL THEN coalesce(x.attempts, 0) ELSE 0 END AS attempts, x.served_at AS served_at
  FROM assignments a JOIN devices d ON d.id = a.device_id JOIN certificates c ON c.id = a.cert_id
  LEFT JOIN deployments x ON x.device_id = a.device_id AND x.kind = 'cert' AND x.object_id = a.cert_id
  LEFT JOIN former_certificates o ON o.cert_id = a.cert_id AND o.serial_number = x.serial_number
  LEFT JOIN wrong e ON e.device_id = a.device_id AND e.cert_id = a.cert_id AND c.status = 'active'
    AND coalesce(x.failing, 0) = 0 AND e.at >= coalesce(x.served_at, 0.0)
    AND coalesce(x.serial_number, 'unknown') IN ('unknown', e.deployed)
  WHERE d.user_id = ? AND d.status = 'active')"""
_TROUBLES = """troubles AS (
  SELECT device_id, device, cert_id, certificate, word, step, CASE WHEN reason = '' THEN word ELSE reason END AS reason,
    detail, CASE WHEN word = 'expiring' THEN expires_soon_at ELSE coalesce(failing_since, ends_at) END AS failing_since,
    CASE WHEN word = 'expiring' THEN expires_soon_at ELSE coalesce(since, ends_at) END AS since, ends_at, attempts
  FROM copies WHERE word IN ('expired', 'still served', 'not served', 'stuck', 'expiring')
  UNION ALL
  SELECT x.device_id, d.name, 0, '', 'stuck', x.step, x.reason, x.detail, x.failing_since, x.since, NULL, x.attempts
  FROM deployments x JOIN devices d ON d.id = x.device_id
  WHERE x.failing = 1 AND d.user_id = ? AND d.status = 'active' AND NOT (x.kind = 'cert'
    AND EXISTS (SELECT 1 FROM assignments a WHERE a.device_id = x.device_id AND a.cert_id = x.object_id))
  UNION ALL
  SELECT d.id, d.name, 0, '', 'stale', 'contact', 'not-heard', '', coalesce(d.last_seen_at, d.registered_at),
    coalesce(d.last_seen_at, d.registered_at), NULL, 0
  FROM devices d WHERE d.user_id = ? AND d.status = 'active' AND coalesce(d.last_seen_at, d.registered_at, 0) < ?)"""
_STATES = """states AS (
  SELECT d.id AS id, d.name AS name, d.app_version AS agent, d.last_seen_at AS last_seen_at,
    CASE
      WHEN d.status = 'revoked' THEN 'revoked' WHEN d.status = 'expected' THEN 'expected'
      WHEN coalesce(d.last_seen_at, d.registered_at, 0) < ? THEN 'stale'
      WHEN t.failing_since IS NOT NULL THEN 'degraded' ELSE 'healthy' END AS word,
    t.failing_since AS failing_since, e.ends_at AS ends_at, d.created_at AS created_at, d.revoked_at AS revoked_at,
    d.registered_at AS registered_at
  FROM devices d
  LEFT JOIN (SELECT device_id, min(failing_since) AS failing_since FROM troubles WHERE word != 'stale'
    GROUP BY device_id) t ON t.device_id = d.id
  LEFT JOIN (SELECT device_id, min(ends_at) AS ends_at FROM copies GROUP BY device_id) e ON e.device_id = d.id
  WHERE d.user_id = ?)"""
_CERTS = """certs AS (
  SELECT c.id AS id, c.domain_name AS name, c.issuer AS issuer, c.not_after AS not_after,
    CASE
      WHEN c.status = 'revoked' THEN 'revoked'
      WHEN coalesce(n.expired, 0) > 0 OR (c.serial_number != '' AND c.not_after < ?) THEN 'expired'
      WHEN EXISTS (SELECT 1 FROM orders r WHERE r.cert_id = c.id AND r.problem != ''
        AND r.state IN ('csr_wanted', 'ready', 'blocked')) THEN 'failing'
      WHEN coalesce(n.not_served, 0) > 0 THEN 'not served'
      WHEN coalesce(n.expiring, 0) > 0 THEN 'expiring'
      WHEN c.serial_number = '' OR coalesce(n.newest, 0) < coalesce(n.copies, 0)
        OR EXISTS (SELECT 1 FROM orders r WHERE r.cert_id = c.id AND r.state IN ('csr_wanted', 'ready', 'blocked'))
        THEN 'renewing'
      ELSE 'valid' END AS word,
    coalesce(n.copies, 0) AS copies, coalesce(n.newest, 0) AS newest, coalesce(n.seen, 0) AS seen,
    coalesce(n.stuck, 0) AS stuck, coalesce(n.not_served, 0) AS not_served, n.ends_at AS ends_at, n.proven_at AS proven_at
  FROM certificates c
  LEFT JOIN (SELECT cert_id, count(*) AS copies, min(ends_at) AS ends_at, max(served_at) AS proven_at,
      sum(is_newest) AS newest,
      sum(CASE WHEN is_newest = 1 AND word != 'not served' AND served_at IS NOT NULL THEN 1 ELSE 0 END) AS seen,
      sum(CASE WHEN word = 'not served' THEN 1 ELSE 0 END) AS not_served,
      sum(CASE WHEN word = 'expiring' THEN 1 ELSE 0 END) AS expiring,
      sum(CASE WHEN word = 'expired' THEN 1 ELSE 0 END) AS expired,
      sum(CASE WHEN word = 'stuck' THEN 1 ELSE 0 END) AS stuck
    FROM copies GROUP BY cert_id) n ON n.cert_id = c.id
  WHERE c.user_id = ?)"""


@lean.frozen(kw_only=True)
class Moment:
    """The user whose fleet is read, and the time."""

    user_id: int
    now: float
    stale_before: float
    """A device last heard before this is stale."""
    believed_after: float
    """What was seen at an endpoint before this counts for nothing."""
    device_id: int = 0
    """Only this device; 0: all."""
    cert_id: int = 0
    """Only the copies of this certificate; 0: all."""
    scope: tuple[str, ...] = ()
    """Only devices that carry all of these tags, and certificates that one of them has."""

    @property
    def copies(self) -> tuple[str, tuple[float | str, ...]]:
        """The expressions up to ``copies``, and their parameters."""
        wrong, copies = _WRONG, self._narrowed(_COPIES)
        ids: tuple[int, ...] = ()
        if self.device_id:
            wrong, ids = wrong.replace("p.at > ?", "p.at > ? AND p.device_id = ?"), (self.device_id,)
        parameters = (self.believed_after, *ids, self.now, self.now, *self._whose)
        if not self.cert_id:
            return f"WITH {wrong}, {copies}", parameters
        return f"WITH {wrong}, {copies.removesuffix(')')} AND a.cert_id = ?)", (*parameters, self.cert_id)

    @property
    def troubles(self) -> tuple[str, tuple[float | str, ...]]:
        """The expressions up to ``troubles``."""
        sql, parameters = self.copies
        return f"{sql}, {self._narrowed(_TROUBLES)}", (*parameters, *self._whose, *self._whose, self.stale_before)

    @property
    def states(self) -> tuple[str, tuple[float | str, ...]]:
        """The expressions up to ``states``."""
        sql, parameters = self.troubles
        return f"{sql}, {self._narrowed(_STATES)}", (*parameters, self.stale_before, *self._whose)

    @property
    def certs(self) -> tuple[str, tuple[float | str, ...]]:
        """The expressions with ``copies`` and ``certs``."""
        sql, parameters = self.copies
        seen = f" AND EXISTS (SELECT 1 FROM assignments a WHERE a.cert_id = c.id AND {carried_by('a.device_id', self.scope)})"
        certs = f"{_CERTS.removesuffix(')')}{seen})" if self.scope else _CERTS
        return f"{sql}, {certs}", (*parameters, self.now, self.user_id, *self.scope)

    @property
    def _whose(self) -> tuple[int | str, ...]:
        """The parameters of ``d.user_id = ?``, as ``_narrowed`` leaves it."""
        return (self.user_id, *((self.device_id,) if self.device_id else ()), *self.scope)

    def _narrowed(self, sql: str) -> str:
        """Return an expression that reads one device only, if one is asked for, by its key, and those within the scope."""
        parts = ["d.user_id = ?"] + ["d.id = ?"] * bool(self.device_id)
        if self.scope:
            parts.append(carried_by("d.id", self.scope))
        return sql.replace("d.user_id = ?", " AND ".join(parts))
