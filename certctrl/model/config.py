"""AgentConfig: all settings as one object, with the defaults of the spec.

The metadata of each field (``doc``, and the bounds ``ge``/``le`` or ``choices``) is the only source of its
documentation: ``store/config`` checks values against it, ``config show`` prints it, and
``docs/configuration.md`` is generated from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from ipaddress import ip_address
from typing import Any

import attrs

from certctrl import lean
from certctrl.model.priority import Priority


class PollMode(StrEnum):
    """When the agent polls, and whether the control plane holds the poll."""

    INTERVAL = "interval"
    LONG_POLL = "long-poll"
    ADAPTIVE = "adaptive"
    """Long polls after activity, otherwise as `INTERVAL`."""
    PUSH = "push"
    """A socket on which the plane sends signals; without one, as `LONG_POLL`."""


class Recovery(StrEnum):
    """What happens once the circuit breaker is open."""

    AUTO = "auto"
    """The agent probes."""
    MANUAL = "manual"
    """The agent waits for `poll-now`."""


class LogPolls(StrEnum):
    """Which polls are written to the log."""

    ALL = "all"
    CHANGES = "changes"


class LogFormat(StrEnum):
    """The form of a log line."""

    TEXT = "text"
    JSON = "json"


def setting(
    default: Any,
    doc: str,
    *,
    ge: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] | None = None,
    secret: bool = False,
) -> Any:
    """Return an attrs field with its documentation and bounds; the choices of an enum are its members."""
    kind = type(default) if isinstance(default, StrEnum) else None
    choices = tuple(kind) if kind is not None else choices
    meta = {"doc": doc, "ge": ge, "le": le, "choices": choices, "secret": secret}
    if isinstance(default, dict | list):
        return attrs.field(factory=type(default), metadata=meta)
    return attrs.field(default=default, converter=kind, metadata=meta)


@lean.frozen(kw_only=True)
class ApplicationConfig:
    """``application.json``."""

    server_url: str = setting("", "https URL of the control plane (scheme, host, port)")
    name: str = setting("", "name under which this device registers; empty: the host name")
    approval_host: str = setting("", "host of the approval page, if it is not that of server_url")
    allow_http_loopback: bool = setting(False, "accept http:// for loopback hosts, for tests only")
    refresh_path: str = setting("/auth/token/refresh", "path of the token refresh endpoint")
    poll_mode: PollMode = setting(PollMode.INTERVAL, "how to poll")
    poll_interval_ms: int = setting(5000, "base interval between polls", ge=10, le=3_600_000)
    log_polls: LogPolls = setting(
        LogPolls.ALL, "write each poll to the log, or only those that are not routine and one summary an hour"
    )
    poll_limit: int = setting(20, "signals per page", ge=1, le=100)
    long_poll_wait_seconds: int = setting(25, "seconds that a long poll may last", ge=1, le=30)
    adaptive_window_seconds: int = setting(300, "seconds that `adaptive` long-polls after activity", ge=1, le=86_400)
    poll_jitter: float = setting(0.1, "fraction of the interval by which each delay varies", ge=0, le=0.5)
    first_poll_spread_seconds: float = setting(
        5.0, "the first poll is sent at a random moment within this time", ge=0, le=300
    )
    breaker_failures: int = setting(10, "consecutive failures that open the breaker", ge=1, le=1000)
    recovery: Recovery = setting(Recovery.AUTO, "once the breaker is open: probe automatically, or wait for poll-now")
    refresh_ahead_seconds: int = setting(60, "refresh the access token this long before it expires", ge=1, le=3600)
    queue_size: int = setting(1000, "queued signals at which polling pauses", ge=1, le=100_000)
    handler_limit: int = setting(
        8, "signals handled concurrently; each class of `priority_order` has its share beyond it", ge=1, le=64
    )
    priority_order: tuple[Priority, ...] = setting(
        tuple(Priority), "classes of signals, the most urgent first; each gets twice the turns of the next one"
    )
    signal_timeout_seconds: float = setting(300.0, "time limit for handling one signal", ge=1, le=3600)
    signal_timeouts: Mapping[str, float] = setting({}, "time limits by signal type, in seconds")
    poison_attempts: int = setting(5, "failed attempts before a signal is quarantined", ge=1, le=100)
    batch_limit_seconds: float = setting(
        600.0, "how long the certificates of an atomic batch wait for each other", ge=1, le=86_400
    )
    reconcile_interval_seconds: int = setting(
        21_600, "compare this host with the plane this often, even without signals", ge=60, le=604_800
    )
    helper_socket: str = setting(
        "/run/cert-ctrl-helper.sock",
        "socket of the root helper, for files and units that this agent's user cannot change; empty: do not use it",
    )
    stop_grace_seconds: float = setting(10.0, "time for running work to finish after SIGTERM", ge=0, le=300)
    keep_generations: int = setting(2, "previous generations kept per certificate", ge=0, le=50)
    expiry_warn_fraction: float = setting(
        1 / 3, "warn if less than this fraction of a certificate's life remains", ge=0, le=1
    )
    expiry_warn_days: float = setting(7.0, "warn if fewer days than this remain", ge=0, le=365)
    alert_attempts: int = setting(3, "failed attempts after which an alert is raised", ge=1, le=1000)
    alert_held_days: float = setting(3.0, "days after which a hold by `rollback` is alerted", ge=0, le=365)
    debounce_ms: int = setting(
        500, "a reload waits this long for further certificates of the same burst", ge=0, le=60_000
    )
    debounce_limit_ms: int = setting(30_000, "upper bound for the delay of a reload by its burst", ge=0, le=600_000)
    verify_timeout_seconds: float = setting(
        15.0, "how long a probe waits for the new certificate, which must then stay for 0.25 s", ge=0.1, le=300
    )
    report_serving: bool = setting(True, "look at intervals at what endpoints serve, and report it to the plane")
    serving_interval_seconds: int = setting(
        3600, "look this often, and at what was wrong every five minutes", ge=60, le=86_400
    )
    history_entries: int = setting(1000, "deployments kept in the audit log", ge=10, le=100_000)
    metrics_listen: str = setting("", "HOST:PORT for Prometheus; empty: off; only loopback unless metrics_public")
    metrics_public: bool = setting(False, "allow metrics_listen on an address that is not loopback")
    metrics_textfile: str = setting("", "path of a Prometheus textfile; empty: off")


@lean.frozen(kw_only=True)
class HttpClientConfig:
    """``httpclient_config.json``."""

    connect_timeout_seconds: float = setting(10.0, "TCP and TLS set-up", ge=0.1, le=120)
    request_timeout_seconds: float = setting(30.0, "a whole exchange, except a long poll", ge=1, le=300)
    long_poll_extra_seconds: float = setting(5.0, "deadline of a long poll beyond its wait", ge=1, le=60)
    ca_files: tuple[str, ...] = setting((), "PEM files that replace the system trust store; relative to -c")
    client_certificate: str = setting("", "PEM file for mutual TLS; relative to -c")
    client_key: str = setting("", "PEM key of client_certificate, mode 0600; relative to -c")
    proxy: str = setting(
        "",
        "http:// URL of a CONNECT proxy; unused for a loopback server_url; the environment's proxies are ignored",
        secret=True,
    )
    max_connections: int = setting(4, "connections to the plane", ge=1, le=64)
    keepalive_seconds: float = setting(
        75.0, "keep an idle connection this long; at least 2 x interval + 30", ge=1, le=3600
    )


@lean.frozen(kw_only=True)
class IocConfig:
    """``ioc_config.json``: the active signal handlers."""

    disabled_handlers: tuple[str, ...] = setting((), "signal types to ignore (acked as ignored)")
    handlers: Mapping[str, str] = setting({}, "signal type -> entry point name of certctrl.signal_handlers")


@lean.frozen(kw_only=True)
class LogConfig:
    """``log_config.json``."""

    level: str = setting(
        "INFO", "minimum level that is written", choices=("DEBUG", "INFO", "WARN", "ERROR", "CRITICAL")
    )
    format: LogFormat = setting(LogFormat.TEXT, "text lines or one JSON object per line")
    stderr: bool = setting(True, "write to standard error")
    journald: bool = setting(False, "prefix stderr lines with a <priority> for the journal")
    file: str = setting("", "log file, relative to logs/; empty: none")
    max_bytes: int = setting(10_485_760, "rotate a larger file", ge=4096, le=1_073_741_824)
    max_age_days: float = setting(30.0, "rotate and delete older files", ge=0.01, le=3650)
    keep_files: int = setting(5, "rotated files kept", ge=0, le=100)


@lean.frozen(kw_only=True)
class AgentConfig:
    """The four configuration files as one value."""

    application: ApplicationConfig = attrs.field(factory=ApplicationConfig)
    httpclient: HttpClientConfig = attrs.field(factory=HttpClientConfig)
    ioc: IocConfig = attrs.field(factory=IocConfig)
    log: LogConfig = attrs.field(factory=LogConfig)


CONFIG_FILES = {
    "application": "application.json",
    "httpclient": "httpclient_config.json",
    "ioc": "ioc_config.json",
    "log": "log_config.json",
}


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is loopback, without DNS."""
    if host.rstrip(".") == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def listen_address(listen: str, *, public: bool) -> tuple[str, int]:
    """Return address and port of HOST:PORT; raises ValueError if invalid, or not loopback without ``public``."""
    host, _, port = listen.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65_535:
        raise ValueError("expected HOST:PORT, such as 127.0.0.1:9464")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise ValueError("expected an IP address or localhost before the port") from None
    if not (public or address.is_loopback):
        raise ValueError("expected a loopback address, as metrics_public is not set")
    return str(address), int(port)
