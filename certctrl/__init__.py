"""certctrl: the certificate agent that makes "renewed" mean "served".

The map, left never imports right:

    errors ← model ← protocol ← store, net, install ← agent ← cli ← sandbox
    plane → errors, model, protocol.wire

``model``     frozen values            ``protocol``  sans-IO polling policy
``store``     disk                     ``net``       the HTTP client
``install``   the deployment pipeline  ``agent``     Trio tasks (read ``agent/run.py`` first)
``cli``       the Typer front end      ``plane``     the reference control plane
"""

__version__ = "0.1.0"
