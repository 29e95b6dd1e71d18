"""Features: the abilities that agent and control plane announce; nothing else is used with a peer."""

from __future__ import annotations

from typing import Any

CSR = "csr"
"""Keys of certificates are made at hosts, which send signing requests."""
KEY_PROOF = "key-proof"
"""A registration proves that the device has its secret key."""
PLANE_ANCHOR = "plane-anchor"
"""The plane announces the next CA of its own certificate."""
ACME_HTTP01 = "acme-http01"
"""The agent answers http-01 challenges, as ``policy.json`` allows."""
ACME_TLS_ALPN01 = "acme-tls-alpn01"
"""The agent answers tls-alpn-01 challenges, as ``policy.json`` allows."""
BATCH_FETCH = "batch-fetch"
"""The plane answers one request for the materials of up to 100 certificates."""
KEY_ROTATION = "key-rotation"
"""The agent replaces its device key when the plane wants it."""
DELTA = "delta"
"""The plane sends changes only: of materials by ETag, of the list of certificates by revision."""
ATOMIC_BATCH = "atomic-batch"
"""Certificates that belong together are switched together."""
PRIORITY = "priority"
"""The plane names the class of each signal, and shows signals ahead of the cursor."""
PUSH = "push"
"""Signals and outcomes travel on a WebSocket."""
SERVING_REPORTS = "serving-reports"
"""The agent reports at intervals what its endpoints serve, as its configuration allows."""

AGENT_FEATURES: tuple[str, ...] = (
    ATOMIC_BATCH, CSR, KEY_ROTATION, PRIORITY, PUSH,
)  # fmt: skip
"""Features that are announced at each start (``agent_version``) and at registration, regardless of the policy."""
PLANE_FEATURES: tuple[str, ...] = (
    ATOMIC_BATCH,
    BATCH_FETCH,
    CSR,
    DELTA,
    KEY_PROOF,
    PLANE_ANCHOR,
    PRIORITY,
    PUSH,
    SERVING_REPORTS,
)  # fmt: skip
"""Features that the control plane announces with each session: in the answers to registrations and token refreshes."""
MAX_FEATURES = 50
MAX_FEATURE_NAME = 50
"""Characters."""


def feature_names(value: Any) -> frozenset[str]:
    """Return the names in a list from outside, without invalid ones and those beyond the limit."""
    if not isinstance(value, list):
        return frozenset()
    return frozenset(
        name
        for name in value[:MAX_FEATURES]
        if isinstance(name, str) and 0 < len(name) <= MAX_FEATURE_NAME and name.isprintable()
    )
