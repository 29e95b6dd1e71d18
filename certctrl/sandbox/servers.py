"""The TLS service of the sandbox: a private nginx, or the built-in one; each a child process in its own session.

Both serve all names on one loopback port, selected by SNI. A child must not outlive a sandbox that was killed: the
built-in service ends with its standard input, and the witness ends nginx (``guard``). A parent-death signal would not
work: it is tied to the thread that forked, and Trio forks in threads that end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import trio

from certctrl import lean
from certctrl.errors import CommandError, UsageError
from certctrl.sandbox import service

HOST = "127.0.0.1"
START_SECONDS = 10.0
STOP_SECONDS = 5.0
NGINX_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))


@lean.frozen(kw_only=True)
class Server:
    """How to start one service, and the commands that the agent may run."""

    kind: str
    """``nginx`` or ``built-in``."""
    folder: Path
    port: int
    argv: tuple[str, ...]
    reload_argv: tuple[str, ...]
    check_argv: tuple[str, ...]
    """``{staged}`` is the directory of the files to check."""

    @property
    def label(self) -> str:
        """The service in a sentence."""
        return self.kind if self.kind == "nginx" else f"the {self.kind} service"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """Start the service, yield its pid once it accepts connections, and stop it.

        Raises CommandError if it does not start.
        """
        with (self.folder / "error.log").open("ab") as log:
            process = await trio.lowlevel.open_process(
                self.argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
            )
        try:
            await self._wait_until_up(process)
            yield process.pid
        finally:
            await end_process(process)

    async def _wait_until_up(self, process: trio.Process) -> None:
        with trio.move_on_after(START_SECONDS):
            while process.poll() is None:
                with contextlib.suppress(OSError):
                    await (await trio.open_tcp_stream(HOST, self.port)).aclose()
                    return
                await trio.sleep(0.02)
        lines = (self.folder / "error.log").read_text(errors="replace").splitlines()
        raise CommandError(
            f"{self.label} did not start: {lines[-1] if lines else 'no output'}",
            fix=f"read {self.folder / 'error.log'}, or try --service builtin",
        )


async def end_process(process: trio.Process) -> None:
    """Terminate a child, and kill it after ``STOP_SECONDS``; safe in a cancelled scope."""
    with trio.CancelScope(shield=True):
        if process.stdin is not None:
            await process.stdin.aclose()
        process.terminate()
        with trio.move_on_after(STOP_SECONDS):
            await process.wait()
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the workers of nginx, which is the leader of its session
        await process.wait()


def choose_server(
    kind: str, folder: Path, certs: Path, names: list[str], *, others: Mapping[str, Path] | None = None
) -> Server:
    """Write the service's configuration below ``folder`` and return the service; ``kind``: nginx, builtin or auto.

    ``others``: further names and the directories of their certificates.
    """
    nginx = find_nginx(kind)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if nginx is not None:
        pairs = {name: (certs / f"{name}.crt", certs / f"{name}.key") for name in names}
        pairs |= {name: (pair / "fullchain.pem", pair / "private.key") for name, pair in (others or {}).items()}
        return _nginx(nginx, folder, pairs)
    return _builtin(
        folder,
        {name: str(certs / ".live" / name) for name in names}
        | {name: str(pair) for name, pair in (others or {}).items()},
    )


def find_nginx(kind: str) -> str | None:
    """Return the nginx to run; None for the built-in service.

    Raises UsageError if ``kind`` is unknown or nginx is not installed.
    """
    if kind not in ("nginx", "builtin", "auto"):
        raise UsageError(f"--service {kind}: not one of nginx, builtin, auto")
    nginx = None if kind == "builtin" else shutil.which("nginx", path=NGINX_PATH)
    if kind == "nginx" and nginx is None:
        raise UsageError("--service nginx: nginx is not installed", fix="install nginx, or use --service builtin")
    return nginx


def module_argv(name: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs a module with the libraries of this process, wherever it found them."""
    code = f"import runpy, sys; sys.path[:] = {sys.path!r}; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return (sys.executable, "-c", code, *arguments)


def free_port() -> int:
    """Return a free port."""
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def _builtin(folder: Path, sites: Mapping[str, str]) -> Server:
    settings, pid_file, port = folder / "service.json", folder / "service.pid", free_port()
    text = {"host": HOST, "port": port, "pid_file": str(pid_file), "sites": dict(sites)}
    settings.write_text(json.dumps(text, indent=2) + "\n")
    script = str(Path(service.__file__).resolve())
    return Server(
        kind="built-in",
        folder=folder,
        port=port,
        argv=module_argv("certctrl.sandbox.service", str(settings)),
        # By pid file: the policy allows the exact argv, which must survive a restart of the service.
        reload_argv=("/bin/sh", "-c", f"kill -HUP $(cat {shlex.quote(str(pid_file))})"),
        check_argv=(sys.executable, "-I", script, "--check", "{staged}"),
    )


def _nginx(nginx: str, folder: Path, pairs: Mapping[str, tuple[Path, Path]]) -> Server:
    port, conf, check = free_port(), folder / "nginx.conf", folder / "check-staged"
    conf.write_text(
        NGINX_CONF.format(folder=folder, port=port, sites="".join(_site(port, *one) for one in pairs.items()))
    )
    check.write_text(NGINX_CHECK.format(nginx=shlex.quote(nginx)))
    command = (nginx, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(conf))
    return Server(
        kind="nginx",
        folder=folder,
        port=port,
        argv=command,
        reload_argv=(*command, "-s", "reload"),
        check_argv=("/bin/sh", str(check), "{staged}"),
    )


def _site(port: int, name: str, pair: tuple[Path, Path]) -> str:
    return NGINX_SITE.format(port=port, name=name, certificate=pair[0], key=pair[1])


NGINX_CONF = """\
# A private nginx: its own prefix, one loopback port, independent of the system.
daemon off;
pid "{folder}/nginx.pid";
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path "{folder}/tmp"; proxy_temp_path "{folder}/tmp"; fastcgi_temp_path "{folder}/tmp";
    uwsgi_temp_path "{folder}/tmp"; scgi_temp_path "{folder}/tmp";
    ssl_session_tickets off;
    server {{ listen 127.0.0.1:{port} ssl default_server; ssl_reject_handshake on; }}
{sites}}}
"""
NGINX_SITE = """\
    server {{
        listen 127.0.0.1:{port} ssl;
        server_name {name};
        ssl_certificate "{certificate}";
        ssl_certificate_key "{key}";
        location / {{ return 200 "served by the sandbox of certctrl\\n"; }}
    }}
"""
NGINX_CHECK = """\
#!/bin/sh
# Let nginx load the staged files before live files change.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/nginx.conf" <<EOF
pid $work/pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path $work/tmp; proxy_temp_path $work/tmp; fastcgi_temp_path $work/tmp;
    uwsgi_temp_path $work/tmp; scgi_temp_path $work/tmp;
    server {{
        listen unix:$work/socket ssl;
        ssl_certificate "$1/fullchain.pem";
        ssl_certificate_key "$1/private.key";
    }}
}}
EOF
{nginx} -p "$work" -e stderr -q -t -c "$work/nginx.conf"
"""
