"""The checks of `doctor`; each finding that needs action has a fix.

``finding``  findings and the checks' input   ``host``   directory, permissions, disk, state, policy
``plane``    DNS, TLS, clock, token           ``certs``  files on disk, expiry, served certificates
``daemon``   the running daemon, refused items of the plan
"""
