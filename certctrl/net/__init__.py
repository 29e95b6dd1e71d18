"""The network: one HTTP transport and the two clients that speak through it.

``control_plane`` is what the agent says, ``operator`` what a person's `cert-ctrl plane …` says. Only
``transport`` imports the HTTP client, and nobody imports ``transport`` before a request is due: that import
is most of the start-up time of a one-shot command.
"""
