"""The root helper without a socket, and policies for it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from certctrl.helper.client import HelperClient, sealed
from certctrl.helper.messages import Answer, Request, answer_of, encoded
from certctrl.helper.requests import Peer, Requests
from certctrl.helper.units import Units
from certctrl.store.disk.fs import Fs, RealFs

POLICY = "/etc/cert-ctrl-helper.json"


def me() -> str:
    """Return the name of this process's user."""
    return Peer(pid=os.getpid(), uid=os.geteuid()).user


def rule(path: object, owner: str = "0", group: str = "0", mode: str = "0600") -> dict[str, str]:
    return {"path": str(path), "owner": owner, "group": group, "mode": mode}


@attrs.define
class Direct:
    """A helper that is asked in this process."""

    requests: Requests
    audit: list[dict[str, Any]]
    uid: int = attrs.field(factory=lambda: os.geteuid())

    def ask(self, request: Request, data: bytes | None = None, seconds: float = 0.0) -> Answer:
        return self.send(encoded(request), data)

    def send(
        self, packet: bytes, data: bytes | None = None, *, fds: tuple[int, ...] = (), whole: bool = True
    ) -> Answer:
        fds = (*fds, *([sealed(data)] if data is not None else ()))
        try:
            return answer_of(self.requests.answer(Peer(pid=1, uid=self.uid), packet, fds, whole=whole))
        finally:
            for fd in fds:
                os.close(fd)

    @property
    def client(self) -> HelperClient:
        return HelperClient(self.ask)


def direct(
    fs: Fs | None = None,
    policy: str | Path = POLICY,
    *,
    units: Units | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Direct:
    audit: list[dict[str, Any]] = []
    requests = Requests(
        fs or RealFs(),
        Path(policy),
        units or Units("/nonexistent"),
        now=now,
        audit=lambda line: audit.append(json.loads(line)),
    )
    return Direct(requests, audit)


def helper_on(fs: Fs) -> HelperClient:
    return direct(fs).client


def write_policy(path: Path, entry: dict[str, Any], user: str = "") -> Path:
    path.write_text(json.dumps({user or me(): entry}), encoding="utf-8")
    path.chmod(0o644)
    return path
