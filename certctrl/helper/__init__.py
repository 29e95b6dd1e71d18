"""The root helper: writes files and reloads units for an agent that is not root, as far as root's own policy names them.

A small process of root (`serve`) answers one request per connection on a Unix socket; the kernel says which user asks.
It keeps no state: the agent's journal drives each deployment, so that a kill of either process at any moment is
finished or undone by the next start of the agent. It imports neither Trio nor any library for the network.
"""
