"""The sandbox: control plane, agent and a real TLS service on loopback (`cert-ctrl sandbox`).

``engine``    starts and stops everything, in order             ``workspace``  the directory: agent, policy, plan
``scenario``  issue, renew, revoke, and judge the result        ``narrator``   the output: text, or JSON lines; on a
                                                                terminal, ``live_table``
``servers``   the TLS service: nginx, or ``service``            ``report``     counters, latencies, verdict
``witness``   a process that checks endpoint and disk from outside; ``witness_client`` talks to it
``baseline``  the fastest possible client, for comparison       ``following``  the agent's commands and deployments
"""
