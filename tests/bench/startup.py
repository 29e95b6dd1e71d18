"""Start-up: what a short command costs beside the interpreter that does nothing, and beside installed peers."""

from __future__ import annotations

import datetime
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import in_turn, ratio

from certctrl.model.plan import OutcomeKind
from certctrl.model.records import CertRecord, DeviceKeys, Stage, Tokens
from certctrl.store.config import init_config_dir
from certctrl.store.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state import StateStore

FLOOR = "python -c pass"
# case -> (figure, most that it may be, what it should be): numbers.md 1 and 2
LIMITS = {
    "cert-ctrl --version": ("wall", 1.5, 1.5),
    "cert-ctrl status": ("wall", 6.0, 4.0),
    "cert-ctrl list-certs, 100": ("wall", 9.0, 6.0),
}
MOST_MIB = 20.0
DAY = 86_400.0


def make_directory(root: Path, *, certificates: int) -> None:
    """Make a registered agent's directory with facts of that many certificates, as deployments record them."""
    layout, fs = ConfigDir(root), RealFs()
    init_config_dir(fs, layout, server_url="https://plane.example", ca_pem=None)
    store = StateStore(layout, fs)
    now = datetime.datetime.now(datetime.UTC).timestamp()
    store.save_device_id("00000000-0000-4000-8000-000000000000")
    store.save_device_keys(DeviceKeys(public=bytes(32), secret=bytes(32)))
    store.save_tokens(Tokens(access_token="a.b.c", refresh_token="rt_bench"))
    store.save_certificates({number: record(number, now) for number in range(1, certificates + 1)})
    store.save_status({"running": False, "state": "Polling", "health": "healthy"})


def record(number: int, now: float) -> CertRecord:
    """Return the facts of one deployed certificate."""
    name = f"host{number}.example.com"
    return CertRecord(
        cert_id=number, name=name, domains=(name,), serial=":".join(["ab"] * 20), fingerprint_sha256="ab" * 32,
        not_before=now - 30 * DAY, not_after=now + 60 * DAY, generation="ab" * 16, stage=Stage.ACTIVATED,
        targets=(f"/etc/tls/{name}.pem",), last_outcome=OutcomeKind.APPLIED, last_apply_at=now,
    )  # fmt: skip


def measure(work: Path, *, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield one row per case: ratios to the floor, peak memory, verdict."""
    make_directory(work / "small", certificates=3)
    make_directory(work / "large", certificates=100)
    program = str(Path(sys.executable).with_name("cert-ctrl"))
    if not Path(program).exists():
        raise SystemExit("bench: the project is not installed in this environment; use `nox -s bench`")
    cases = {
        FLOOR: (sys.executable, "-c", "pass"),
        "cert-ctrl --version": (program, "--version"),
        "cert-ctrl status": (program, "-c", str(work / "small"), "status"),
        "cert-ctrl list-certs, 100": (program, "-c", str(work / "large"), "list-certs"),
    }
    if certbot := shutil.which("certbot"):
        cases["certbot --version"] = (certbot, "--version")
    samples = in_turn(cases, rounds=rounds)
    floor = samples[FLOOR]
    for name, found in samples.items():
        row: dict[str, Any] = {
            "case": name,
            "wall": round(ratio(found, floor, "wall"), 2),
            "cpu": round(ratio(found, floor, "cpu"), 2),
            "peak_mib": round(max(sample.peak for sample in found), 1),
            "status": sorted({sample.status for sample in found}),
        }
        if name in LIMITS:
            figure, must, aim = LIMITS[name]
            row |= {"must": must, "aim": aim, "verdict": verdict(row[figure], row["peak_mib"], must, aim)}
        yield row


def verdict(value: float, peak: float, must: float, aim: float) -> str:
    """Return ``aim``, ``must`` or ``MISSED``."""
    if value > must or peak > MOST_MIB:
        return "MISSED"
    return "aim" if value <= aim else "must"
