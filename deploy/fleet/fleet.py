#!/usr/bin/env python3
"""Run a fleet on one machine, to watch it lose a control plane: PostgreSQL, three control planes, HAProxy, 50 agents.

    fleet.py DIR start     start everything; all files are below DIR, all ports on 127.0.0.1
    fleet.py DIR watch     show which control plane serves how many agents, every second
    fleet.py DIR kill 2    end control plane 2 with SIGKILL
    fleet.py DIR revive 2  start it again
    fleet.py DIR renew     renew all certificates
    fleet.py DIR stop      end everything; DIR stays

Run it with the Python that certctrl[plane-postgres] is installed for. It needs HAProxy, PostgreSQL 15 or later, and about
40 MiB of memory per agent.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from processes import HOST, Fleet, FleetError, free_ports, postgresql_program, run, search_path, succeeds, unprivileged

PROGRAM: tuple[str | Path, ...] = (sys.executable, "-m", "certctrl")
MOST_AGENTS, MOST_PLANES = 200, 9
DOMAINS = 5
TOGETHER = 4
"""Agents that register at a time."""
HAPROXY = """\
defaults
    mode tcp
    balance leastconn
    option redispatch
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend plane
    bind {host}:{port}
    use_backend unready if {{ nbsrv(planes) eq 0 }}
    default_backend planes
