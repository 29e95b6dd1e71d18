"""Read key and certificate repeatedly, as a service does, and report whether they ever did not match.

Usage: pair_reader.py CERTS NAME… until standard input ends; then one JSON line. Two ways of reading, in turn:

* through one opened directory of the generation: the two must match, even during a renewal;
* through the public links, one open after the other. A switch may fall between two opens, so the certificate is
  read a second time. If it is unchanged but the key does not match, the pair on disk was mixed, which must never
  happen.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key


@lru_cache(maxsize=64)
def belong_together(certificate: bytes, key: bytes) -> bool:
    """Return whether key and certificate match; False if one cannot be parsed."""
    try:
        leaf = x509.load_pem_x509_certificate(certificate)
        return leaf.public_key() == load_pem_private_key(key, None).public_key()
    except ValueError:
        return False


def by_directory(live: Path) -> str:
    """Read both files of the generation that is live at one open."""
    folder = os.open(live, os.O_PATH | os.O_DIRECTORY)
    try:
        pair = []
        for name in ("fullchain.pem", "private.key"):
            with open(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
                pair.append(file.read())
    except FileNotFoundError:
        return "pruned"  # pruned: slower than several renewals
    finally:
        os.close(folder)
    return "match" if belong_together(*pair) else "mismatch"


def by_names(certs: Path, name: str) -> str:
    """Read certificate, key, and the certificate again."""
    try:
        before = (certs / f"{name}.crt").read_bytes()
        key = (certs / f"{name}.key").read_bytes()
        after = (certs / f"{name}.crt").read_bytes()
    except FileNotFoundError:
        return "missing"
    if before != after:
        return "switched"
    return "match" if belong_together(before, key) else "mismatch"


def main(certs: Path, names: list[str]) -> None:
    os.nice(19)  # leave the processor to the processes under test
    ended = threading.Event()

    def wait_for_parent() -> None:
        sys.stdin.buffer.read()
        ended.set()

    threading.Thread(target=wait_for_parent, daemon=True).start()
    seen: Counter[str] = Counter()
    generations: set[str] = set()
    while not ended.is_set():
        for name in names:
            seen["directory " + by_directory(certs / ".live" / name)] += 1
            seen["names " + by_names(certs, name)] += 1
            generations.add(os.readlink(certs / ".live" / name))
        if not seen["rounds"]:
            print("looked at every pair once", flush=True)
        seen["rounds"] += 1
    rounds = seen.pop("rounds")
    print(json.dumps({"seen": seen, "rounds": rounds, "generations": len(generations)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
