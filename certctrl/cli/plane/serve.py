"""``plane serve``: run the reference control plane in the foreground."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from certctrl.cli.invocation import Invocation, invocation
from certctrl.cli.output import write_json, write_line
from certctrl.cli.owner import become_owner
from certctrl.cli.plane.addresses import DEFAULT_LISTEN, other_addresses, others_of, parse_listen
from certctrl.cli.plane.connection import DATA_VARIABLE, note_duplicates
from certctrl.cli.plane.database import (
    DatabaseFile,
    DatabaseUrl,
    ListenDatabaseUrl,
    connector,
    database_address,
    needed_modules,
)
from certctrl.cli.plane.plain_http import CrlUrl, HttpListen, check_crl_url
from certctrl.cli.plane.plain_http import crl_url as default_crl_url
from certctrl.cli.plane.poll_modes import Recommendation, RecommendPollMode
from certctrl.cli.plane.secrets import OperatorKeyFile, StorageKeyFile, given_keys, read_secret
from certctrl.cli.plane.sockets import ReusePort, Sockets, open_sockets
from certctrl.errors import UsageError
from certctrl.text import counted

Data = Annotated[str | None, typer.Option("--data", metavar="DIR", help=f"Data directory; also ${DATA_VARIABLE}.")]
Listen = Annotated[
    str, typer.Option("--listen", metavar="HOST:PORT", help="Address to listen on; port 0: any free port.")
]
Hostnames = Annotated[
    list[str] | None,
    typer.Option("--hostname", metavar="NAME", help="DNS name or address that agents use; may be repeated."),
]
PublicUrl = Annotated[str, typer.Option("--public-url", metavar="URL", help="Browser URL; default: the agents' URL.")]
AllowUnprovenKeys = Annotated[
    bool,
    typer.Option(
        "--allow-unproven-keys",
        help="Let agents of version 0.1, which cannot prove possession of their key, register new devices. Always on "
        "for a data directory of version 0.1.",
    ),
]
ProxyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--proxy",
        metavar="CIDR",
        help="Addresses of TCP load balancers; each of their connections must begin with a PROXY header (version 1 or "
        "2), which names the client. May be repeated.",
    ),
]
HttpProxyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--http-proxy",
        metavar="CIDR",
        help="Addresses of HTTP proxies whose X-Forwarded-For names the client. May be repeated.",
    ),
]
MetricsListen = Annotated[
    str,
    typer.Option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics here, without a key; default: off."),
]
MetricsPublic = Annotated[
    bool, typer.Option("--metrics-public", help="Allow --metrics on an address that is not loopback.")
]
AcmeHttp = Annotated[
    str,
    typer.Option(
        "--acme-http",
        metavar="HOST:PORT",
        help="Answer http-01 challenges of issuers with plane-http here, in plain HTTP and nothing else; CAs connect to "
        "port 80. Default: off.",
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        max=64,
        help="Serve with N processes, for example one per processor; needs --database. --metrics of worker 2 is one port "
        "above that of worker 1, and so on.",
    ),
]
AuditDays = Annotated[
    int,
    typer.Option(
        "--audit-days",
        metavar="N",
        min=30,
        max=3650,
        help="Days for which entries of the audit log are kept; an entry says when older ones were deleted.",
    ),
]
Oidc = Annotated[
    str,
    typer.Option(
        "--oidc",
        metavar="FILE",
        help="Let operators sign in to the pages at an OpenID provider; FILE, of mode 0600, has its settings in JSON.",
    ),
]
_MAX_OPEN_FILES = 65_536
_LISTENERS = {"metrics_url": "metrics", "acme_http_url": "http-01", "http_url": "without TLS"}
"""Small listeners, and what they are called."""


def serve(
    ctx: typer.Context,
    data: Data = None,
    listen: Listen = DEFAULT_LISTEN,
    hostname: Hostnames = None,
    public_url: PublicUrl = "",
    allow_unproven_keys: AllowUnprovenKeys = False,
    proxy: ProxyOption = None,
    http_proxy: HttpProxyOption = None,
    database: DatabaseUrl = "",
    database_file: DatabaseFile = "",
    listen_database: ListenDatabaseUrl = "",
    storage_key_file: StorageKeyFile = "",
    operator_key_file: OperatorKeyFile = "",
    http: HttpListen = "",
    crl_url: CrlUrl = "",
    metrics: MetricsListen = "",
    metrics_public: MetricsPublic = False,
    acme_http: AcmeHttp = "",
    workers: Workers = 1,
    reuse_port: ReusePort = False,
    recommend_poll_mode: RecommendPollMode = Recommendation.LONG_POLL,
    audit_days: AuditDays = 400,
    oidc: Oidc = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the addresses and files as JSON.")] = False,
) -> None:
    """Run the control plane in the foreground.

    The first start creates DIR (0700) with database, CAs, operator.key and ca.pem. Agents need ca.pem: cert-ctrl -c …
    init --server URL --ca ca.pem. Clients of services with certificates of this control plane need issuing-ca.pem.
    SIGTERM and Ctrl-C stop it; even kill -9 loses no data.

    With --database, the data are on a PostgreSQL server, into which plane migrate-to has moved them; DIR then contains
    the keys and what this process needs.

    A socket that systemd passes replaces --listen, and one with FileDescriptorName=http replaces --http.

    SIGHUP rereads tls.pem and tls.key in DIR, and nothing else. A certificate of another CA there is used and never
    replaced. New connections to the database read --database-file again.

    \b
    cert-ctrl plane serve --data /var/lib/plane --listen 0.0.0.0:8443 \\
        --hostname plane.example.com
    """
    directory = _data_directory(data)
    host, port = parse_listen(listen)
    _check_urls(public_url, crl_url)
    others = other_addresses(metrics, metrics_public, acme_http)
    note_duplicates(hostname or ())
    connect = _connector(database, database_file, listen_database, workers)
    serving = partial(_served(), connect=connect, keys=given_keys(storage_key_file, operator_key_file, os.environ))
    serving = partial(serving, proxies=_proxies(proxy or (), http_proxy or ()), hostnames=tuple(hostname or ()))
    more: tuple[Any, ...] = (recommend_poll_mode.sent_as, audit_days, _provider(oidc))
    become_owner(directory)
    sockets = open_sockets(host, port, http, reuse_port, os.environ)
    more = (default_crl_url(crl_url, sockets.http, hostname or (), public_url), *more)
    placed, worker = _placed(serving, Path(directory), sockets, workers, invocation(ctx), others)
    _run(placed, ctx, public_url, as_json, allow_unproven_keys, worker, *more)


def _provider(file: str) -> Any:
    """Return the settings of the OpenID provider in a file; None without one. Raises ConfigError."""
    found = read_secret(file, "certctrl-oidc", os.environ, "the provider's settings", one_line=False)
    if found is None:
        return None
    from certctrl.plane.sign_in.file import read_settings

    return read_settings(found.path, found.text)


def _served() -> Callable[..., Any]:
    with needed_modules("plane"):
        from certctrl.plane.serve import serve_plane

        return serve_plane


def _data_directory(data: str | None) -> str:
    directory = data or os.environ.get(DATA_VARIABLE, "")
    if not directory:
        raise UsageError("no data directory for the control plane", fix="add --data DIR")
    return directory


def _connector(url: str, file: str, listen_url: str, workers: int) -> Callable[[], Any] | None:
    """Return the function that opens a database on a server; None: the one in the data directory. Raises UsageError."""
    read = partial(database_address, url, file, os.environ, listen_url)
    connect = connector(read(), again=read)
    if workers > 1 and connect is None:
        raise UsageError("--workers needs a database on a server", fix="add --database, or remove --workers")
    return connect


def _run(serving: Callable[..., Any], ctx: typer.Context, *args: Any) -> None:
    from certctrl.agent.clock import wall_now
    from certctrl.cli.runtime import run
    from certctrl.logs.stderr import lossy_stderr

    with lossy_stderr(wall_now):
        _log(invocation(ctx))
        run(_serve, serving, *args)


def _placed(
    serving: Callable[..., Any],
    place: Path,
    sockets: Sockets,
    workers: int,
    invoked: Invocation,
    others: dict[str, Any],
) -> tuple[Callable[..., Any], Any]:
    """Return what serves in this process, and the worker that this process has become; None: there is only one."""
    serving = partial(serving, **sockets.options())
    if workers == 1:
        return partial(serving, place, **others), None
    sock, worker = _start_workers(sockets, workers, invoked)
    own = others_of(worker.number, others)
    return partial(serving, worker.directory(place), **own, listening=sock), worker


def _start_workers(sockets: Sockets, count: int, invoked: Invocation) -> tuple[Any, Any]:
    """Return the listening socket and the worker that this process has become; the supervisor ends here."""
    from certctrl.agent.systemd import Notifier
    from certctrl.plane.http.server import listen
    from certctrl.plane.workers import Worker, supervise

    _allow_many_connections()
    _log(invoked)
    notifier, sock = Notifier(os.environ), sockets.https or listen(sockets.host, sockets.port)
    became = supervise(
        count,
        ready=lambda: notifier.ready(f"serving with {counted(count, 'worker')}"),
        alive=notifier.watchdog,
        stopping=lambda: notifier.stopping("stopping"),
    )
    if isinstance(became, Worker):
        return sock, became
    raise typer.Exit(became)


def _check_urls(public_url: str, crl_url: str) -> None:
    """Raise UsageError for a public URL that a browser cannot open, or a URL of revocation lists that clients cannot."""
    check_crl_url(crl_url)
    _check_public_url(public_url)


def _check_public_url(url: str) -> None:
    """Raise UsageError for a public URL that a browser cannot open."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
        usable = named and parts.scheme in ("https", "http") and not (parts.query or parts.fragment)
    except ValueError:
        usable = False
    if url and not usable:
        raise UsageError(f"--public-url {url!r} is not a URL for browsers", fix="use https://HOST[:PORT]")


