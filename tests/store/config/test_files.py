"""The operator's files: mistakes are reported precisely without values; every setting can be overridden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from config_dir import URL, refused
from examples import at_most
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certctrl.errors import ConfigError, DiskError
from certctrl.model.config import AgentConfig
from certctrl.store.config.files import (
    _CLASSES,
    load_config,
)
from certctrl.store.layout import ConfigDir

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
    ("server_url", "plane.example", "https URL", "write https://HOST"),
    ("server_url", "ftp://plane.example", "https URL", "write https://HOST"),
    ("server_url", "https://plane.example:99999", "https URL", "write https://HOST"),
    ("server_url", "https://", "https URL", "write https://HOST"),
    ("server_url", "http://plane.example", "loopback", "write https://HOST"),
    ("server_url", "http://localhost", "allow_http_loopback", "https"),
    ("server_url", "https://user:SECRET@plane.example", "without credentials", "write https://HOST"),
    ("server_url", "https://plane.example/?token=SECRET", "without credentials or query", "write https://HOST"),
]


@pytest.mark.parametrize(("key", "value", "what", "fix"), WRONG, ids=[f"{w[0]}={str(w[1])[:24]!r}" for w in WRONG])
def test_a_mistake_is_reported(layout: ConfigDir, key: str, value: object, what: str, fix: str) -> None:
    layout.application.write_text(json.dumps({"server_url": URL} | {key: value}))
    error = refused(layout)
    assert what in str(error)
    assert fix in str(error.fix)
    assert (error.file, error.path.partition(".")[0]) == (str(layout.application), key)
    assert "SECRET" not in str(error)


SYNTAX = "correct it; {} means all defaults"


@pytest.mark.parametrize(
    ("body", "what", "fix"),
    [
        (b"", "is empty", SYNTAX),
        (b"   \n", "is empty", SYNTAX),
        (b"{", "invalid JSON at line 1, column 2: Expecting property name enclosed in double quotes", SYNTAX),
        (b'{\n "server_url": }', "invalid JSON at line 2, column 16: Expecting value", SYNTAX),
        (b"\0\0\0", "invalid JSON at line 1, column 1: Expecting value", SYNTAX),
        (b"\xff\xfe{}", "is not JSON in UTF-8", ""),
        (b"[" * 100_000, "is not JSON in UTF-8", ""),
        (b"[]", "expected an object, found a list", ""),
        (b'"x"', "expected an object, found text", ""),
        (b"0", "expected an object, found a whole number", ""),
        (b'{"name":"a","name":"b"}', "name: duplicate key", ""),
        (b'{"name":{"x":1,"y":2,"x":3}}', "x: duplicate key", ""),
        (b'{"poll_jitter":NaN}', "NaN is not JSON", ""),
        (b'{"poll_jitter":-Infinity}', "-Infinity is not JSON", ""),
    ],
    ids=lambda value: str(value)[:30],
)
def test_invalid_json_is_reported_with_its_position(layout: ConfigDir, body: bytes, what: str, fix: str) -> None:
    layout.application.write_bytes(body)
    error = refused(layout)
    assert str(error) == f"{layout.application}: {what}"
    assert (error.file, error.fix) == (str(layout.application), fix or f"correct it in {layout.application}")


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
    error = refused(layout)
    assert (str(error), error.file) == (f"{layout.application}: no such file", str(layout.application))
    assert error.fix == f"cert-ctrl -c {layout.root} init --server URL"
    assert "no such file" in str(refused(layout, {"CERTCTRL_NAME": "x"}))
    assert load_config(layout, {"CERTCTRL_SERVER_URL": URL}).config.application.server_url == URL


def test_the_source_of_each_setting_is_known(layout: ConfigDir) -> None:
    layout.log_config.write_text(json.dumps({"level": "WARN"}))
    sources = load_config(layout, {"CERTCTRL_POLL_LIMIT": "5", "CERTCTRL_LOG_STDERR": "no"}).sources
    assert {name: source for name, source in sources.items() if source != "default"} == {
        "application.server_url": f"file {layout.application}",
        "application.poll_limit": "environment CERTCTRL_POLL_LIMIT",
        "log.level": f"file {layout.log_config}",
        "log.stderr": "environment CERTCTRL_LOG_STDERR",
    }


def test_a_wrong_combination_is_reported_where_it_can_be_corrected(layout: ConfigDir) -> None:
    layout.httpclient.write_text(json.dumps({"client_key": "c.key"}))
    error = refused(layout)
    assert (error.file, error.path) == (str(layout.httpclient), "client_certificate")
    assert error.fix == f"correct it in {layout.httpclient}"
    error = refused(layout, {"CERTCTRL_HTTPCLIENT_CLIENT_CERTIFICATE": ""})
    assert (error.file, error.path) == ("environment", "CERTCTRL_HTTPCLIENT_CLIENT_CERTIFICATE")


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


@settings(max_examples=at_most(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
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
