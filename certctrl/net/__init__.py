"""The network: one HTTP transport and two clients on top of it.

``control_plane`` is the agent's client, ``operator`` that of `cert-ctrl plane …`. Only ``transport`` imports the HTTP
library, and ``transport`` is imported just before the first request: it takes most of the start-up time of a one-shot
command.
"""
