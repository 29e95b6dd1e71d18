"""The sandbox: control plane, agent and a real TLS service on loopback, for a person to watch (`cert-ctrl sandbox`).

``engine``    the one nursery and the script of the show      ``stage``     what lies in DIR: agent, policy, plan
``servers``   the service under test: nginx, or ``service``   ``narrator``  the account: lines, or JSON lines
``witness``   a process that checks endpoint and disk from outside, and takes the time
"""