def _proxies(tcp: Sequence[str], http: Sequence[str]) -> Any:
    """Return the proxies of two options; raises UsageError."""
    from certctrl.plane.http.proxies import Proxies, networks

    for option, texts in (("--proxy", tcp), ("--http-proxy", http)):
        for text in texts:
            try:
                networks([text])
            except ValueError as error:
                fix = "use for example 192.0.2.10 or 10.0.0.0/8"
                raise UsageError(f"{option} {text!r} is not an address or network: {error}", fix=fix) from None
    return Proxies(networks(tcp), networks(http))


async def _serve(
    serving: Callable[..., Any],
    public_url: str,
    as_json: bool = False,
    allow_unproven_keys: bool = False,
    worker: Any = None,
    crl_url: str = "",
    recommended: str = Recommendation.LONG_POLL.sent_as,
    audit_days: int = 400,
    provider: Any = None,
) -> None:
    """Serve until asked to stop; ``worker`` is this process if it is one of several."""
    import trio
    from trio_util import RepeatedEvent

    from certctrl.agent.early_signals import PLANE, STOPPING, early_signals
    from certctrl.agent.systemd import Notifier, feed_watchdog
    from certctrl.plane.http import garbage
    from certctrl.plane.stop_deadline import end_in_time

    _allow_many_connections()
    notifier, early, reload = Notifier({} if worker is not None else os.environ), early_signals(), RepeatedEvent()
    settings = _settings(public_url, crl_url, allow_unproven_keys, recommended, audit_days, provider)
    with trio.open_signal_receiver(*PLANE) as signals:
        async with trio.open_nursery() as nursery:
            address = await nursery.start(partial(serving, settings=settings, reload=reload))
            garbage.collect_new_objects_only()
            nursery.start_soon(garbage.collect_all_hourly)
            if worker is None or worker.number == 1:
                _announce(address, f"{public_url.rstrip('/') or address.url}/device", as_json=as_json)
            notifier.ready(f"serving {address.url}")
            nursery.start_soon(feed_watchdog, notifier)
            if not any(signum in STOPPING for signum in early.take()):
                await _asked_to_stop(_reloading(signals, worker, reload, notifier), worker)
            notifier.stopping("stopping")
            end_in_time()
            nursery.cancel_scope.cancel()


