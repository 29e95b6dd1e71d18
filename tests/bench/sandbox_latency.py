"""Delivery: from the signal published by the plane to the new serial served, as the sandbox's witness sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any


def measure(*, seconds: float, services: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield one row per service: p50 and p99 in milliseconds, and how many renewals that was."""
    for service in services:
        command = [sys.executable, "-m", "certctrl", "sandbox", "--json", "--service", service, "--certs", "3"]
        command += ["--every", "0.7", "--duration", str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 120)
        summary = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"event": "nothing"}
        if summary["event"] != "summary":
            yield {"case": f"signal to served, {service}", "verdict": "did not run"}
            continue
        latency = summary["latency_ms"]
        yield {
            "case": f"signal to served, {service}",
            "p50_ms": latency["p50"],
            "p99_ms": latency["p99"],
            "renewals": latency["count"],
            "mismatches": summary["mismatches"],
            "verdict": "all served" if done.returncode == 0 else "MISSED",
        }
