"""The operator's files: mistakes are reported precisely without values; every setting can be overridden."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import attrs
import pytest
from config_dir import FS, URL, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certctrl.errors import ConfigError, DiskError
from certctrl.model.config import AgentConfig
from certctrl.model.policy import HostPolicy
from certctrl.store.config.files import (
    _CLASSES,
    init_config_dir,
    load_config,
    load_policy,
)
from certctrl.store.disk.tree import check_modes
from certctrl.store.layout import ConfigDir

# --- init ---------------------------------------------------------------------------------------------------


def test_init_creates_a_complete_private_directory(tmp_path: Path) -> None:
    layout = ConfigDir(tmp_path / "etc" / "agent")
    init_config_dir(FS, layout, server_url=URL, ca_pem=b"PEM")
    assert check_modes(FS, layout) == []
    assert layout.plane_ca.read_bytes() == b"PEM"
    config = load_config(layout, {}).config
    assert config == attrs.evolve(
        AgentConfig(),
        application=attrs.evolve(AgentConfig().application, server_url=URL),
        httpclient=attrs.evolve(AgentConfig().httpclient, ca_files=("plane-ca.pem",)),
    )
    assert load_policy(layout) == HostPolicy()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in layout.root.iterdir() if path.is_file()}
    assert modes == {
        "application.json": 0o644, "httpclient_config.json": 0o600, "ioc_config.json": 0o644,
        "log_config.json": 0o644, "policy.json": 0o644, "plane-ca.pem": 0o644,
    }  # fmt: skip


def test_init_again_changes_nothing(layout: ConfigDir) -> None:
    layout.application.write_text(json.dumps({"server_url": URL, "poll_limit": 5}))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in layout.root.iterdir() if path.is_file()}
    init_config_dir(FS, layout, server_url=URL, ca_pem=None)
    files = [path for path in layout.root.iterdir() if path.is_file()]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == before


@pytest.mark.parametrize("body", ['{"server_url": "https://other.example"}', "[]", "{}"])
def test_init_never_overwrites(layout: ConfigDir, body: str) -> None:
    layout.application.write_text(body)
    layout.log_config.unlink()
    with pytest.raises(ConfigError, match="other settings"):
        init_config_dir(FS, layout, server_url=URL, ca_pem=None)
    assert layout.application.read_text() == body
    assert not layout.log_config.exists()


def test_init_refuses_another_ca(layout: ConfigDir) -> None:
    init_config_dir(FS, ConfigDir(layout.root.with_name("b")), server_url=URL, ca_pem=b"ONE")
    with pytest.raises(ConfigError, match=r"plane-ca\.pem"):
        init_config_dir(FS, ConfigDir(layout.root.with_name("b")), server_url=URL, ca_pem=b"TWO")


def test_init_allows_http_only_for_loopback(tmp_path: Path) -> None:
    layout = ConfigDir(tmp_path / "a")
    init_config_dir(FS, layout, server_url="http://127.0.0.1:8080", ca_pem=None)
    assert load_config(layout, {}).config.application.allow_http_loopback
    with pytest.raises(ConfigError, match="loopback"):
        init_config_dir(FS, ConfigDir(tmp_path / "b"), server_url="http://plane.example", ca_pem=None)
    assert not (tmp_path / "b").exists()


# --- the four files -----------------------------------------------------------------------------------------

WRONG: list[tuple[str, Any, str, str]] = [
    ("poll_intervall_ms", 5000, "unknown key", "poll_interval_ms"),
    ("color", "red", "unknown key", "known keys"),
    ("poll_interval_ms", "5000", "expected a whole number, found text", "correct"),
    ("poll_interval_ms", 5000.0, "expected a whole number, found a number with a fraction", "correct"),
    ("poll_interval_ms", True, "expected a whole number, found true or false", "correct"),
    ("poll_interval_ms", None, "expected a whole number, found null", "correct"),
    ("poll_interval_ms", 9, "expected 10 to 3600000, found 9", "correct"),
    ("poll_interval_ms", 10**30, "expected 10 to 3600000", "correct"),
    ("poll_jitter", "0.1", "expected a number, found text", "correct"),
    ("poll_jitter", 10**400, "sensible size", "correct"),
    ("poll_jitter", 0.6, "expected 0 to 0.5, found 0.6", "correct"),
    ("allow_http_loopback", 1, "expected true or false, found a whole number", "correct"),
    ("name", ["a"], "expected text, found a list", "correct"),
    ("name", "a\0b", "expected text without NUL", "correct"),
    ("poll_mode", "longpoll", "expected one of interval, long-poll, adaptive", "'long-poll'"),
    ("signal_timeouts", [], "expected an object, found a list", "correct"),
    ("signal_timeouts", {"cert.renewed": "x"}, "expected a number, found text", "correct"),
    ("signal_timeouts", {"cert.renewed": 0}, "expected 1 to 3600", "correct"),
    ("refresh_path", "auth", "starts with /", "correct"),
    ("metrics_listen", "9464", "HOST:PORT", "127.0.0.1:9464"),
    ("metrics_listen", "web-1:9464", "an IP address or localhost", "127.0.0.1:9464"),
    ("metrics_listen", "[::1:9464", "an IP address", "127.0.0.1:9464"),
    ("metrics_listen", "127.0.0.1:65536", "HOST:PORT", "127.0.0.1:9464"),
    ("metrics_listen", "0.0.0.0:9464", "loopback", "metrics_public"),
    ("metrics_textfile", "x.prom", "absolute", "correct"),
    ("server_url", "", "is not set", "https://"),
    ("server_url", "plane.example", "https URL", "correct"),
    ("server_url", "ftp://plane.example", "https URL", "correct"),
    ("server_url", "https://plane.example:99999", "https URL", "correct"),
    ("server_url", "https://", "https URL", "correct"),
    ("server_url", "http://plane.example", "loopback", "correct"),
    ("server_url", "http://localhost", "allow_http_loopback", "https"),
    ("server_url", "https://user:SECRET@plane.example", "without credentials", "correct"),
    ("server_url", "https://plane.example/?token=SECRET", "without credentials or query", "correct"),
]


@pytest.mark.parametrize(("key", "value", "what", "fix"), WRONG, ids=[f"{w[0]}={str(w[1])[:24]!r}" for w in WRONG])
def test_a_mistake_is_reported(layout: ConfigDir, key: str, value: Any, what: str, fix: str) -> None:
    layout.application.write_text(json.dumps({"server_url": URL} | {key: value}))
    error = refused(layout)
    assert what in str(error)
    assert fix in str(error.fix)
    assert (error.file, error.path.partition(".")[0]) == (str(layout.application), key)
    assert "SECRET" not in str(error)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "is empty"),
        (b"   \n", "is empty"),
        (b"{", "line 1, column 2"),
        (b'{"server_url": }', "line 1, column 16"),
        (b"\0\0\0", "line 1"),
        (b"\xff\xfe{}", "UTF-8"),
        (b"[]", "expected an object, found a list"),
        (b'"x"', "expected an object, found text"),
        (b'{"name":"a","name":"b"}', "duplicate key"),
        (b'{"poll_jitter":NaN}', "NaN"),
        (b'{"poll_jitter":Infinity}', "Infinity"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_invalid_json_is_reported_with_its_position(layout: ConfigDir, body: bytes, what: str) -> None:
    layout.application.write_bytes(body)
    error = refused(layout)
    assert what in str(error)
    assert str(layout.application) in str(error)


@pytest.mark.parametrize(
    ("name", "body", "path"),
    [
        ("httpclient", {"proxy": "socks5://user:SECRET@x"}, "proxy"),
        ("httpclient", {"proxy": 5}, "proxy"),
        ("application", {"server_url": URL, "approval_host": "https://x"}, "approval_host"),
        ("application", {"server_url": URL, "approval_host": "x:8443"}, "approval_host"),
        ("application", {"server_url": URL, "approval_host": "a b/c"}, "approval_host"),
        ("httpclient", {"ca_files": "ca.pem"}, "ca_files"),
        ("httpclient", {"ca_files": ["a", 1]}, "ca_files[1]"),
        ("httpclient", {"client_certificate": "c.pem"}, "client_key"),
        ("httpclient", {"client_key": "c"}, "client_certificate"),
        ("httpclient", {"max_connections": 0}, "max_connections"),
        ("ioc", {"handlers": {"x": 1}}, "handlers.x"),
        ("log_config", {"level": "TRACE"}, "level"),
        ("log_config", {"file": "../x"}, "file"),
    ],
)
def test_every_file_is_checked(layout: ConfigDir, name: str, body: dict[str, Any], path: str) -> None:
    file: Path = getattr(layout, name)
    file.write_text(json.dumps(body))
    error = refused(layout)
    assert (error.file, error.path) == (str(file), path)
    assert "SECRET" not in str(error)


def test_missing_files_mean_defaults_except_the_first(layout: ConfigDir) -> None:
    for path in (layout.httpclient, layout.ioc, layout.log_config):
        path.unlink()
    assert load_config(layout, {}).config.log == AgentConfig().log
    layout.application.unlink()
    assert "init" in str(refused(layout).fix)
    assert load_config(layout, {"CERTCTRL_SERVER_URL": URL}).config.application.server_url == URL


def test_a_missing_directory_is_reported_with_the_init_command(tmp_path: Path) -> None:
    error = refused(ConfigDir(tmp_path / "nothing"))
    assert error.fix == f"cert-ctrl -c {tmp_path}/nothing init --server URL"


def test_a_file_that_cannot_be_read_is_a_disk_error(layout: ConfigDir) -> None:
    layout.ioc.unlink()
    layout.ioc.mkdir()
    with pytest.raises(DiskError, match="ioc_config"):
        load_config(layout, {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([field.name for kind in _CLASSES.values() for field in attrs.fields(kind)]) | st.text(max_size=9)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(section=st.sampled_from(["application", "httpclient", "ioc", "log_config"]), key=KEYS, value=JSON)
def test_any_json_is_accepted_or_reported(section: str, key: str, value: object, tmp_path: Path) -> None:
    layout = ConfigDir(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    layout.application.write_text(json.dumps({"server_url": URL}))
    file: Path = getattr(layout, section)
    file.write_text(json.dumps({"server_url": URL, key: value} if section == "application" else {key: value}))
    try:
        load_config(layout, {})
    except ConfigError as error:
        assert error.fix
        assert error.file == str(file)