backend planes
    option httpchk GET /health/ready
    default-server check check-ssl verify none inter 1s fall 2 rise 1
{servers}
backend unready
    default-server check inter 1s
{servers}
"""
POSTGRESQL = """
listen_addresses = ''
unix_socket_directories = '{socket}'
unix_socket_permissions = 0700
max_connections = 100
"""


# --- the start ----------------------------------------------------------------------------------------------------


def start(fleet: Fleet, planes: int, agents: int) -> None:
    """Start a new fleet, or one that was stopped."""
    if any(fleet.pid(name) for name in fleet.state["processes"]):
        raise FleetError(f"the fleet in {fleet.root} is running; stop it first")
    check_needs()
    (fleet.root / "logs").mkdir(parents=True, exist_ok=True)
    new = not fleet.state["planes"]
    if new:
        first, *ports = free_ports(planes + 1)
        fleet.state |= {"port": first, "planes": ports, "agents": agents}
    fleet.save()
    try:
        say("PostgreSQL")
        start_postgresql(fleet)
        if new:
            move_in(fleet)
        for number in fleet.numbers():
            say(f"control plane {number}")
            start_plane(fleet, number)
        start_haproxy(fleet)
        start_agents(fleet)
    except BaseException:
        fleet.stop()
        raise
    say(f"{fleet.state['agents']} agents run. Now: {sys.argv[0]} {fleet.root} watch")


def check_needs() -> None:
    """Raise FleetError if a program or package is missing."""
    if shutil.which("haproxy", path=search_path()) is None:
        raise FleetError("HAProxy is not installed: apt install haproxy")
    postgresql_program("initdb")
    for module in ("certctrl", "psycopg", "starlette"):
        if importlib.util.find_spec(module) is None:
            raise FleetError(f"the package {module} is missing: pip install 'certctrl[plane-postgres]'")


def start_postgresql(fleet: Fleet) -> None:
    """Start the server on a Unix socket; the first time, create its data."""
    home, data = fleet.root / "postgresql", fleet.root / "postgresql" / "data"
    become, user = unprivileged()
    if len(str(home)) > 80:
        raise FleetError(f"{fleet.root} is too long for a Unix socket: use a shorter directory")
    if not data.exists():
        home.mkdir(mode=0o700, exist_ok=True)
        shutil.chown(home, user.pw_uid, user.pw_gid)
        options = ["--auth=trust", "--no-instructions", "--encoding=UTF8", "--username=plane"]
        run([*become, postgresql_program("initdb"), "-D", data, *options])
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(POSTGRESQL.format(socket=home))
    fleet.launch("postgresql", [*become, postgresql_program("postgres"), "-D", data])
    ask: list[str | Path] = [postgresql_program("psql"), "-h", home, "-U", "plane", "-d", "postgres", "-XAtq", "-c"]
    fleet.wait_until(lambda: succeeds([*ask, "SELECT 1"]), "PostgreSQL", "postgresql")
    if not run([*ask, "SELECT 1 FROM pg_database WHERE datname = 'plane'"]).strip():
        run([*ask, "CREATE DATABASE plane"])


def move_in(fleet: Fleet) -> None:
    """Create a control plane on SQLite, move it into the database, and give its keys to the others."""
    first = fleet.plane(1)
    listen = f"{HOST}:{fleet.state['planes'][0]}"
    fleet.launch("plane1", [*PROGRAM, "plane", "serve", "--data", first, "--listen", listen])
    fleet.wait_until(lambda: answers(fleet, 1), "the first control plane", "plane1")
    fleet.end(["plane1"])
    run([*PROGRAM, "plane", "migrate-to", database_url(fleet), "--data", first])
    for number in fleet.numbers()[1:]:
        fleet.plane(number).mkdir(mode=0o700)
        for key in ("storage.key", "operator.key"):
            shutil.copy(first / key, fleet.plane(number) / key)


def start_plane(fleet: Fleet, number: int) -> None:
    """Start a control plane on its port and wait until it is ready."""
    listen = f"{HOST}:{fleet.state['planes'][number - 1]}"
    options: list[str | Path] = ["--data", fleet.plane(number), "--listen", listen, "--database", database_url(fleet)]
    fleet.launch(f"plane{number}", [*PROGRAM, "plane", "serve", *options])
    fleet.wait_until(lambda: answers(fleet, number), f"control plane {number}", f"plane{number}")


def start_haproxy(fleet: Fleet) -> None:
    """Start HAProxy before the control planes."""
    say("HAProxy")
    config = fleet.root / "haproxy.cfg"
    servers = "\n".join(
        f"    server plane{number} {HOST}:{port}" for number, port in enumerate(fleet.state["planes"], start=1)
    )
    config.write_text(HAPROXY.format(host=HOST, port=fleet.state["port"], servers=servers))
    fleet.launch("haproxy", [str(shutil.which("haproxy", path=search_path())), "-db", "-f", config])
    fleet.wait_until(lambda: accepts(fleet.state["port"]), "HAProxy", "haproxy")


def start_agents(fleet: Fleet) -> None:
    """Register the agents that are new, issue certificates to them, and start all."""
    agents = range(1, fleet.state["agents"] + 1)
    new = [number for number in agents if not (fleet.agent(number) / "state" / "refresh_token.txt").exists()]
    if new:
        token = fleet.root / "token"
        token.touch(mode=0o600)
        token.write_text(run([*PROGRAM, "plane", "enrolment-token", "--uses", "0", "--data", fleet.plane(1)]))
        with ThreadPoolExecutor(TOGETHER) as pool:
            for done, _ in enumerate(pool.map(lambda number: register(fleet, number, token), new), start=1):
                say(f"registered {done} of {len(new)} agents", end="\r")
        token.unlink()
        for group in range(min(DOMAINS, len(new))):
            devices: list[str | Path] = [
                word for number in new[group::DOMAINS] for word in ("--device", fleet.agent(number).name)
            ]
            domain = f"group{group + 1}.example"
            # Agents of a group share a key, and none runs yet that could make one.
            run([*PROGRAM, "plane", "issue", domain, *devices, "--key", "plane", "--data", fleet.plane(1)])
    for number in agents:
        say(f"started {number} of {len(agents)} agents   ", end="\r")
        fleet.launch(fleet.agent(number).name, [*PROGRAM, "-c", fleet.agent(number), "--keep-running"])
    say("")


def register(fleet: Fleet, number: int, token: Path) -> None:
    """Create the config directory of an agent and register it through HAProxy."""
    place = fleet.agent(number)
    place.parent.mkdir(exist_ok=True)
    agent = [*PROGRAM, "-c", place]
    run([*agent, "init", "--server", fleet.url, "--ca", fleet.plane(1) / "ca.pem", "--name", place.name])
    config = place / "application.json"
    more = {"poll_mode": "long-poll", "first_poll_spread_seconds": 0}
    config.write_text(json.dumps(json.loads(config.read_text()) | more))
    run([*agent, "register", "--enrolment-token-file", token])


# --- the table ------------------------------------------------------------------------------------------------


def survey(fleet: Fleet) -> dict[str, Any]:
    """Return the state of all processes, and the status that each control plane reports."""
    agents = [fleet.agent(number).name for number in range(1, fleet.state["agents"] + 1)]
    planes: list[dict[str, Any]] = []
    for number in fleet.numbers():
        pid, found = fleet.pid(f"plane{number}"), None
        if pid is not None:
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                found = ask_plane(fleet, number, "/apiv1/plane/status")["data"]
        planes.append({"number": number, "pid": pid, "status": found})
    return {
        "url": fleet.url,
        "postgresql": fleet.pid("postgresql"),
        "haproxy": fleet.pid("haproxy"),
        "agents": fleet.state["agents"],
        "agents_running": sum(fleet.pid(name) is not None for name in agents),
        "polls": sum(plane["status"]["polls"] for plane in planes if plane["status"]),
        "planes": planes,
    }


def table(fleet: Fleet, found: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the live table."""
    running = ", ".join(f"{name} {'runs' if found[name.lower()] else 'IS DOWN'}" for name in ("PostgreSQL", "HAProxy"))
    yield f"{running} at {found['url']}; {found['agents_running']} of {found['agents']} agents run"
    yield ""
    yield f"{'PLANE':<7}{'PID':<9}{'STATE':<13}{'AGENTS':<8}{'CONNECTIONS':<13}PROBLEMS"
    for plane in found["planes"]:
        status = plane["status"]
        state, polls, connections, problems = "dead" if plane["pid"] is None else "silent", "-", "-", ""
        if status:
            state, polls, connections = status["status"], status["polls"], status["connections"]
            problems = ", ".join(problem["key"] for problem in status["problems"])
        yield f"{plane['number']:<7}{plane['pid'] or '-':<9}{state:<13}{polls:<8}{connections:<13}{problems}".rstrip()
    yield ""
    yield f"{found['polls']} of {found['agents']} agents wait for signals"
    yield ""
    yield f"{sys.argv[0]} {fleet.root} kill N    ends a control plane, revive N starts it again"
    yield f"{sys.argv[0]} {fleet.root} renew     renews all certificates, stop ends everything"


