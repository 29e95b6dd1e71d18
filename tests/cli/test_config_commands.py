"""`config show` and `config check`."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from certctrl.model.config import AgentConfig
from certctrl.protocol.wire.canonical import canonical_json
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.installed import InstalledState, StoredInstallConfig

from .conftest import Ran

Run = Callable[..., Ran]


def test_config_show_names_value_and_source(layout: ConfigDir, ran: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERTCTRL_POLL_LIMIT", "50")
    lines = {
        line.split(" = ")[0].strip(): line.split(" = ")[1]
        for line in ran("-c", layout.root, "config", "show").out.splitlines()
    }
    assert lines["application.server_url"] == f'"https://plane.example"  (file {layout.application})'
    assert lines["application.poll_limit"] == "50  (environment CERTCTRL_POLL_LIMIT)"
    assert lines["application.poll_interval_ms"] == "5000  (default)"
    config = AgentConfig()
    assert len(lines) == sum(
        len(section.__attrs_attrs__) for section in (config.application, config.httpclient, config.ioc, config.log)
    )


def test_config_show_masks_secrets(layout: ConfigDir, ran: Run) -> None:
    layout.httpclient.write_text('{"proxy": "http://user:hunter2@proxy:3128"}')
    done = ran("-c", layout.root, "config", "show")
    assert 'httpclient.proxy = "[secret]"' in " ".join(done.out.split())
    shown = ran("-c", layout.root, "config", "show", "--json")
    assert "hunter2" not in done.out + shown.out
    assert shown.json()["httpclient.proxy"]["value"] == "[secret]"


def test_config_show_only_changed_settings(layout: ConfigDir, ran: Run) -> None:
    shown = ran("-c", layout.root, "config", "show", "--changed", "--json").json()
    assert list(shown) == ["application.server_url"]


@pytest.mark.parametrize(
    ("file", "text", "error"),
    [
        ("application.json", '{"server_url": "https://p", "pol_limit": 3}', "pol_limit"),
        ("application.json", '{"server_url": "https://p", "poll_limit": "3"}', "poll_limit"),
        ("application.json", '{"server_url": "https://p", "poll_limit": 101}', "poll_limit"),
        ("application.json", "{", "invalid JSON at line 1"),
        ("httpclient_config.json", '{"ca_files": ["missing.pem"]}', "No such file"),
        ("httpclient_config.json", '{"client_certificate": "c.pem"}', "client_key"),
        ("log_config.json", '{"level": "LOUD"}', "level"),
        ("policy.json", '{"write_roots": "x"}', "write_roots"),
        ("installs.local.json", '[{"id": "a", "type": "copy", "depends_on": ["b"]}]', "installs"),
    ],
)
def test_config_check_names_the_mistake(file: str, text: str, error: str, layout: ConfigDir, ran: Run) -> None:
    path = layout.root / file
    path.write_text(text)
    path.chmod(0o600)
    done = ran("-c", layout.root, "config", "check")
    assert done.status in (78, 1) and not done.out
    assert error in done.err and "\nfix: " in done.err
    if file != "installs.local.json":
        assert done.status == 78 and file in done.err


def test_config_check_reads_the_named_files(layout: ConfigDir, ran: Run) -> None:
    layout.httpclient.write_text('{"ca_files": ["ca.pem"]}')
    ca = layout.root / "ca.pem"
    ca.write_text("nothing")
    assert "contains no PEM certificate" in ran("-c", layout.root, "config", "check").err
    ca.write_bytes(trustme.CA().cert_pem.bytes())
    assert ran("-c", layout.root, "config", "check").status == 0


def damage(path: Path, kind: str) -> None:
    """Replace a PEM file by what is none."""
    pem = path.read_bytes()
    path.unlink()
    match kind:
        case "directory":
            path.mkdir()
        case "FIFO":
            os.mkfifo(path)
        case "empty":
            path.touch()
        case "garbage":
            path.write_bytes(b"-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n")
        case "cut off":
            path.write_bytes(pem[: len(pem) // 2])
        case "link":
            path.symlink_to("nowhere")


@pytest.mark.parametrize("kind", ["missing", "directory", "FIFO", "empty", "garbage", "cut off", "link"])
@pytest.mark.parametrize("name", ["ca.pem", "client.pem", "client.key"])
def test_config_check_loads_the_named_files_as_the_daemon_does(
    layout: ConfigDir, ran: Run, name: str, kind: str
) -> None:
    """Found by review: anything with the start of a PEM block was no mistake, and a FIFO hung."""
    authority = trustme.CA()
    leaf = authority.issue_cert("device.example")
    authority.cert_pem.write_to_path(layout.root / "ca.pem")
    leaf.cert_chain_pems[0].write_to_path(layout.root / "client.pem")
    leaf.private_key_pem.write_to_path(layout.root / "client.key")
    (layout.root / "client.key").chmod(0o600)
    named = {"ca_files": ["ca.pem"], "client_certificate": "client.pem", "client_key": "client.key"}
    layout.httpclient.write_text(json.dumps(named))
    assert ran("-c", layout.root, "config", "check").status == 0
    damage(layout.root / name, kind)
    done = ran("-c", layout.root, "config", "check")
    assert done.status == 78 and str(layout.root / name) in done.err and "\nfix: " in done.err
    assert ("ca_files" if name == "ca.pem" else "client_certificate") in done.err


def test_config_check_finds_an_extension_that_is_not_installed(layout: ConfigDir, ran: Run) -> None:
    layout.ioc.write_text('{"handlers": {"cert.renewed": "no.such"}}')
    done = ran("-c", layout.root, "config", "check")
    assert done.status == 78 and "'no.such'" in done.err and "ioc_config.json" in done.err and "\nfix: " in done.err


def plane_item(store: InstalledState, *ids: str) -> None:
    items = [{"id": name, "type": "import_ca"} for name in ids]
    digest = base64.b64encode(hashlib.sha256(canonical_json(items).encode()).digest()).decode()
    raw = {"id": 1, "version": 1, "installs": items, "installs_hash_b64": digest}
    store.save_install_config(StoredInstallConfig(raw=raw, etag=None, version=1, hash=digest))


def test_config_check_accepts_dependencies_on_the_planes_items(layout: ConfigDir, ran: Run) -> None:
    row = {"id": "reload", "type": "exec", "cmd_argv": ["/bin/true"], "depends_on": ["copy-7"]}
    layout.local_installs.write_text(json.dumps([row]))
    done = ran("-c", layout.root, "config", "check")
    assert done.status == 78 and "reload depends on copy-7" in done.err and "none from the plane" in done.err
    plane_item(InstalledState(layout, RealFs()), "copy-7")
    assert ran("-c", layout.root, "config", "check").status == 0
    layout.local_installs.write_text(json.dumps([row | {"depends_on": ["copy-8"]}]))
    done = ran("-c", layout.root, "config", "check")
    assert done.status == 78
    for part in ("installs.local.json: $[0].depends_on", "copy-8", "copy-7", f"\nfix: correct {layout.local_installs}"):
        assert part in done.err
