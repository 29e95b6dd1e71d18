"""Damage to any state file is reported with a fix and never mistaken for a first run."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from state_model import KEYS, TOKENS, modelled

from certctrl.errors import DiskError, StateCorruptError
from certctrl.model.certificate import CertFacts
from certctrl.model.records import Ack, CaRecord, CertRecord, InboxEntry
from certctrl.model.signals import CertRenewed
from certctrl.store.deployments.generations import GenerationStore
from certctrl.store.disk.fs import RealFs
from certctrl.store.state import read_only
from certctrl.store.state.installed import StoredInstallConfig
from certctrl.store.state.store import StateStore

LOADERS: dict[str, Callable[[StateStore], object]] = {
    "last_cursor": lambda store: store.session.load_cursor(),
    "device_id": lambda store: store.session.load_device_id(),
    "access_token": lambda store: store.session.load_tokens(),
    "refresh_token": lambda store: store.session.load_tokens(),
    "device_public_key": lambda store: store.session.load_device_keys(),
    "device_secret_key": lambda store: store.session.load_device_keys(),
    "inbox": lambda store: store.session.load_inbox(),
    "pending_acks": lambda store: store.session.load_outcomes(),
    "install_config": lambda store: store.installed.load_install_config(),
    "certificates": lambda store: store.installed.load_certificates(),
    "activations": lambda store: store.installed.load_activations(),
    "cas": lambda store: store.installed.load_cas(),
    "pins": lambda store: store.installed.load_pins(),
}
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "NUL bytes": lambda data: bytes(len(data)),
    "garbage": lambda data: b"\xff\xfe\x00SECRET garbage\x80",
    "cut in half": lambda data: data[: len(data) // 2],
    "zeros at the end": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "huge": lambda data: b"",
}


def filled(store: StateStore) -> None:
    store.session.save_cursor("1736900000-5")
    store.session.save_device_id("23229bf7-5172-02c7-59a2-76d5b4a40090")
    store.session.save_device_keys(KEYS)
    store.session.save_tokens(TOKENS)
    store.session.save_inbox([InboxEntry(signal=CertRenewed(5, 7, "04:ab"))])
    store.session.save_outcomes([Ack(event={"type": "signal.ack"})], ["a", "b"])
    store.installed.save_install_config(StoredInstallConfig(raw={"id": 1}, etag="e", version=2, hash="h"))
    store.installed.save_certificates({7: CertRecord(facts=CertFacts(cert_id=7, name="example.com"))})
    store.installed.save_activations({"reload": "key"})
    store.installed.save_cas({"3": CaRecord(ca_id=3, name="inner", path="/x/certctrl-inner-3.crt", sha256="00")})
    store.installed.save_pins({"/x": "00"})


# Half a line is a line, and any 32 bytes are a key; the crash tests show that no crash leaves such a half.
UNDETECTABLE = {(name, "cut in half") for name in ("last_cursor", "device_id", "access_token", "refresh_token")} | {
    (name, "zeros at the end") for name in ("device_public_key", "device_secret_key")
}


@pytest.mark.parametrize(
    ("name", "damage"), [(name, damage) for name in LOADERS for damage in DAMAGE if (name, damage) not in UNDETECTABLE]
)
def test_damage_is_reported_with_a_fix(store: StateStore, name: str, damage: str) -> None:
    filled(store)
    path: Path = getattr(store.layout, name)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    if damage == "huge":
        with path.open("r+b") as file:
            file.truncate(1 << 36)  # sparse: reading it would exhaust the memory
    with pytest.raises(StateCorruptError) as caught:
        LOADERS[name](StateStore(store.layout, RealFs()))
    assert str(path) in str(caught.value)
    assert caught.value.path == str(path)
    assert caught.value.fix
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


PARTS = {
    "inbox": "entries", "pending_acks": "acks", "install_config": "config",
    "certificates": "certificates", "activations": "activations", "cas": "cas", "pins": "pins",
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("body", ["[]", "{}", "null", '{"state_version":1}', '{"state_version":true}', "[" * 100_000])
def test_wrong_json_is_damage(store: StateStore, name: str, body: str) -> None:
    path: Path = getattr(store.layout, name)
    path.write_text(body)
    with pytest.raises(StateCorruptError, match=path.name):
        LOADERS[name](store)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("name", PARTS)
@settings(max_examples=25)
@given(value=JSON)
def test_any_json_is_read_or_reported(name: str, value: object) -> None:
    store, fs = modelled()
    fs.put(getattr(store.layout, name), json.dumps({"state_version": 1, PARTS[name]: value}).encode())
    try:
        LOADERS[name](store)
    except StateCorruptError as error:
        assert error.fix


def test_a_file_of_a_later_release_is_refused(store: StateStore) -> None:
    store.layout.inbox.write_text('{"state_version":2,"entries":[]}')
    with pytest.raises(StateCorruptError, match="later cert-ctrl"):
        store.session.load_inbox()


@pytest.mark.parametrize("name", LOADERS)
def test_a_file_of_another_user_is_refused(name: str) -> None:
    store, fs = modelled()
    filled(store)
    path: Path = getattr(store.layout, name)
    fs.chown(fs.open_file(path), 4711, 4711)
    with pytest.raises(StateCorruptError) as caught:
        LOADERS[name](StateStore(store.layout, fs))
    assert "belongs to user 4711" in str(caught.value)
    assert f"chown 1000 {path}" in str(caught.value.fix)


@pytest.mark.parametrize("name", LOADERS)
def test_a_link_or_directory_is_not_a_state_file(store: StateStore, name: str) -> None:
    filled(store)
    path: Path = getattr(store.layout, name)
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")
    with pytest.raises(StateCorruptError, match="not a regular file"):
        LOADERS[name](StateStore(store.layout, RealFs()))
    path.unlink()
    path.mkdir()
    with pytest.raises(StateCorruptError, match="not a regular file"):
        LOADERS[name](StateStore(store.layout, RealFs()))


@pytest.mark.parametrize("name", LOADERS)
def test_a_read_error_is_not_a_first_run(name: str) -> None:
    store, fs = modelled()
    filled(store)

    def broken(handle: object, limit: int) -> bytes:
        raise DiskError("cannot read: Input/output error", path="x", errno=errno.EIO, fix="check the disk")

    fs.read = broken  # type: ignore[method-assign]
    with pytest.raises(DiskError) as caught:
        LOADERS[name](StateStore(store.layout, fs))
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("data", [b"", b"\0" * 10, b"18000", b"garbage\n", b"-1\n", b"1e9\n", b"9" * 400 + b"\n"])
def test_files_that_a_power_cut_may_tear_are_read_as_absent(store: StateStore, data: bytes) -> None:
    store.layout.last_poll_time.write_bytes(data)
    store.layout.status.write_bytes(data)
    assert (read_only.read_last_poll(store.layout.root), read_only.read_status(store.layout.root)) == (None, None)


@pytest.mark.parametrize("field", ["name", "generation", "activated", "staged"])
@pytest.mark.parametrize("text", ["../../x", "/etc", "..", ".live", "a/b", "a b", "a\n", "ä", "x" * 300])
def test_a_record_contains_names_and_no_paths(field: str, text: str) -> None:
    store, _ = modelled()
    facts = CertFacts(cert_id=7, name=text if field == "name" else "example.com")
    names = {} if field == "name" else {field: text}
    store.installed.save_certificates({7: CertRecord(facts=facts, **names)})
    with pytest.raises(StateCorruptError, match="a name that the agent does not give"):
        store.installed.load_certificates()


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/x/certctrl-inner-4.crt", "/x/certctrl-inner-3.crt/passwd", "x-3.crt"]
)
def test_the_record_of_a_ca_names_a_file_of_the_agent(path: str) -> None:
    store, _ = modelled()
    store.installed.save_cas({"3": CaRecord(ca_id=3, name="inner", path=path, sha256="00")})
    with pytest.raises(StateCorruptError, match="a file that the agent does not write"):
        store.installed.load_cas()


@pytest.mark.parametrize("generation", ["..", ".tmp-1", "a b"])
def test_a_live_link_leads_to_a_generation(generation: str) -> None:
    store, fs = modelled()
    fs.symlink(f"../.generations/example.com/{generation}", store.layout.live / "example.com")
    with pytest.raises(StateCorruptError, match="does not lead to a generation"):
        GenerationStore(store.layout, fs).live_id("example.com")
