"""Every setting can be overridden by an environment variable."""

from __future__ import annotations

import attrs
import pytest
from config_dir import refused

from certctrl.model.plan import COMMAND_VARIABLES
from certctrl.store.config.environment import variable_names
from certctrl.store.config.files import (
    _CLASSES,
    load_config,
)
from certctrl.store.layout import ConfigDir


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
        ("CERTCTRL_SIGNAL_TIMEOUTS", '{"Cert": 5}', "application.signal_timeouts", {"Cert": 5.0}),
        ("CERTCTRL_POLL_JITTER", " 2E-1 ", "application.poll_jitter", 0.2),
        ("CERTCTRL_NAME", " Web 1 ", "application.name", " Web 1 "),
        ("CERTCTRL_LOG_JOURNALD", " Yes ", "log.journald", True),
        ("CERTCTRL_LOG_JOURNALD", "1", "log.journald", True),
        ("CERTCTRL_LOG_STDERR", "0", "log.stderr", False),
        ("CERTCTRL_HTTPCLIENT_CA_FILES", ' ["a", "b"]', "httpclient.ca_files", ("a", "b")),
        ("CERTCTRL_HTTPCLIENT_CA_FILES", "a.pem,,b.pem,", "httpclient.ca_files", ("a.pem", "b.pem")),
    ],
)
def test_the_environment_overrides(layout: ConfigDir, variable: str, text: str, setting: str, value: object) -> None:
    other = {"HOME": "/", "CERTCTRL_ITEM": "not a setting", "CERTCTRL_ALERT": "not a setting"}
    loaded = load_config(layout, other | {variable: text} | other)
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
    some = {"CERTCTRL_NAMES": "a b", "CERTCTRL_LOG_LEVEL": "WARN"}
    assert load_config(layout, some).config.log.level == "WARN"


@pytest.mark.parametrize(
    ("variable", "text", "path", "what", "fix"),
    [
        ("CERTCTRL_POLL_INTERVL_MS", "1", "CERTCTRL_POLL_INTERVL_MS", "no such setting",
         "did you mean CERTCTRL_POLL_INTERVAL_MS?"),
        ("CERTCTRL_POLL_LIMIT", "x", "CERTCTRL_POLL_LIMIT", "expected a whole number, found text",
         "correct or unset the variable"),
        ("CERTCTRL_POLL_LIMIT", "101", "CERTCTRL_POLL_LIMIT", "expected 1 to 100, found 101",
         "correct or unset the variable"),
        ("CERTCTRL_LOG_STDERR", "maybe", "CERTCTRL_LOG_STDERR", "expected true or false, found text",
         "correct or unset the variable"),
        ("CERTCTRL_POLL_JITTER", "NaN", "CERTCTRL_POLL_JITTER", "expected a number, found text",
         "correct or unset the variable"),
        ("CERTCTRL_SIGNAL_TIMEOUTS", '{"cert.renewed": 0.5}', "CERTCTRL_SIGNAL_TIMEOUTS.cert.renewed",
         "expected 1 to 3600 seconds", "correct or unset the variable"),
        ("CERTCTRL_POLL_MODE", "long_poll", "CERTCTRL_POLL_MODE",
         "expected one of interval, long-poll, adaptive, push, found another text", "did you mean 'long-poll'?"),
        ("CERTCTRL_HTTPCLIENT_CA_FILES", '["a", 1]', "CERTCTRL_HTTPCLIENT_CA_FILES[1]",
         "expected text, found a whole number", "correct or unset the variable"),
        ("CERTCTRL_SIGNAL_TIMEOUTS", "[" * 100_000, "CERTCTRL_SIGNAL_TIMEOUTS", "expected an object, found text",
         "correct or unset the variable"),
        ("CERTCTRL_PRIORITY_ORDER", "revocation,urgent", "CERTCTRL_PRIORITY_ORDER[1]",
         "expected one of revocation, expiring, renewal, config, found another text", "correct or unset the variable"),
        ("CERTCTRL_PRIORITY_ORDER", "renewal", "CERTCTRL_PRIORITY_ORDER", "lacks revocation, expiring, config",
         "name each class once: revocation, expiring, renewal, config"),
        ("CERTCTRL_REFRESH_PATH", "auth", "CERTCTRL_REFRESH_PATH", "expected a path that starts with /",
         "correct or unset the variable"),
        ("CERTCTRL_METRICS_LISTEN", "0.0.0.0:1", "CERTCTRL_METRICS_LISTEN", "",
         "use 127.0.0.1:9464, or set metrics_public to true for other addresses"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_named_with_the_way_to_correct_it(
    layout: ConfigDir, variable: str, text: str, path: str, what: str, fix: str
) -> None:
    error = refused(layout, {"HOME": "/", variable: text})
    assert (error.file, error.path, error.fix) == ("environment", path, fix)
    assert str(error).startswith(f"environment: {path}: {what}")


def test_names_that_are_only_a_little_like_a_setting_are_ignored(layout: ConfigDir) -> None:
    environ = {"CERTCTRL_POLL": "1", "XCERTCTRL_POLL_LIMIT": "x", "CERTCTRL_NAMES_OF_MINE": "1", "certctrl_name": "x"}
    assert load_config(layout, environ) == load_config(layout, {})
    assert load_config(layout, environ | {"CERTCTRL_LOG_LEVEL": "WARN"}).config.log.level == "WARN"
