"""An OpenID provider in a process of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import httpx
import pytest

USERS = {
    "u-alice": {"email": "alice@example.com", "groups": ["ops"]},
    "u-bob": {"email": "bob@example.com", "groups": ["staff"]},
    "u-mallory": {"email": "alice@example.com", "groups": ["ops"]},
}


@pytest.fixture(scope="module")
def issuer(need_module: Callable[[str], None]) -> Iterator[str]:
    """The URL of a provider in a process of its own."""
    need_module("oidc_provider_mock")
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    users = [part for sub, claims in USERS.items() for part in ("--user-claims", json.dumps({"sub": sub} | claims))]
    argv = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), "--require-nonce", *users]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                try:
                    httpx.get(f"{url}/jwks", timeout=60)
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield url
        finally:
            process.terminate()
