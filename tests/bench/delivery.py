"""Delivery by long-poll: from the signal published to the bytes durable on disk, and to the new serial served.

Floor and daemon get their events in turn, each from its own plane and with its own service. An event is published
during the long-poll, after a short random pause. The served serial is read only after the reload has returned, so
that reading it does not slow the reload.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import floors
from material import Material, make_agent, make_material
from measure import percentile, row
from rig import Plane, running_daemon, running_floor, running_plane

from certctrl.model.policy import HostPolicy, NamedCommand
from certctrl.sandbox import service
from certctrl.store.config.files import save_policy
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir

NGINX = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin")))
Event = Callable[[int], dict[str, float]]
"""Version -> milliseconds from its signal to each stage."""
NGINX_CONF = """daemon off; worker_processes 1; pid "{folder}/nginx.pid"; error_log "{folder}/error.log";
events {{ worker_connections 256; }}
http {{ access_log off; client_body_temp_path "{folder}/t1"; proxy_temp_path "{folder}/t2";
 fastcgi_temp_path "{folder}/t3"; uwsgi_temp_path "{folder}/t4"; scgi_temp_path "{folder}/t5";
 server {{ listen 127.0.0.1:{port} ssl; ssl_certificate "{pair}/fullchain.pem"; ssl_session_tickets off;
  ssl_certificate_key "{pair}/private.key"; return 204; }} }}"""


@attrs.frozen
class Service:
    """A TLS service that reads one pair, and its reload command."""

    port: int
    reload: tuple[str, ...]

    def serial(self) -> str:
        """Return the serial served now; empty if nothing answers."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as plain:
                with context.wrap_socket(plain, server_hostname="h0001.bench.test") as tls:
                    return floors.serial_of(tls.getpeercert(True) or b"")
        except OSError:
            return ""

    def wait_for(self, serial: str) -> float:
        """Return when this serial was first seen to be served."""
        end = time.monotonic() + 30
        while self.serial() != serial:
            if time.monotonic() > end:
                raise SystemExit(f"bench: the service at port {self.port} never served {serial}")
            time.sleep(0.0005)
        return time.monotonic()


