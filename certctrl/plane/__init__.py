"""The reference control plane: real HTTPS, real storage, a real CA (extra ``certctrl[plane]``).

Read ``core.py`` first: ``Plane`` is everything without sockets. ``http/app.py`` makes it an ASGI application,
``serve.py`` a server. Importing this package imports nothing.
"""
