"""The bounds of settings and of the policy, and the settings that need each other, each with its fix."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from config_dir import URL

from certctrl.model.config import AgentConfig
from certctrl.model.policy import AcmeAnswers, HostPolicy, MaintenanceWindow, NamedCommand, TrustStore
from certctrl.model.priority import Priority
from certctrl.store.config.rules import check_config, check_policy, check_server_url
from certctrl.store.structure import Mismatch

LISTEN = "expected ADDRESS:PORT"
DIGEST = "0123456789abcdef" * 4


def config(section: str, **values: object) -> AgentConfig:
    base = attrs.evolve(AgentConfig(), application=attrs.evolve(AgentConfig().application, server_url=URL))
    return attrs.evolve(base, **{section: attrs.evolve(getattr(base, section), **values)})


GOOD_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("application", {"approval_host": "approve.example"}),
    ("application", {"approval_host": "Approve.Example"}),
    ("application", {"server_url": "https://plane.example:8443/"}),
    ("application", {"server_url": "http://127.0.0.1:8080", "allow_http_loopback": True}),
    ("application", {"server_url": "https://localhost", "allow_http_loopback": True}),
    ("application", {"metrics_listen": "127.0.0.1:9464"}),
    ("application", {"metrics_listen": "0.0.0.0:9464", "metrics_public": True}),
    ("application", {"metrics_textfile": "/var/lib/certctrl.prom"}),
    ("application", {"signal_timeouts": {"cert.renewed": 1.0, "cert.revoked": 3600.0}}),
    ("application", {"priority_order": tuple(Priority)[::-1]}),
    ("httpclient", {"proxy": "http://proxy.example:3128"}),
    ("httpclient", {"client_certificate": "c.pem", "client_key": "c.key"}),
    ("log", {"file": "agent.log"}),
    ("log", {"file": "...log"}),
]
HOST_ONLY = "expected a host name without scheme and port"
PROXY = "expected the http:// URL of a CONNECT proxy"
PROXY_FIX = 'write "http://[USER:PASSWORD@]HOST:PORT", or "" for none'
FILE_NAME = "expected a file name, not a path: it is created in logs/"
METRICS = "use 127.0.0.1:9464, or set metrics_public to true for other addresses"
WRONG_SETTINGS: list[tuple[str, dict[str, Any], str, str, str | None]] = [
    ("application", {"approval_host": "https://x"}, "application.approval_host", HOST_ONLY, None),
    ("application", {"approval_host": "x:99999"}, "application.approval_host", HOST_ONLY, None),
    ("application", {"approval_host": "[::1"}, "application.approval_host", HOST_ONLY, None),
    ("application", {"refresh_path": ""}, "application.refresh_path", "expected a path that starts with /", None),
    ("application", {"metrics_listen": "0.0.0.0:1"}, "application.metrics_listen", "", METRICS),
    ("application", {"metrics_textfile": "a/b"}, "application.metrics_textfile", "expected an absolute path", None),
    (
        "application", {"priority_order": (Priority.CONFIG, Priority.RENEWAL, Priority.CONFIG)}, "application.priority_order[2]",
        "config is there twice", "name each class once",
    ),
    (
        "application", {"priority_order": (Priority.CONFIG, Priority.RENEWAL)}, "application.priority_order",
        "lacks revocation, expiring", "name each class once: revocation, expiring, renewal, config",
    ),
    (
        "application", {"signal_timeouts": {"a": 5.0, "b": 0.99}}, "application.signal_timeouts.b",
        "expected 1 to 3600 seconds", None,
    ),
    (
        "application", {"signal_timeouts": {"a": 3600.5}}, "application.signal_timeouts.a",
        "expected 1 to 3600 seconds", None,
    ),
    ("httpclient", {"proxy": "https://proxy.example"}, "httpclient.proxy", PROXY, PROXY_FIX),
    ("httpclient", {"proxy": "http://:3128"}, "httpclient.proxy", PROXY, PROXY_FIX),
    ("httpclient", {"proxy": "http://[x"}, "httpclient.proxy", PROXY, PROXY_FIX),
    (
        "httpclient", {"client_certificate": "c.pem"}, "httpclient.client_key",
        "is missing, but client_certificate is set", None,
    ),
    (
        "httpclient", {"client_key": "c.key"}, "httpclient.client_certificate",
        "is missing, but client_key is set", None,
    ),
    ("log", {"file": "."}, "log.file", FILE_NAME, None),
    ("log", {"file": ".."}, "log.file", FILE_NAME, None),
    ("log", {"file": "logs/agent.log"}, "log.file", FILE_NAME, None),
]  # fmt: skip


@pytest.mark.parametrize(("section", "values"), GOOD_SETTINGS)
def test_settings_within_their_bounds(section: str, values: dict[str, Any]) -> None:
    check_config(config(section, **values))


@pytest.mark.parametrize(("section", "values", "path", "what", "fix"), WRONG_SETTINGS)
def test_a_setting_beyond_its_bounds(
    section: str, values: dict[str, Any], path: str, what: str, fix: str | None
) -> None:
    with pytest.raises(Mismatch) as caught:
        check_config(config(section, **values))
    assert (caught.value.path, caught.value.fix) == (path, fix)
    assert caught.value.what == what if what else caught.value.what


HOST_AND_PORT = "expected scheme, host and port, without "
WRITE = "write https://HOST[:PORT]"
URLS: list[tuple[str, bool, str, str | None]] = [
    ("", True, "is not set", "set it to the control plane's URL, such as https://plane.example.com"),
    ("plane.example", True, "expected an https URL with a host name", WRITE),
    ("https://[::1", True, "expected an https URL with a host name", WRITE),
    ("https://plane.example:65536", True, "expected an https URL with a host name", WRITE),
    ("ftp://plane.example", True, "expected an https URL with a host name", WRITE),
    ("https://user@plane.example", True, HOST_AND_PORT + "credentials or query", WRITE),
    ("https://plane.example?x", True, HOST_AND_PORT + "credentials or query", WRITE),
    ("https://plane.example#x", True, HOST_AND_PORT + "credentials or query", WRITE),
    ("https://plane.example/x", True, HOST_AND_PORT + "a path", WRITE),
    ("http://plane.example", True, "expected https; plain http is for loopback hosts only", WRITE),
    ("http://[::1]:80", False, "plain http needs allow_http_loopback", "use https, or for tests set it to true"),
]


@pytest.mark.parametrize(("url", "loopback", "what", "fix"), URLS)
def test_a_url_that_no_plane_has(url: str, loopback: bool, what: str, fix: str | None) -> None:
    with pytest.raises(Mismatch) as caught:
        check_server_url(url, loopback_http=loopback)
    assert (caught.value.path, caught.value.what, caught.value.fix) == ("application.server_url", what, fix)


# --- the policy ---------------------------------------------------------------------------------------------


def command(**values: Any) -> HostPolicy:
    return HostPolicy(commands={"a": NamedCommand(**{"argv": ("/bin/sh", "/srv/x.sh"), **values})})


def window(**values: Any) -> HostPolicy:
    return HostPolicy(window=MaintenanceWindow(**values))


GOOD_POLICIES: list[HostPolicy] = [
    HostPolicy(write_roots=("/etc/ssl", "/srv")),
    HostPolicy(unassign_grace=0.0),
    HostPolicy(unassign_grace=30 * 86_400.0),
    command(timeout_seconds=1.0),
    command(timeout_seconds=600.0),
    command(sha256=DIGEST, script_sha256=DIGEST),
    HostPolicy(
        probe=(
            "mx.example:1", "mx.example:65535", "::1", "[::1]:25", "fe80::1%eth0", "[fe80::1%eth0]:25", "[::ffff:192.0.2.1]:25",
            "192.0.2.1", "müller.example",
        )
    ),
    HostPolicy(on_alert=("/usr/bin/alert",)),
    HostPolicy(acme=AcmeAnswers(http01_directory="/srv/acme", names=("*.a.test", "192.0.2.7"))),
    HostPolicy(acme=AcmeAnswers(http01_listen="0.0.0.0:80", tls_alpn01_listen="[::]:443")),
    HostPolicy(trust_store=TrustStore(directory="/", command=("/bin/true",))),
    window(days=("mon",), from_="00:00", to="24:00", timezone="Europe/Berlin", override_when_life_below=0.0),
    window(override_when_life_below=1.0),
]  # fmt: skip
ABSOLUTE = "expected an absolute path without . or .. and without a final slash"
ENDPOINT = "expected HOST or HOST:PORT, an IPv6 address with a port in brackets"
HEX = "expected 64 lower-case hex digits"
EMPTY = "expected an executable and its arguments, found an empty list"
CLOCK = "expected HH:MM from 00:00 to 24:00"
ZONE = "expected the name of a time zone"
ZONES = "use a name such as UTC or Europe/Berlin; the tzdata package must be installed"
WRONG_POLICIES: list[tuple[HostPolicy, str, str, str | None]] = [
    (HostPolicy(write_roots=("/a", "/")), "write_roots[1]", "expected a directory below /", "name a directory"),
    (HostPolicy(write_roots=("/a", "b")), "write_roots[1]", ABSOLUTE, None),
    (HostPolicy(unassign_grace=-0.5), "unassign_grace", "expected 0 to 2592000 seconds", None),
    (HostPolicy(unassign_grace=2_592_000.5), "unassign_grace", "expected 0 to 2592000 seconds", None),
    (HostPolicy(on_alert=()), "on_alert", EMPTY, None),
    (HostPolicy(on_alert=("alert",)), "on_alert[0]", ABSOLUTE, None),
    (HostPolicy(acme=AcmeAnswers(http01_directory="www")), "acme.http01_directory", ABSOLUTE, None),
    (HostPolicy(acme=AcmeAnswers(http01_directory="/")), "acme.http01_directory", "expected a directory below /", "name a directory"),
    (HostPolicy(acme=AcmeAnswers(http01_listen="80")), "acme.http01_listen", LISTEN, "use 0.0.0.0:80 or [::]:80"),
    (HostPolicy(acme=AcmeAnswers(http01_listen="0.0.0.0:0")), "acme.http01_listen", LISTEN, "use 0.0.0.0:80 or [::]:80"),
    (HostPolicy(acme=AcmeAnswers(tls_alpn01_listen="www:443")), "acme.tls_alpn01_listen", LISTEN, "use 0.0.0.0:443 or [::]:443"),
    (HostPolicy(acme=AcmeAnswers(names=("a.test", "B.test"))), "acme.names[1]", "expected a DNS name in lower case, or an IP address", None),
    (HostPolicy(trust_store=TrustStore(directory="ca")), "trust_store.directory", ABSOLUTE, None),
    (HostPolicy(trust_store=TrustStore(command=())), "trust_store.command", EMPTY, None),
    (HostPolicy(trust_store=TrustStore(command=("x",))), "trust_store.command[0]", ABSOLUTE, None),
    (command(argv=()), "commands.a.argv", EMPTY, None),
    (command(argv=("sh",)), "commands.a.argv[0]", ABSOLUTE, None),
    (command(timeout_seconds=0.5), "commands.a.timeout_seconds", "expected 1 to 600 seconds", None),
    (command(timeout_seconds=600.5), "commands.a.timeout_seconds", "expected 1 to 600 seconds", None),
    (command(sha256=DIGEST.upper()), "commands.a.sha256", HEX, "sha256sum the executable"),
    (command(sha256=DIGEST + "0"), "commands.a.sha256", HEX, "sha256sum the executable"),
    (command(script_sha256="0"), "commands.a.script_sha256", HEX, "sha256sum the script"),
    (
        command(argv=("/usr/sbin/nginx",), script_sha256=DIGEST), "commands.a.script_sha256",
        "argv does not name an interpreter and a script", "use sha256, which pins the program",
    ),
    *(
        (HostPolicy(probe=("a.example", wrong)), "probe[1]", ENDPOINT, None)
        for wrong in ("", ":25", "a b", "a.example:", "a.example:0", "a.example:65536", "a.example:x", "[::1", "::1]",
                      "[::1]:0", "a:b:25", "10.0.0.0/8", "a.example:²",
                      "[a.example:25", "a.example]:25")
    ),
    (window(days=()), "window.days", "expected at least one day", None),
    (window(from_="24:01"), "window.from", CLOCK, None),
    (window(to="12:60"), "window.to", CLOCK, None),
    (window(override_when_life_below=-0.1), "window.override_when_life_below", "expected 0 to 1", None),
    (window(override_when_life_below=1.1), "window.override_when_life_below", "expected 0 to 1", None),
    (window(timezone="Mars/Olympus"), "window.timezone", ZONE, ZONES),
    (window(timezone="Europe"), "window.timezone", ZONE, ZONES),
    (window(timezone="/etc/localtime"), "window.timezone", ZONE, ZONES),
]  # fmt: skip


@pytest.mark.parametrize("policy", GOOD_POLICIES)
def test_a_policy_within_its_bounds(policy: HostPolicy) -> None:
    check_policy(policy)


@pytest.mark.parametrize(("policy", "path", "what", "fix"), WRONG_POLICIES)
def test_a_policy_beyond_its_bounds(policy: HostPolicy, path: str, what: str, fix: str | None) -> None:
    with pytest.raises(Mismatch) as caught:
        check_policy(policy)
    assert (caught.value.path, caught.value.what, caught.value.fix) == (path, what, fix)


def test_a_wrong_day_is_named_by_its_place() -> None:
    with pytest.raises(Mismatch) as caught:
        check_policy(window(days=("mon", "Tue")))
    assert caught.value.path == "window.days[1]"
