"""Features: what an agent announces that it can do, so that a control plane asks it for nothing else."""

from __future__ import annotations

CSR = "csr"
"""Makes the keys of certificates on its host, and sends signing requests."""
ACME_HTTP01 = "acme-http01"
"""Answers http-01 challenges, as ``policy.json`` allows."""
ACME_TLS_ALPN01 = "acme-tls-alpn01"
"""Answers tls-alpn-01 challenges, as ``policy.json`` allows."""

AGENT_FEATURES = (CSR,)
"""The features announced at each start (``agent_version``) and at registration, whatever the policy says."""
MAX_FEATURES = 50
MAX_FEATURE_NAME = 50
"""Characters."""
