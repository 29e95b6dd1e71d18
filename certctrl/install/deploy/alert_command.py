"""Run the ``on_alert`` command that policy.json names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from certctrl.errors import CertctrlError, DiskError
from certctrl.install.deploy import recovery
from certctrl.install.deploy.context import Context
from certctrl.store.disk.atomic import write_atomic

ALERT_SECONDS = 60.0


async def run_alert_command(context: Context, alert: Mapping[str, Any]) -> None:
    """Pass an alert to the ``on_alert`` command as a JSON file; a failure is logged, not raised."""
    argv = context.policy().on_alert
    if not argv:
        return
    path = context.layout.state / f"{recovery.ALERT_PREFIX}{context.fs.token()}.json"
    try:
        await context.offload(lambda: write_atomic(context.fs, path, json.dumps(dict(alert)).encode(), durable=False))
        env = {"CERTCTRL_ALERT": str(path), "CERTCTRL_CONFIG_DIR": str(context.layout.root)}
        (await context.proc.run(argv, timeout=ALERT_SECONDS, env_paths=env)).check("on_alert")
    except CertctrlError as error:
        context.log.error("The on_alert command failed: %s", error)
    finally:
        with suppress(DiskError):
            context.fs.unlink(path)
