"""Paths of the config directory, and names that may become parts of paths."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.store.layout import ConfigDir, is_plain_name, safe_name

PATHS = {
    "application": "application.json", "httpclient": "httpclient_config.json", "ioc": "ioc_config.json",
    "log_config": "log_config.json", "policy": "policy.json", "local_installs": "installs.local.json",
    "plane_ca": "plane-ca.pem", "state": "state", "access_token": "state/access_token.txt",
    "refresh_token": "state/refresh_token.txt", "device_id": "state/device_id.txt", "known_plane": "state/plane.json",
    "recommended": "state/recommended.json",
    "taken_plane_ca": "state/plane-ca.pem", "next_plane_ca": "state/plane-ca.next.pem",
    "next_device_id": "state/device_id.next", "last_cursor": "state/last_cursor.txt",
    "last_poll_time": "state/last_poll_time.txt", "pending_acks": "state/pending_acks.json",
    "inbox": "state/inbox.json", "install_config": "state/install_config.json",
    "certificates": "state/certificates.json", "retries": "state/retries.json", "activations": "state/activations.json",
    "status": "state/status.json", "history": "state/history.jsonl", "passwords": "state/passwords",
    "pins": "state/pins.json", "cas": "state/cas.json", "journal": "state/journal", "daemon_lock": "state/daemon.lock",
    "token_lock": "state/token.lock", "control_socket": "state/agent.sock", "keys": "keys",
    "device_public_key": "keys/dev_pk.bin", "device_secret_key": "keys/dev_sk.bin",
    "next_secret_key": "keys/dev_sk.next", "rotated_secret_key": "keys/dev_sk.rotated", "move": "state/move.txt", "account_keys": "keys/account_keys", "staged_keys": "keys/staged", "certs": "certs",
    "challenges": "state/challenges.json", "plane_features": "state/plane_features.json",
    "certificate_list": "state/certificate_list.txt",
    "chains": "certs/chains", "live": "certs/.live", "generations": "certs/.generations", "logs": "logs",
}  # fmt: skip
"""The names of earlier releases, whose directories must be found again."""


@pytest.fixture
def layout() -> ConfigDir:
    return ConfigDir(Path("/a"))


def test_the_paths_are_those_of_earlier_releases(layout: ConfigDir) -> None:
    found = {name: path for name, path in vars(layout).items() if name != "root"}
    assert found == {name: Path("/a") / path for name, path in PATHS.items()}


def test_directories_come_after_their_parents(layout: ConfigDir) -> None:
    found = layout.directories()
    assert found[0] == Path("/a") and len(set(found)) == len(found) == 12
    assert all(path.parent in found[:number] for number, path in enumerate(found) if number)


def test_links_lead_to_the_live_generation(layout: ConfigDir) -> None:
    assert layout.live_link("www") == Path("/a/certs/.live/www")
    assert layout.generation("www", "id") == Path("/a/certs/.generations/www/id")
    assert layout.public_links("www") == {
        Path("/a/certs/www.crt"): ".live/www/fullchain.pem",
        Path("/a/certs/www.key"): ".live/www/private.key",
        Path("/a/certs/chains/www.pem"): "../.live/www/chain.pem",
    }
    assert layout.public_links("www", alias=True) == {
        Path("/a/certs/www.crt"): ".live/+www/fullchain.pem",
        Path("/a/certs/www.key"): ".live/+www/private.key",
        Path("/a/certs/chains/www.pem"): "../.live/+www/chain.pem",
    }


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("www.example.com", True), ("a", True), ("_wildcard.example.com", True), ("www+5", True), ("a?b=c", True), ("XX", True),
        ("0-a", True), ("x" * 224, True), ("x" * 225, False), ("", False), (".a", False), ("-a", False),
        ("+a", False), ("a/b", False), ("a b", False), ("ä", False), ("a\n", False), ("a\0", False), ("a:b", False),
    ],
)  # fmt: skip
def test_plain_names(text: str, plain: bool) -> None:
    assert is_plain_name(text) is plain


@pytest.mark.parametrize(
    ("domain", "name"),
    [
        ("www.example.com", "www.example.com"), ("WWW.Example.COM.", "www.example.com"), (" a.b \n", "a.b"),
        ("*.example.com", "_wildcard.example.com"), ("a.*.b", "a._2a.b"), ("*", "_2a"), ("*a", "_2aa"),
        ("2001:db8::1", "2001_3adb8_3a_3a1"), ("bücher.example", "b_fccher.example"), ("a_b-c.d", "a_b-c.d"),
        ("", "_"), ("INDEX", "index"), (".", "_"), (".a", "_.a"), ("-a", "_-a"), ("chains", "_chains"), ("Chains", "_chains"),
        ("chains.a", "chains.a"), ("a/../b", "a_2f.._2fb"), ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 160 + "_" + hashlib.sha256(b"x" * 201).hexdigest()[:16]),
    ],
)  # fmt: skip
def test_the_directory_of_a_domain(domain: str, name: str) -> None:
    assert safe_name(domain) == name


@given(st.text(max_size=300))
def test_the_directory_of_any_domain_has_a_plain_name(domain: str) -> None:
    name = safe_name(domain)
    assert is_plain_name(name) and "+" not in name and name != "chains"
