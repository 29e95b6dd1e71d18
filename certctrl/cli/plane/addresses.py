"""Addresses that ``plane serve`` listens on, from its options."""

from __future__ import annotations

from certctrl.errors import UsageError

DEFAULT_LISTEN = "127.0.0.1:8443"
Addresses = dict[str, tuple[str, int] | None]
"""Name of a small listener -> its host and port; None: off."""


def other_addresses(metrics: str, metrics_public: bool, acme_http: str) -> Addresses:
    """Return the addresses of the small listeners; None: off. Raises UsageError."""
    found = parse_metrics(metrics, public=metrics_public)
    return {"metrics": found, "acme_http": parse_listen(acme_http, "--acme-http") if acme_http else None}


def others_of(worker: int, others: Addresses) -> Addresses:
    """Return the small listeners of one worker: its own port for metrics, and http-01 at the first worker only.

    Port 0 stays 0: any free port for each.
    """
    metrics = others["metrics"]
    own = metrics and (metrics[0], metrics[1] + worker - 1 if metrics[1] else 0)
    return {"metrics": own, "acme_http": others["acme_http"] if worker == 1 else None}


def parse_listen(text: str, option: str = "--listen") -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``, ``[::1]:PORT`` or ``:PORT`` (all addresses). Raises UsageError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    is_port = port.isascii() and port.isdigit() and int(port) <= 65_535
    if not colon or not is_port or (":" in host and not bracketed) or any(map(str.isspace, host)):
        example = DEFAULT_LISTEN if option == "--listen" else "0.0.0.0:80"
        raise UsageError(f"{option} {text!r} is not HOST:PORT", fix=f"use for example {option} {example}")
    return host.strip("[]") or "0.0.0.0", int(port)


def parse_metrics(text: str, *, public: bool) -> tuple[str, int] | None:
    """Return host and port for metrics; None: off. Raises UsageError, even for a valid one that is not loopback."""
    from certctrl.model.config import listen_address

    if not text:
        return None
    try:
        return listen_address(text, public=public)
    except ValueError:
        what = f"--metrics {text!r} is not {'an' if public else 'a loopback'} address with a port"
        raise UsageError(what, fix="use 127.0.0.1:9465, or add --metrics-public for other addresses") from None
