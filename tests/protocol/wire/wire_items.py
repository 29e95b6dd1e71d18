"""Install configs with a valid hash, their items as the agent reads them, and refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from certctrl.errors import PlanError
from certctrl.protocol.wire.canonical import canonical_json, text_hash
from certctrl.protocol.wire.install_config import install_config_from_wire

COPY = {"id": 1, "type": "copy", "from": ["private.key", "fullchain.pem"], "to": ["/a.key", "/a.pem"],
        "ob_type": "cert", "ob_id": 7}  # fmt: skip
EXEC = {"id": 2, "type": "exec", "cmd_argv": ["/usr/sbin/nginx", "-s", "reload"], "depends_on": [1]}
CA = {"id": 3, "type": "import_ca", "ob_type": "ca", "ob_id": 4}


def installs_hash(installs: Sequence[Any]) -> str:
    """Return the ``installs_hash_b64`` of a list of items, of its JCS form."""
    return text_hash(canonical_json(list(installs)))


def config(items: Any, **more: Any) -> dict[str, Any]:
    """Return an install config with a valid hash."""
    return {
        "id": 9,
        "user_device_id": 5,
        "version": 6,
        "installs": items,
        "installs_hash_b64": installs_hash(items),
    } | more


def one(item: dict[str, Any]) -> Any:
    """Return the item as the agent reads it."""
    return install_config_from_wire(config([{"id": 1} | item])).items[0]


def refusal(data: object) -> PlanError:
    with pytest.raises(PlanError) as caught:
        install_config_from_wire(data)
    assert "\n" not in str(caught.value)
    return caught.value
