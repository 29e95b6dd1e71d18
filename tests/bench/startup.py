"""Start-up: the cost of short commands, compared with an idle interpreter and with installed peers."""

from __future__ import annotations

import datetime
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import in_turn, ratio, row

from certctrl.model.certificate import CertFacts
from certctrl.model.plan import OutcomeKind
from certctrl.model.records import CertRecord, DeviceKeys, Stage, Tokens
from certctrl.store.config.files import init_config_dir
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

FLOOR = "python -c pass"
# case -> (must, aim), as multiples of the floor
LIMITS = {"--version": (1.5, 1.5), "status": (6.0, 4.0), "list-certs, 100": (9.0, 6.0)}
MOST_MIB = 20.0
DAY = 86_400.0
SCRIPT = """#!{python}
import sys
from certctrl.__main__ import program
if __name__ == '__main__':
    sys.argv[0] = sys.argv[0].removesuffix('.exe')
    sys.exit(program())
"""


def make_directory(root: Path, *, certificates: int) -> None:
    """Make a registered agent's directory with the records of that many certificates."""
    layout, fs = ConfigDir(root), RealFs()
    init_config_dir(fs, layout, server_url="https://plane.example", ca_pem=None)
    store = StateStore(layout, fs)
    now = datetime.datetime.now(datetime.UTC).timestamp()
    store.session.save_device_id("00000000-0000-4000-8000-000000000000")
    store.session.save_device_keys(DeviceKeys(public=bytes(32), secret=bytes(32)))
    store.session.save_tokens(Tokens(access_token="a.b.c", refresh_token="rt_bench"))
    store.installed.save_certificates({number: record(number, now) for number in range(1, certificates + 1)})
    store.installed.save_status({"running": False, "state": "Polling", "health": "healthy"})


def record(number: int, now: float) -> CertRecord:
    """Return the facts of one deployed certificate."""
    name = f"host{number}.example.com"
    return CertRecord(
        facts=CertFacts(
            cert_id=number,
            name=name,
            domains=(name,),
            serial=":".join(["ab"] * 20),
            fingerprint_sha256="ab" * 32,
            not_before=now - 30 * DAY,
            not_after=now + 60 * DAY,
        ),
        generation="ab" * 16,
        stage=Stage.ACTIVATED,
        targets=(f"/etc/tls/{name}.pem",),
        last_outcome=OutcomeKind.APPLIED,
        last_apply_at=now,
    )


def measure(work: Path, *, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the rows: wall and CPU as multiples of the floor, peak memory."""
    make_directory(work / "small", certificates=3)
    make_directory(work / "large", certificates=100)
    program = str(installed_program(work))
    cases: dict[str, tuple[str, ...]] = {
        FLOOR: (sys.executable, "-c", "pass"),
        "--version": (program, "--version"),
        "status": (program, "-c", str(work / "small"), "status"),
        "list-certs, 100": (program, "-c", str(work / "large"), "list-certs"),
    }
    if certbot := shutil.which("certbot"):
        cases["certbot --version"] = (certbot, "--version")
    samples = in_turn(cases, rounds=rounds)
    floor = samples.pop(FLOOR)
    for name, found in samples.items():
        must, aim = LIMITS.get(name, (None, None))
        for figure in ("wall", "cpu"):
            ours, theirs = ([getattr(one, figure) for one in some] for some in (found, floor))
            yield row(f"{name}: {figure}, milliseconds", statistics.median(ours) * 1000, statistics.median(theirs) * 1000,
                      value=ratio(ours, theirs), must=must, aim=aim, digits=1)  # fmt: skip
    peak = max(one.peak for name, found in samples.items() if name in LIMITS for one in found)
    yield row("most memory of the three, MiB", peak, must=MOST_MIB, digits=1)
    if certbot:
        ours, theirs = ([one.wall for one in samples[name]] for name in ("status", "certbot --version"))
        yield row("status beside certbot --version", ratio(ours, theirs), must=0.3)


def installed_program(work: Path) -> Path:
    """Return the installed program, or a script like pip's if only the sources are on the path."""
    program = Path(sys.executable).with_name("cert-ctrl")
    if not program.exists():
        program = work / "cert-ctrl"
        program.write_text(SCRIPT.format(python=sys.executable))
        program.chmod(0o755)
    return program
