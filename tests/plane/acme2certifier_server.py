"""A real acme2certifier: an ACME CA with renewal information and profiles, on a free port of the loopback address."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
from pebble_server import EAB_KEYS, START_SECONDS, free_port

from certctrl.plane.ca.x509 import Authority, key_pem, new_intermediate, new_root

_SERVE = """
import sys
from wsgiref.simple_server import make_server, WSGIRequestHandler, WSGIServer
from socketserver import ThreadingMixIn
from acme2certifier.share.acme2certifier_wsgi import application

class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

class Handler(WSGIRequestHandler):
    def address_string(self):
        return self.client_address[0]

make_server("127.0.0.1", int(sys.argv[1]), application, server_class=Server, handler_class=Handler).serve_forever()
"""


@attrs.frozen
class Acme2certifier:
    """One server."""

    directory_url: str
    root: Authority
    """The root of its certificates."""
    log: Path
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def acme2certifier_server(
    folder: Path, *, now: float, sections: Mapping[str, Mapping[str, str]] | None = None, with_eab: bool = False
) -> Iterator[Acme2certifier]:
    """Run the server in the block; it considers all challenges proven. ``sections`` are added to its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    root = new_root("a2c root", not_before=now - 3600, not_after=now + 10 * 365 * 86_400)
    below = new_intermediate(root, "a2c intermediate", not_before=now - 3600, not_after=now + 5 * 365 * 86_400)
    (folder / "root.pem").write_text(root.pem)
    (folder / "ca.pem").write_text(below.pem)
    (folder / "ca.key").write_bytes(key_pem(below.key))
    (folder / "certs").mkdir()
    config: dict[str, dict[str, str]] = {
        "DEFAULT": {"debug": "False"},
        "Nonce": {"nonce_check_disable": "False"},
        "CAhandler": {
            "handler_module": "acme2certifier.cahandlers.openssl_ca_handler",
            "issuing_ca_key": str(folder / "ca.key"),
            "issuing_ca_cert": str(folder / "ca.pem"),
            "ca_cert_chain_list": json.dumps([str(folder / "root.pem")]),
            "issuing_ca_crl": str(folder / "crl.pem"),
            "cert_save_path": str(folder / "certs"),
            "cert_validity_days": "30",
        },
        "DBhandler": {
            "handler_module": "acme2certifier.dbhandlers.wsgi_handler",
            "dbfile": str(folder / "a2c.db"),
        },
        "Certificate": {"revocation_reason_check_disable": "False"},
        "Challenge": {"challenge_validation_disable": "True"},
        "Order": {"profiles": json.dumps({"classic": "https://a2c.test/classic", "short": "https://a2c.test/short"})},
    }
    if with_eab:
        (folder / "eab.json").write_text(json.dumps(EAB_KEYS))
        config["EABhandler"] = {
            "eab_handler_module": "acme2certifier.eabhandlers.json_handler",
            "key_file": str(folder / "eab.json"),
        }
    for name, values in (sections or {}).items():
        config.setdefault(name, {}).update(values)
    lines = [f"[{name}]\n" + "".join(f"{key}: {value}\n" for key, value in one.items()) for name, one in config.items()]
    (folder / "acme_srv.cfg").write_text("\n".join(lines))
    (folder / "serve.py").write_text(_SERVE)
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "ACME_SRV_CONFIGFILE": str(folder / "acme_srv.cfg"),
        "ACME2CERTIFIER_BASE_DIR": str(folder),
        "ACME2CERTIFIER_I_KNOW_THE_RISK": "1",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(folder / "serve.py"), str(port)],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    server = Acme2certifier(f"http://127.0.0.1:{port}/directory", root, folder / "log", process)
    try:
        _wait(server)
        yield server
    finally:
        process.terminate()
        process.wait()


def _wait(server: Acme2certifier) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(server.directory_url, timeout=10).close()
            return
        except OSError:
            assert server.process.poll() is None, server.log.read_text()
            assert time.monotonic() < deadline, server.log.read_text()
            time.sleep(0.05)
