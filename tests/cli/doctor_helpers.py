"""Helpers of the doctor tests: a configuration, a registered host, the findings of one check."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from certctrl.model.config import AgentConfig, ApplicationConfig
from certctrl.model.records import DeviceKeys, Tokens
from certctrl.store.state.store import StateStore

CONFIG = AgentConfig(application=ApplicationConfig(server_url="https://127.0.0.1:8443"))


def found(findings: Any, check: str) -> list[tuple[str, str, str]]:
    return [(str(one.level), one.what, one.fix) for one in findings if one.check == check]


def register(store: StateStore) -> None:
    key = X25519PrivateKey.generate()
    keys = DeviceKeys(public=key.public_key().public_bytes_raw(), secret=key.private_bytes_raw())
    store.session.save_device_id("23229bf7-5172-02c7-59a2-76d5b4a40090")
    store.session.save_device_keys(keys)
    store.session.save_tokens(Tokens(access_token="a.b.c", refresh_token="rt_x.y"))