def _settings(
    public_url: str, crl_url: str, allow_unproven_keys: bool, recommended: str, audit_days: int, provider: Any
) -> Any:
    """Return the settings of the plane."""
    from certctrl.plane.settings import PlaneSettings

    return PlaneSettings(
        public_url=public_url,
        crl_url=crl_url,
        allow_unproven_keys=allow_unproven_keys,
        recommended_poll_mode=recommended,
        audit_days=audit_days,
        oidc=provider,
    )


async def _reloading(signals: AsyncIterator[int], worker: Any, reload: Any, notifier: Any) -> AsyncIterator[int]:
    """Yield the stop signals; reload at SIGHUP."""
    from certctrl.agent.early_signals import STOPPING

    async for signum in signals:
        if signum in STOPPING:
            yield signum
            continue
        notifier.reloading()
        if worker is not None:
            worker.copy_certificate()
        reload.set()
        notifier.ready("read the TLS certificate again")


async def _asked_to_stop(signals: AsyncIterator[int], worker: Any) -> None:
    """Return at a stop signal; a worker also returns when its supervisor has ended."""
    import trio

    async with trio.open_nursery() as nursery:

        async def end(wait: Callable[[], Awaitable[object]]) -> None:
            await wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(end, partial(anext, signals))
        if worker is not None:
            worker.serves()
            nursery.start_soon(end, worker.until_orphaned)


def _announce(address: Any, approval_url: str, *, as_json: bool) -> None:
    names = ("ca_file", "issuing_ca_file", "operator_key_file")
    files = {name: str(getattr(address, name)) for name in names}
    more = {name: getattr(address, name) for name in _LISTENERS if getattr(address, name)}
    if as_json:
        about = {"url": address.url, "approval_url": approval_url, "ca_sha256": address.ca_fingerprint}
        write_json(about | files | more, pretty=False)
    else:
        write_line(f"control plane  {address.url}")
        write_line(f"approve hosts  {approval_url}")
        write_line(f"CA file        {address.ca_file}")
        write_line(f"CA fingerprint {address.ca_fingerprint}")
        write_line(f"operator key   {address.operator_key_file}")
        for name, url in more.items():
            write_line(f"{_LISTENERS[name]:<13}  {url}")
    sys.stdout.flush()


def _allow_many_connections() -> None:
    """Raise the limit of open files: every waiting poll holds a connection."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _log(invoked: Invocation) -> None:
    """Log what a service does, one line each, unless ``-q`` asks for warnings only."""
    from certctrl.logs.setup import log_for_command

    log_for_command(debug=invoked.debug, verbosity=0 if invoked.verbosity < 0 else 1)
