"""Serve acme2certifier on a loopback port: ``python -m certctrl.sandbox.acme2certifier PORT``.

The environment names its configuration, see ``acme_ca.py``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server


class Server(ThreadingMixIn, WSGIServer):
    """A server with one thread for each connection."""

    daemon_threads = True


class Handler(WSGIRequestHandler):
    """Serves requests without resolving client names."""

    def address_string(self) -> str:
        """Return the client's address."""
        return str(self.client_address[0])


def main() -> None:
    """Serve until the process ends."""
    application = import_module("acme2certifier.share.acme2certifier_wsgi").application
    make_server("127.0.0.1", int(sys.argv[1]), application, server_class=Server, handler_class=Handler).serve_forever()


if __name__ == "__main__":
    main()
