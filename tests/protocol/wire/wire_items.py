"""An install config with the right hash, items as the agent sees them, and the refusal of what is none."""

from __future__ import annotations

from typing import Any

import pytest

from certctrl.errors import PlanError
from certctrl.protocol.wire.canonical import installs_hash
from certctrl.protocol.wire.install_config import install_config_from_wire

COPY = {"id": 1, "type": "copy", "from": ["private.key", "fullchain.pem"], "to": ["/a.key", "/a.pem"],
        "ob_type": "cert", "ob_id": 7}  # fmt: skip
EXEC = {"id": 2, "type": "exec", "cmd_argv": ["/usr/sbin/nginx", "-s", "reload"], "depends_on": [1]}
CA = {"id": 3, "type": "import_ca", "ob_type": "ca", "ob_id": 4}


def config(items: Any, **more: Any) -> dict[str, Any]:
    """Give a config of the plane's with the right hash."""
    return {
        "id": 9,
        "user_device_id": 5,
        "version": 6,
        "installs": items,
        "installs_hash_b64": installs_hash(items),
    } | more


def one(item: dict[str, Any]) -> Any:
    """Give the item as the agent sees it."""
    return install_config_from_wire(config([{"id": 1} | item])).items[0]


def refusal(data: object) -> PlanError:
    with pytest.raises(PlanError) as caught:
        install_config_from_wire(data)
    assert "\n" not in str(caught.value)
    return caught.value
