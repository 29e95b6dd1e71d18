"""``init`` creates a config directory, keeps the operator's files, and adds only missing settings."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import attrs
import pytest
from config_dir import FS, URL
from modeldisk import ModelFs

from certctrl.errors import ConfigError
from certctrl.model.config import AgentConfig
from certctrl.model.policy import HostPolicy
from certctrl.store.config.files import init_config_dir, load_config, load_policy, save_policy
from certctrl.store.disk.fs import closing
from certctrl.store.disk.tree import check_modes
from certctrl.store.layout import ConfigDir


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
    with pytest.raises(ConfigError, match="already exists with other settings") as caught:
        init_config_dir(FS, layout, server_url=URL, ca_pem=None)
    names = "it" if body == "[]" else "server_url"
    assert caught.value.file == str(layout.application)
    assert caught.value.fix == f"edit {names} in {layout.application}, or choose another directory with -c"
    assert layout.application.read_text() == body
    assert not layout.log_config.exists()


def test_init_refuses_another_ca(layout: ConfigDir) -> None:
    init_config_dir(FS, ConfigDir(layout.root.with_name("b")), server_url=URL, ca_pem=b"ONE")
    init_config_dir(FS, ConfigDir(layout.root.with_name("b")), server_url=URL, ca_pem=b"ONE")
    with pytest.raises(ConfigError, match="already contains another CA") as caught:
        init_config_dir(FS, ConfigDir(layout.root.with_name("b")), server_url=URL, ca_pem=b"TWO")
    path = layout.root.with_name("b") / "plane-ca.pem"
    assert caught.value.file == str(path)
    assert caught.value.fix == (
        f"if the control plane's CA changed on purpose, replace {path} with it and restart the agent"
    )


def test_init_allows_http_only_for_loopback(tmp_path: Path) -> None:
    layout = ConfigDir(tmp_path / "a")
    init_config_dir(FS, layout, server_url="http://127.0.0.1:8080", ca_pem=None)
    assert load_config(layout, {}).config.application.allow_http_loopback
    assert json.loads(layout.application.read_text()) == {
        "server_url": "http://127.0.0.1:8080", "allow_http_loopback": True,
    }  # fmt: skip
    for url, fix in (("http://plane.example", "write https://HOST[:PORT]"), ("", "set it to the control plane's URL")):
        with pytest.raises(ConfigError) as caught:
            init_config_dir(FS, ConfigDir(tmp_path / "b"), server_url=url, ca_pem=None)
        assert caught.value.file == "server URL"
        assert str(caught.value.fix).startswith(fix)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("existing", "name", "expected"),
    [
        ({"server_url": URL, "poll_limit": 5}, "web-1", {"server_url": URL, "poll_limit": 5, "name": "web-1"}),
        ({"server_url": URL, "name": ""}, "web-1", {"server_url": URL, "name": "web-1"}),
        ({"server_url": URL, "name": "web-1"}, "web-1", None),
        ({"name": "web-2", "server_url": URL}, None, None),
    ],
)
def test_init_adds_the_name_to_a_file_without(
    layout: ConfigDir, existing: dict[str, Any], name: str | None, expected: dict[str, Any] | None
) -> None:
    layout.application.write_text(json.dumps(existing))
    before = layout.application.stat().st_ino
    init_config_dir(FS, layout, server_url=URL, ca_pem=None, name=name)
    assert json.loads(layout.application.read_text()) == (expected or existing)
    assert (layout.application.stat().st_ino == before) is (expected is None)


def test_init_keeps_another_name(layout: ConfigDir) -> None:
    layout.application.write_text(json.dumps({"server_url": URL, "name": "web-2"}))
    with pytest.raises(ConfigError, match="other settings") as caught:
        init_config_dir(FS, layout, server_url=URL, ca_pem=b"PEM", name="web-1")
    assert str(caught.value.fix).startswith("edit server_url, name in ")
    assert not layout.plane_ca.exists(), "before anything is written"


def test_init_writes_nothing_for_a_name_that_is_refused(tmp_path: Path) -> None:
    layout = ConfigDir(tmp_path / "agent")
    with pytest.raises(ConfigError, match="expected text without NUL") as caught:
        init_config_dir(FS, layout, server_url=URL, ca_pem=None, name="web\0")
    assert (caught.value.file, caught.value.path) == (str(layout.application), "name")
    assert not layout.root.exists()


def test_init_adds_the_ca_to_a_file_without(layout: ConfigDir) -> None:
    layout.httpclient.write_text(json.dumps({"proxy": "http://proxy.example:3128"}))
    init_config_dir(FS, layout, server_url=URL, ca_pem=b"PEM")
    expected = {"proxy": "http://proxy.example:3128", "ca_files": ["plane-ca.pem"]}
    assert json.loads(layout.httpclient.read_text()) == expected
    assert (layout.plane_ca.read_bytes(), stat.S_IMODE(layout.httpclient.stat().st_mode)) == (b"PEM", 0o600)


def test_the_files_are_readable_by_operators(tmp_path: Path) -> None:
    layout = ConfigDir(tmp_path / "agent")
    init_config_dir(FS, layout, server_url=URL, ca_pem=None, name="Büro")
    assert layout.application.read_text(encoding="utf-8") == (
        '{\n  "server_url": "https://plane.example",\n  "name": "Büro"\n}\n'
    )
    assert layout.ioc.read_text() == "{}\n"
    policy = json.loads(layout.policy.read_text())
    assert policy["write_roots"] == [] and "window" not in policy and None not in policy.values()
    assert policy["trust_store"] == {}


def test_files_that_are_written_again_keep_their_labels() -> None:
    fs, layout = ModelFs(uid=1000), ConfigDir(Path("/etc/agent"))
    fs.put_dir("/etc")
    init_config_dir(fs, layout, server_url=URL, ca_pem=None)
    for path in (layout.application, layout.policy):
        with closing(fs, fs.open_file(path)) as handle:
            fs.set_attribute(handle, "security.selinux", b"label")
    init_config_dir(fs, layout, server_url=URL, ca_pem=None, name="web-1")
    save_policy(fs, layout, HostPolicy(write_roots=("/srv",)))
    tree = fs.tree()
    for path, part in ((layout.application, b"web-1"), (layout.policy, b"/srv")):
        node = tree[str(path)]
        assert (node.attributes, node.mode, part in node.data) == ({"security.selinux": b"label"}, 0o644, True)


def test_init_keeps_an_existing_policy(layout: ConfigDir) -> None:
    layout.policy.write_text('{"write_roots": ["/srv"]}')
    init_config_dir(FS, layout, server_url=URL, ca_pem=None)
    assert load_policy(layout).write_roots == ("/srv",)
