"""The bench: the product beside its floors in one run, as a table and as JSON. ``nox -s bench [-- OPTIONS]``.

Nothing here fails on time: read the ratios, on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import sandbox_latency
import startup
from measure import load, now

COLUMNS = ("case", "wall", "cpu", "peak_mib", "p50_ms", "p99_ms", "renewals", "must", "aim", "verdict")


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as aligned text, without columns that none of them has."""
    columns = [column for column in COLUMNS if any(column in row for row in rows)]
    cells = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) for line in cells)


def main(argv: list[str]) -> int:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="paired rounds of the start-up cases")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each delivery run")
    parser.add_argument("--only", choices=("startup", "delivery"), help="one part alone")
    parser.add_argument("--json", type=Path, default=Path("bench-results.json"), metavar="FILE")
    options = parser.parse_args(argv)
    report: dict[str, Any] = {"at": now(), "python": platform.python_version(), "load_per_core": round(load(), 2)}
    if load() > 0.5:
        print(f"The machine is busy (load {load():.1f} per core): ratios are less sure than they look.\n")
    with tempfile.TemporaryDirectory(prefix="cert-ctrl-bench-") as work:
        if options.only in (None, "startup"):
            report["startup"] = list(startup.measure(Path(work), rounds=options.rounds))
            print(f"Start-up, as multiples of `{startup.FLOOR}` (medians of {options.rounds} paired rounds)")
            print(table(report["startup"]), end="\n\n")
        if options.only in (None, "delivery"):
            services = ("builtin", *(["nginx"] if shutil.which("nginx", path="/usr/sbin:/usr/bin") else []))
            report["delivery"] = list(sandbox_latency.measure(seconds=options.seconds, services=services))
            print("Delivery by long-poll, milliseconds (nginx itself sleeps 100 ms inside a reload)")
            print(table(report["delivery"]), end="\n\n")
    options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
