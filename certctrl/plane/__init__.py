"""The reference control plane: real HTTPS, real storage, a real CA (extra ``certctrl[plane]``).

Read ``core.py`` first: ``Plane`` is the whole plane without sockets. ``http/app.py`` makes it an ASGI application,
``serve.py`` an HTTPS server. Importing this package imports nothing.
"""
