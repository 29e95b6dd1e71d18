"""The bench: the product and its floors in one run, as a table and as JSON. ``nox -s bench [-- OPTIONS]``.

Nothing fails on time: read the ratios, on a quiet machine. ``aim`` and ``must`` are limits of a case's value: the
ratio to the floor, the difference, or a count.
"""

from __future__ import annotations

import argparse
import compileall
import json
import platform
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import acme
import burst
import delivery
import fleet
import fleet_even
import hostile
import idle
import lists
import push
import pushed
import renewals
import signing
import startup
import urgent
from measure import file_system, load, now, spread

import certctrl

COLUMNS = ("case", "ours", "floor", "judged", "must", "aim", "verdict", "note")
Part = Callable[[Path, bool], Iterator[dict[str, Any]]]

PARTS: dict[str, tuple[str, Part]] = {
    "startup": (
        f"Start-up, beside `{startup.FLOOR}` (judged: ratio)",
        lambda work, quick: startup.measure(work, rounds=7 if quick else 21),
    ),
    "idle": (
        "Idle, beside a bare loop of the same libraries (judged: ratio; memory: difference)",
        lambda work, quick: idle.measure(work, seconds=15 if quick else 100, wait=5 if quick else 25),
    ),
    "burst": (
        "A burst of renewals, beside a serial fetch and install of the same bytes (judged: ratio)",
        lambda work, quick: burst.measure(work, count=199 if quick else 999, rounds=2 if quick else 5),
    ),
    "urgent": (
        "A revocation right behind a burst of renewals, until its certificate is gone (judged: value)",
        lambda work, quick: urgent.measure(work, count=200 if quick else 1000, rounds=3 if quick else 7),
    ),
    "delivery": (
        "Delivery by long-poll, beside a bare client (judged: ratio; to served: difference)",
        lambda work, quick: delivery.measure(work, events=30 if quick else 200, reloads=8 if quick else 50),
    ),
    "pushed": (
        "Delivery by push, beside long-poll of the same client (judged: ratio)",
        lambda work, quick: pushed.measure(work, events=20 if quick else 100),
    ),
    "fleet": (
        f"The control plane with ${fleet.AGENTS} agents, beside hypercorn and starlette (judged: ratio or value)",
        lambda work, quick: fleet.measure(work, quick=quick),
    ),
    "push": (
        f"Push sockets of ${fleet.AGENTS} agents, beside the same agents as long-polls (judged: ratio or value)",
        lambda work, quick: push.measure(work, quick=quick),
    ),
    "even": (
        f"The load of ${fleet.AGENTS} agents after a signal to all, a restart and a crash (judged: ratio or value)",
        lambda work, quick: fleet_even.measure(work, quick=quick),
    ),
    "signing": (
        "The built-in CA signs a request: milliseconds of CPU (judged: value)",
        lambda work, quick: signing.measure(rounds=50 if quick else 500),
    ),
    "acme": (
        "An order at Pebble, beside a bare client that sends the same requests (judged: ratio)",
        lambda work, quick: acme.measure(work, rounds=15 if quick else 60),
    ),
    "lists": (
        "A comparison of a host with 1 000 certificates: requests and bytes (judged: value)",
        lambda work, quick: lists.measure(work, count=300 if quick else 1000),
    ),
    "renewals": (
        "Polls while certificates are renewed, beside polls of an idle control plane (judged: ratio of the p99)",
        lambda work, quick: renewals.measure(
            work, count=200 if quick else 1000, seconds=5 if quick else 12, rounds=2 if quick else 3
        ),
    ),
    "hostile": (
        "Hostile answers of the plane: peak memory beyond the idle daemon, MiB",
        lambda work, quick: hostile.measure(work, hostile.SAMPLE if quick else ()),
    ),
}


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as aligned text, without empty columns."""
    columns = [column for column in COLUMNS if any(column in row for row in rows)]
    cells = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def compile_packages() -> None:
    """Write the bytecode of all installed packages.

    Installers leave that to the first import, and some environments forbid it: then every start would be measured with
    the compiler's time, and every daemon with its memory.
    """
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(certctrl.__file__).parent)}
    for folder in folders:
        compileall.compile_dir(folder, quiet=2)


def main(argv: list[str]) -> int:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: six minutes instead of half an hour")
    parser.add_argument("--only", choices=tuple(PARTS), action="append", help="one part; may be given again")
    parser.add_argument(
        "--work", type=Path, help="a directory on the file system to measure on; default: that of $TMPDIR"
    )
    parser.add_argument("json", nargs="?", type=Path, default=Path("build/bench.json"), help="where the JSON goes")
    options = parser.parse_args(argv)
    compile_packages()
    report: dict[str, Any] = {"at": now(), "python": platform.python_version(), "machine": platform.platform()}
    report |= {"quick": options.quick, "load_per_core": round(load(), 2)}
    report["file_system"] = file_system(options.work or Path(tempfile.gettempdir()))
    print(f"Work on {report['file_system']}.\n")
    if load() > 0.5:
        print(f"The machine is busy (load {load():.1f} per core): ratios are less sure than they look.\n")
    for name, (title, part) in PARTS.items():
        if options.only is None or name in options.only:
            began = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="cert-ctrl-bench-", dir=options.work) as work:
                spread(work)
                report[name] = list(part(Path(work), options.quick))
            print(f"{title}\n{table(report[name])}\n({time.monotonic() - began:.0f} s)\n", flush=True)
    missed = [
        f"{name}: {row['case']}" for name in PARTS for row in report.get(name, ()) if row.get("verdict") == "MISSED"
    ]
    print("missed: " + ("; ".join(missed) or "nothing"))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
