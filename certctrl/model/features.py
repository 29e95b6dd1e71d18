"""Features: the abilities that an agent announces; a control plane requests nothing else from it."""

from __future__ import annotations

CSR = "csr"
"""Makes keys of certificates on its host, and sends signing requests."""
ACME_HTTP01 = "acme-http01"
"""Answers http-01 challenges, as ``policy.json`` allows."""
ACME_TLS_ALPN01 = "acme-tls-alpn01"
"""Answers tls-alpn-01 challenges, as ``policy.json`` allows."""

AGENT_FEATURES = (CSR,)
"""Features that are announced at each start (``agent_version``) and at registration, regardless of the policy."""
MAX_FEATURES = 50
MAX_FEATURE_NAME = 50
"""Characters."""