def watch(fleet: Fleet) -> None:
    """Show the table every second until Ctrl-C."""
    clear = "\033[H\033[2J" if sys.stdout.isatty() else ""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            say(clear + "\n".join(table(fleet, survey(fleet))))
            time.sleep(1.0)


def renew(fleet: Fleet) -> None:
    """Renew all certificates at a control plane that runs."""
    words: list[str | Path] = [
        "--data",
        next((fleet.plane(n) for n in fleet.numbers() if answers(fleet, n)), fleet.plane(1)),
    ]
    for row in json.loads(run([*PROGRAM, "plane", "certificates", "--json", *words])):
        say(run([*PROGRAM, "plane", "renew", str(row["id"]), *words]).strip())


# --- small parts --------------------------------------------------------------------------------------------------


def ask_plane(fleet: Fleet, number: int, path: str) -> Any:
    """Return the answer of one control plane to a request of its operator."""
    data = fleet.plane(number)
    context = ssl.create_default_context(cafile=str(data / "ca.pem"))
    connection = http.client.HTTPSConnection(HOST, fleet.state["planes"][number - 1], timeout=5, context=context)
    with contextlib.closing(connection):
        key = (data / "operator.key").read_text().strip()
        connection.request("GET", path, headers={"authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"status {answer.status}")
        return json.loads(answer.read())


def answers(fleet: Fleet, number: int) -> bool:
    """Return whether a control plane is ready."""
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
        return bool(ask_plane(fleet, number, "/health/ready"))
    return False


def accepts(port: int) -> bool:
    """Return whether connections to a port are accepted."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=5):
        return True
    return False


def database_url(fleet: Fleet) -> str:
    """Return the URL of the database, on the server's Unix socket."""
    return f"postgresql://plane@/plane?host={quote(str(fleet.root / 'postgresql'), safe='')}"


def say(text: str, end: str = "\n") -> None:
    """Print a text immediately."""
    print(text, end=end, flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", metavar="DIR", type=Path)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    starting = commands.add_parser("start", help="start everything")
    starting.add_argument("--planes", type=int, default=3, choices=range(1, MOST_PLANES + 1), metavar="N")
    starting.add_argument("--agents", type=int, default=50, choices=range(1, MOST_AGENTS + 1), metavar="N")
    commands.add_parser("watch", help="show a live table until Ctrl-C")
    commands.add_parser("status", help="show the table once").add_argument("--json", action="store_true")
    for name, about in (("kill", "end a control plane with SIGKILL"), ("revive", "start a control plane again")):
        commands.add_parser(name, help=about).add_argument("number", type=int, metavar="N")
    commands.add_parser("renew", help="renew all certificates")
    commands.add_parser("stop", help="end everything")
    options = parser.parse_args()
    try:
        perform(Fleet(options.directory.absolute()), options)
    except (FleetError, OSError, subprocess.TimeoutExpired) as error:
        sys.exit(f"fleet: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def perform(fleet: Fleet, options: argparse.Namespace) -> None:
    """Perform one command."""
    if options.command == "start":
        start(fleet, options.planes, options.agents)
        return
    if not fleet.state["planes"]:
        raise FleetError(f"{fleet.root} contains no fleet; start it first")
    if options.command in ("kill", "revive") and options.number not in fleet.numbers():
        raise FleetError(f"there is no control plane {options.number}, only 1 to {len(fleet.numbers())}")
    match options.command:
        case "watch":
            watch(fleet)
        case "status":
            found = survey(fleet)
            say(json.dumps(found) if options.json else "\n".join(table(fleet, found)))
        case "kill":
            fleet.end([f"plane{options.number}"], signal.SIGKILL)
        case "revive":
            if fleet.pid(f"plane{options.number}") is None:
                start_plane(fleet, options.number)
        case "renew":
            renew(fleet)
        case "stop":
            fleet.stop()


if __name__ == "__main__":
    main()
