"""The doctor: every check an operator would make by hand, each finding with its fix.

``finding``  what a check says          ``host``   directory, permissions, disk, state, policy
``plane``    DNS, TLS, clock, token     ``certs``  files on disk, expiry, what each endpoint serves
``daemon``   the running agent, and what its plan is refused
"""
