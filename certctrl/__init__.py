"""certctrl: a certificate agent that deploys certificates and verifies what is served.

Packages; none imports one to its right:

    errors, text, backoff ← model ← protocol ← store, net, logs, install ← agent ← cli
    plane → errors, text, backoff, model, protocol.wire, net.connections, net.transport, net.tls
    sandbox → all but cli

``model``     frozen values            ``protocol``  sans-IO polling policy
``store``     the config directory     ``net``       the HTTP client
``logs``      log formats and files    ``install``   the deployment pipeline
``agent``     Trio tasks; start with ``agent/run.py``
``cli``       the command line         ``plane``     the reference control plane
``sandbox``   plane, agent and a TLS service on one machine
"""

__version__ = "0.1.0"
