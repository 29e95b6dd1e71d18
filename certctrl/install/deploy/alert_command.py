"""Tell the operator of an alert by the command that policy.json names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from certctrl.errors import CertctrlError, DiskError
from certctrl.install.deploy import recovery
from certctrl.install.deploy.context import Site
from certctrl.store.disk.atomic import write_atomic

ALERT_SECONDS = 60.0


async def tell_operator(site: Site, alert: Mapping[str, Any]) -> None:
    """Give an alert to the ``on_alert`` command, as a JSON file; a failure is logged, not raised."""
    argv = site.policy().on_alert
    if not argv:
        return
    path = site.layout.state / f"{recovery.ALERT_PREFIX}{site.fs.token()}.json"
    try:
        await site.offload(lambda: write_atomic(site.fs, path, json.dumps(dict(alert)).encode(), durable=False))
        env = {"CERTCTRL_ALERT": str(path), "CERTCTRL_CONFIG_DIR": str(site.layout.root)}
        (await site.proc.run(argv, timeout=ALERT_SECONDS, env_paths=env)).check("on_alert")
    except CertctrlError as error:
        site.log.error("The on_alert command failed: %s", error)
    finally:
        with suppress(DiskError):
            site.fs.unlink(path)
