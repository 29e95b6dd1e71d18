"""The operator's files: mistakes are reported precisely without values; every setting can be overridden."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certctrl.errors import ConfigError, DiskError, ExitStatus
from certctrl.model.config import AgentConfig
from certctrl.model.plan import COMMAND_VARIABLES
from certctrl.model.policy import HostPolicy, MaintenanceWindow, NamedCommand, TrustStore
from certctrl.store.config.environment import variable_names
from certctrl.store.config.files import (
    _CLASSES,
    init_config_dir,
    load_config,
    load_local_installs,
    load_policy,
    save_policy,
)  # fmt: skip
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import check_modes
from certctrl.store.layout import ConfigDir

URL = "https://plane.example"
FS = RealFs()


@pytest.fixture
def layout(tmp_path: Path) -> ConfigDir:
    made = ConfigDir(tmp_path / "agent")
    init_config_dir(FS, made, server_url=URL, ca_pem=None)
    return made


def refused(layout: ConfigDir, environ: dict[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(layout, environ or {})
    assert caught.value.exit_status == ExitStatus.CONFIG
    assert caught.value.fix
    assert "\n" not in str(caught.value)
    return caught.value


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


# --- the environment ----------------------------------------------------------------------------------------


def test_every_setting_has_a_variable() -> None:
    names = variable_names(_CLASSES)
    assert len(names) == sum(len(attrs.fields(kind)) for kind in _CLASSES.values()), "two settings share a variable"
    assert names["CERTCTRL_POLL_INTERVAL_MS"] == ("application", "poll_interval_ms")
    assert names["CERTCTRL_HTTPCLIENT_PROXY"] == ("httpclient", "proxy")
    assert names["CERTCTRL_LOG_LEVEL"] == ("log", "level")
    assert names["CERTCTRL_IOC_HANDLERS"] == ("ioc", "handlers")


@pytest.mark.parametrize(
    ("variable", "text", "setting", "value"),
    [
        ("CERTCTRL_POLL_INTERVAL_MS", "100", "application.poll_interval_ms", 100),
        ("CERTCTRL_POLL_JITTER", "0", "application.poll_jitter", 0.0),
        ("CERTCTRL_POLL_JITTER", "0.25", "application.poll_jitter", 0.25),
        ("CERTCTRL_NAME", "12", "application.name", "12"),
        ("CERTCTRL_LOG_STDERR", "off", "log.stderr", False),
        ("CERTCTRL_LOG_JOURNALD", "TRUE", "log.journald", True),
        ("CERTCTRL_HTTPCLIENT_CA_FILES", "a.pem, b.pem", "httpclient.ca_files", ("a.pem", "b.pem")),
        ("CERTCTRL_HTTPCLIENT_CA_FILES", '["a,b.pem"]', "httpclient.ca_files", ("a,b.pem",)),
        ("CERTCTRL_HTTPCLIENT_CA_FILES", "", "httpclient.ca_files", ()),
        ("CERTCTRL_SIGNAL_TIMEOUTS", '{"cert.renewed": 5}', "application.signal_timeouts", {"cert.renewed": 5.0}),
    ],
)
def test_the_environment_overrides(layout: ConfigDir, variable: str, text: str, setting: str, value: object) -> None:
    loaded = load_config(layout, {variable: text, "HOME": "/", "CERTCTRL_ALERT": "not a setting"})
    section, _, name = setting.partition(".")
    found = getattr(getattr(loaded.config, section), name)
    assert (found, type(found)) == (value, type(value))
    assert loaded.sources[setting] == f"environment {variable}"
    assert loaded.sources["application.server_url"] == f"file {layout.application}"
    assert loaded.sources["application.poll_limit"] == "default"
    assert len(loaded.sources) == len(variable_names(_CLASSES))


@pytest.mark.parametrize(
    ("variable", "text", "what"),
    [
        ("CERTCTRL_POLL_INTERVAL_MS", "often", "expected a whole number"),
        ("CERTCTRL_POLL_INTERVAL_MS", "1", "expected 10 to"),
        ("CERTCTRL_POLL_INTERVL_MS", "100", "no such setting"),
        ("CERTCTRL_LOG_STDERR", "maybe", "expected true or false"),
        ("CERTCTRL_POLL_MODE", "sometimes", "expected one of"),
        ("CERTCTRL_SIGNAL_TIMEOUTS", "5", "expected an object"),
        ("CERTCTRL_SERVER_URL", "ftp://x", "https URL"),
        ("CERTCTRL_HTTPCLIENT_PROXY", "socks://u:SECRET@x", "http:// URL"),
        ("CERTCTRL_POLL_JITTER", "nan", "expected a number"),
        ("CERTCTRL_POLL_LIMIT", "", "expected a whole number"),
    ],
)
def test_a_wrong_variable_is_reported(layout: ConfigDir, variable: str, text: str, what: str) -> None:
    error = refused(layout, {variable: text})
    assert (error.file, error.path) == ("environment", variable)
    assert what in str(error)
    assert "SECRET" not in str(error)


def test_the_variables_of_a_command_are_no_settings(layout: ConfigDir) -> None:
    """The agent sets them for the commands of items, and one of those may call ``cert-ctrl``."""
    environ = dict.fromkeys(COMMAND_VARIABLES, "") | {"CERTCTRL_NAME": "www.example.com"}
    assert load_config(layout, environ) == load_config(layout, {})
    both = load_config(layout, environ | {"CERTCTRL_LOG_LEVEL": "WARN"})
    assert (both.config.application.name, both.config.log.level) == ("", "WARN"), "other settings hold"
    assert load_config(layout, {"CERTCTRL_NAME": "web-1"}).config.application.name == "web-1"


# --- policy and local items -----------------------------------------------------------------------------------

FULL = HostPolicy(
    write_roots=("/etc/ssl/site",),
    probe=("www.example.com", "mx.example:25", "192.0.2.1:443", "2001:db8::1", "[2001:db8::1]:443"),
    commands={"reload": NamedCommand(argv=("/usr/sbin/nginx", "-s", "reload"), run_as="www", sha256="0" * 64)},
    remote_commands="off",
    run_as=("www",),
    owners=("www",),
    shell=True,
    plaintext_keys=True,
    trust_on_first_use=True,
    on_revoked="placeholder",
    on_alert=("/usr/local/bin/alert",),
    window=MaintenanceWindow(days=("sat", "sun"), from_="22:00", to="04:00", timezone="UTC"),
    trust_store=TrustStore(directory="/usr/local/share/ca-certificates", command=("/usr/sbin/update-ca-certificates",)),
)


@pytest.mark.parametrize("policy", [HostPolicy(), FULL], ids=["out of the box", "everything set"])
def test_a_policy_round_trips(layout: ConfigDir, policy: HostPolicy) -> None:
    save_policy(FS, layout, policy)
    assert load_policy(layout) == policy
    assert stat.S_IMODE(layout.policy.stat().st_mode) == 0o644


def test_the_window_is_saved_with_its_documented_keys(layout: ConfigDir) -> None:
    save_policy(FS, layout, FULL)
    assert json.loads(layout.policy.read_text())["window"]["from"] == "22:00"


def test_no_policy_allows_nothing(layout: ConfigDir) -> None:
    layout.policy.unlink()
    assert load_policy(layout) == HostPolicy()


WRONG_POLICIES: list[tuple[dict[str, Any], str, str]] = [
    ({"write_roots": ["/"]}, "write_roots[0]", "below /"),
    ({"write_roots": ["/a", "etc"]}, "write_roots[1]", "absolute"),
    ({"write_roots": ["/etc/../root"]}, "write_roots[0]", "absolute"),
    ({"write_roots": ["/etc/"]}, "write_roots[0]", "final slash"),
    ({"write_roots": ["//etc"]}, "write_roots[0]", "absolute"),
    ({"probe": ["a.example", "a b"]}, "probe[1]", "HOST"),
    ({"probe": ["a.example:0"]}, "probe[0]", "HOST"),
    ({"probe": ["a.example:https"]}, "probe[0]", "HOST"),
    ({"probe": ["10.0.0.0/8"]}, "probe[0]", "HOST"),
    ({"probe": [""]}, "probe[0]", "HOST"),
    ({"write_root": ["/a"]}, "write_root", "unknown key"),
    ({"commands": {"a": {"argv": []}}}, "commands.a.argv", "empty list"),
    ({"commands": {"a": {"argv": ["nginx"]}}}, "commands.a.argv[0]", "absolute"),
    ({"commands": {"a": {"argv": "/usr/sbin/nginx -s reload"}}}, "commands.a.argv", "expected a list, found text"),
    ({"commands": {"a": {}}}, "commands.a.argv", "is missing"),
    ({"commands": {"a": {"argv": ["/x"], "timeout_seconds": 601}}}, "commands.a.timeout_seconds", "1 to 600"),
    ({"commands": {"a": {"argv": ["/x"], "sha256": "zz"}}}, "commands.a.sha256", "64 lower-case hex"),
    ({"remote_commands": True}, "remote_commands", "expected text, found true or false"),
    ({"remote_commands": "offf"}, "remote_commands", "expected one of on, off"),
    ({"on_revoked": "delete"}, "on_revoked", "expected one of"),
    ({"on_alert": ["alert"]}, "on_alert[0]", "absolute"),
    ({"shell": "no"}, "shell", "expected true or false, found text"),
    ({"window": {"days": []}}, "window.days", "at least one"),
    ({"window": {"days": ["Sat"]}}, "window.days[0]", "expected one of mon"),
    ({"window": {"from": "24:01"}}, "window.from", "HH:MM"),
    ({"window": {"to": "7:00"}}, "window.to", "HH:MM"),
    ({"window": {"timezone": "Mars/Olympus"}}, "window.timezone", "time zone"),
    ({"window": {"timezone": "../../etc/passwd"}}, "window.timezone", "time zone"),
    ({"window": {"override_when_life_below": 2}}, "window.override_when_life_below", "0 to 1"),
    ({"trust_store": {"directory": "ca"}}, "trust_store.directory", "absolute"),
    ({"trust_store": {"command": []}}, "trust_store.command", "empty list"),
]


@pytest.mark.parametrize(("body", "path", "what"), WRONG_POLICIES, ids=[str(wrong[0])[:50] for wrong in WRONG_POLICIES])
def test_a_wrong_policy_is_reported(layout: ConfigDir, body: dict[str, Any], path: str, what: str) -> None:
    layout.policy.write_text(json.dumps(body))
    with pytest.raises(ConfigError) as caught:
        load_policy(layout)
    assert (caught.value.file, caught.value.path) == (str(layout.policy), path)
    assert what in str(caught.value)
    assert caught.value.fix


def load_local(layout: ConfigDir) -> object:
    if not layout.local_installs.exists():
        layout.local_installs.write_text("[]")
    return load_local_installs(layout)


DECISIVE = pytest.mark.parametrize(
    ("load", "name"), [(load_policy, "policy.json"), (load_local, "installs.local.json")], ids=["policy", "local items"]
)
"""Files that decide what is written and run: one rule for both."""


@DECISIVE
@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_can_write_decides_nothing(
    load: Callable[[ConfigDir], object], name: str, mode: int, layout: ConfigDir
) -> None:
    load(layout)
    (layout.root / name).chmod(mode)
    with pytest.raises(ConfigError) as caught:
        load(layout)
    assert caught.value.fix == f"chmod go-w {layout.root / name}"


@pytest.mark.root
@DECISIVE
def test_a_file_of_another_user_decides_nothing(
    load: Callable[[ConfigDir], object], name: str, layout: ConfigDir
) -> None:
    load(layout)
    os.chown(layout.root / name, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to user 65534") as caught:
        load(layout)
    assert caught.value.fix == f"review it, then chown root {layout.root / name}"


@pytest.mark.root
@DECISIVE
def test_a_file_of_root_decides_for_another_user(
    load: Callable[[ConfigDir], object], name: str, layout: ConfigDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(layout)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert load(layout) in (HostPolicy(), ())


def test_a_wrong_policy_is_not_saved(layout: ConfigDir) -> None:
    before = layout.policy.read_bytes()
    with pytest.raises(ConfigError):
        save_policy(FS, layout, HostPolicy(write_roots=("/",)))
    assert layout.policy.read_bytes() == before


ITEM = {"id": "local:1", "type": "copy"}


@pytest.mark.parametrize("body", [[ITEM], {"installs": [ITEM]}])
def test_local_items_are_a_list_or_under_installs(layout: ConfigDir, body: object) -> None:
    assert load_local_installs(layout) == ()
    layout.local_installs.write_text(json.dumps(body))
    assert load_local_installs(layout) == (ITEM,)


@pytest.mark.parametrize(
    ("body", "path"),
    [("{}", "installs"), ('"x"', ""), ("[1]", "[0]"), ('{"installs":[{},"x"]}', "installs[1]"), ("", "")],
)
def test_wrong_local_items_are_reported(layout: ConfigDir, body: str, path: str) -> None:
    layout.local_installs.write_text(body)
    with pytest.raises(ConfigError) as caught:
        load_local_installs(layout)
    assert (caught.value.file, caught.value.path) == (str(layout.local_installs), path)
    assert caught.value.fix