@contextlib.contextmanager
def serving(kind: str, folder: Path, pair: Path) -> Iterator[Service]:
    """Run nginx or the built-in service on the pair in a directory."""
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if kind == "nginx":
        (folder / "nginx.conf").write_text(NGINX_CONF.format(folder=folder, port=port, pair=pair))
        argv = [str(NGINX), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
        reload = (*argv, "-s", "reload")
    else:
        settings = {"host": "127.0.0.1", "port": port, "pid_file": str(folder / "pid"),
                    "sites": {"h0001.bench.test": str(pair)}}  # fmt: skip
        (folder / "service.json").write_text(json.dumps(settings))
        argv = [sys.executable, str(service.__file__), str(folder / "service.json")]
        reload = ("/bin/sh", "-c", f"kill -HUP $(cat {shlex.quote(str(folder / 'pid'))})")
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        found = Service(port, reload)
        end = time.monotonic() + 20
        while not found.serial():
            if time.monotonic() > end:
                raise SystemExit(f"bench: {kind} does not start")
            time.sleep(0.05)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the workers of nginx
            process.wait()


def measure(work: Path, *, events: int, reloads: int) -> Iterator[dict[str, Any]]:
    """Yield the rows: to disk from ``events`` events, to served from ``reloads`` for each kind of service."""
    material = make_material(work / "one", count=1, versions=max(events, reloads) + 1)
    with contextlib.ExitStack() as stack:
        sides = {"floor": _floor(stack, work / "disk floor", material, None),
                 "ours": _daemon(stack, work / "disk agent", material, None)}  # fmt: skip
        yield from _disk_rows(_in_turn(sides, events))
    for kind in ("built-in service", *(["nginx"] if NGINX else [])):
        with contextlib.ExitStack() as stack:
            sides = {"floor": _floor(stack, work / f"{kind} floor", material, kind),
                     "ours": _daemon(stack, work / f"{kind} agent", material, kind)}  # fmt: skip
            yield from _served_rows(kind, _in_turn(sides, reloads))
    if not NGINX:
        yield {"case": "served by nginx", "note": "not measured: nginx is not installed"}


def _disk_rows(stages: dict[str, list[dict[str, float]]]) -> Iterator[dict[str, Any]]:
    for name, share, must in (("p50", 0.5, 1.4), ("p99", 0.99, 2.0)):
        ours, floor = (percentile([one["disk"] for one in stages[side]], share) for side in ("ours", "floor"))
        yield row(f"to disk, {name}, milliseconds", ours, floor, must=must, aim=1.2)


def _served_rows(kind: str, stages: dict[str, list[dict[str, float]]]) -> Iterator[dict[str, Any]]:
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        ours, floor = (percentile([one["served"] for one in stages[side]], share) for side in ("ours", "floor"))
        limits: dict[str, Any] = {"must": 15, "aim": 5} if name == "p50" else {}
        yield row(f"to served by {kind}, {name}, milliseconds beyond the floor", ours, floor,
                  value=ours - floor, digits=1, **limits)  # fmt: skip


def _in_turn(sides: dict[str, Event], events: int) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for version in range(2, events + 2):
        for side, event in sides.items():
            found[side].append(event(version))
    return found


def _publish(plane: Plane, version: int) -> float:
    plane.wait_parked()
    time.sleep(random.uniform(0.005, 0.015))
    return float(plane.obey("publish", ids=[1], version=version)["at"])


def _floor(stack: contextlib.ExitStack, folder: Path, material: Material, kind: str | None) -> Event:
    """Start the floor client with its own service, and return a function that sends it an event."""
    folder.mkdir()
    plane = stack.enter_context(running_plane(material))
    pair = folder / "pair"
    pair.mkdir()
    box, handle = floors.box_of(plane.facts(pair)), os.open(pair, os.O_RDONLY)
    floors.install(str(pair), handle, "", floors.open_bundle(material.wire(1, 1), box))
    os.close(handle)
    served = stack.enter_context(serving(kind, folder / "service", pair)) if kind else None
    reload: Sequence[str] = served.reload if served else ()
    client = stack.enter_context(running_floor("deliver", plane.facts(pair, reload=list(reload))))
    assert client.stdout is not None
    lines = client.stdout

    def event(version: int) -> dict[str, float]:
        at = _publish(plane, version)
        stages = {"disk": json.loads(lines.readline())["disk"] - at}
        if served:
            stages["served"] = served.wait_for(material.serial(1, version)) - at
        return {name: seconds * 1000 for name, seconds in stages.items()}

    return event


def _daemon(stack: contextlib.ExitStack, root: Path, material: Material, kind: str | None) -> Event:
    """Start the product with its own service, and return a function that sends it an event."""
    plane = stack.enter_context(running_plane(material))
    layout = make_agent(root, material, url=plane.url, poll_mode="long-poll")
    daemon = stack.enter_context(running_daemon(root))
    daemon.until_done(1)
    served = None
    if kind:
        served = stack.enter_context(serving(kind, root / "service", layout.live_link(material.name(1))))
        _give_plan(layout, daemon.process, plane, served, material)
        daemon.until_done(1)

    def event(version: int) -> dict[str, float]:
        at = _publish(plane, version)
        stages = {"disk": daemon.until("switched") - at}
        if served:
            daemon.until("ran")
            stages["served"] = served.wait_for(material.serial(1, version)) - at
        daemon.until("done")
        return {name: seconds * 1000 for name, seconds in stages.items()}

    return event


def _give_plan(
    layout: ConfigDir, process: subprocess.Popen[str], plane: Plane, served: Service, material: Material
) -> None:
    """Allow the reload and configure it at the plane: one command, then a probe of the live endpoint."""
    save_policy(RealFs(), layout, HostPolicy(commands={"reload": NamedCommand(argv=served.reload)}))
    process.send_signal(signal.SIGHUP)
    plane.wait_parked()
    verify = {"type": "tls", "host": "127.0.0.1", "port": served.port, "server_name": material.name(1)}
    item = {"id": "reload", "type": "exec", "cmd_argv": list(served.reload), "ob_type": "cert", "ob_id": 1}
    plane.obey("config", items=[item | {"verify": verify}])
