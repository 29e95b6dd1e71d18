"""ServingReports: what endpoints serve, as far as the plane has to know it.

It is kept in memory only: a start reports everything once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import trio

from certctrl import lean

HEARTBEAT_SECONDS = 86_400.0
"""Seconds after which a report is repeated although nothing has changed."""
ENDPOINTS_PER_REQUEST = 200


@lean.define(eq=False)
class ServingReports:
    """What is known of endpoints: what is wrong, what is to be reported, and what the plane has accepted."""

    wrong: dict[int, str] = attrs.field(factory=dict)
    """Certificate id -> what is wrong, in words."""
    _due: dict[int, tuple[dict[str, Any], int]] = attrs.field(factory=dict)
    """Certificate id -> event, and what stands for its contents."""
    _sent: dict[int, tuple[int | None, float]] = attrs.field(factory=dict)
    """Certificate id -> what stands for the accepted contents, and when they were accepted (Trio clock).

    None while a request is under way, and after one without an answer: the plane may have either.
    """

    def note(self, cert_id: int, event: dict[str, Any], seed: object) -> None:
        """Make an event due unless the plane has accepted the same; ``seed``: what else makes it another one."""
        token = hash((seed, repr(event)))
        before, at = self._sent.get(cert_id, (None, 0.0))
        if cert_id not in self._sent and not event["endpoints"]:
            self._due.pop(cert_id, None)  # the plane knows of none either
        elif before != token or trio.current_time() - at >= HEARTBEAT_SECONDS:
            self._due[cert_id] = event, token
        else:
            self._due.pop(cert_id, None)

    def known(self) -> frozenset[int]:
        """Return the certificates of which the plane may know something."""
        return frozenset(self._sent) | frozenset(self._due)

    def next(self, count: int) -> list[dict[str, Any]]:
        """Return events that are due, as many as fit into a request, which is sent now; they stay until `sent`."""
        events, size = list[dict[str, Any]](), 0
        for event, _ in self._due.values():
            size += len(event["endpoints"]) + 1
            if events and (size > ENDPOINTS_PER_REQUEST or len(events) >= count):
                break
            events.append(event)
            self._sent[event["cert_id"]] = None, trio.current_time()
        return events

    def sent(self, events: Sequence[dict[str, Any]]) -> None:
        """Note that the plane has accepted these events."""
        for event in events:
            cert_id = event["cert_id"]
            due = self._due.get(cert_id)
            if due is None or due[0] is not event:
                continue
            del self._due[cert_id]
            if event["endpoints"]:
                self._sent[cert_id] = due[1], trio.current_time()
            else:
                self._sent.pop(cert_id, None)

    def forget(self) -> None:
        """Forget everything: the plane takes no such reports, or the configuration wants none."""
        for known in (self.wrong, self._due, self._sent):
            known.clear()
