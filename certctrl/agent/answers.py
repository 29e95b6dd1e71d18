"""Answers: what this host answers certificate authorities now; ``challenges.py`` decides."""

from __future__ import annotations

import ssl

import attrs
import trio
from trio_util import AsyncBool

from certctrl import lean
from certctrl.model.challenges import Challenge, ChallengeKind, server_name


@lean.define(eq=False)
class Answers:
    """The answers that this host gives now."""

    active: dict[tuple[ChallengeKind, str], Challenge] = attrs.field(factory=dict)
    contexts: dict[str, ssl.SSLContext] = attrs.field(factory=dict)
    """By token, of the challenges over TLS."""
    listeners: dict[ChallengeKind, trio.CancelScope] = attrs.field(factory=dict)
    addresses: dict[ChallengeKind, str] = attrs.field(factory=dict)
    """Where each listener listens, as the policy says it."""
    not_given: set[tuple[ChallengeKind, str]] = attrs.field(factory=set)
    """Those of an earlier run that are not visible again yet."""
    changed: AsyncBool = attrs.field(factory=AsyncBool)
    """Whether a challenge or the policy changed; `tend_forever` resets it."""
    nursery: trio.Nursery | None = None
    """Of the listeners; None: no daemon runs."""
    lock: trio.Lock = attrs.field(factory=trio.Lock)
    is_loaded: bool = False

    def over_http(self, token: str) -> str | None:
        """Return the answer of the listener to a token."""
        found = self.active.get((ChallengeKind.HTTP_01, token))
        return found.key_authorization if found is not None and not found.directory else None

    def over_tls(self, name: str) -> ssl.SSLContext | None:
        """Return the context of the newest challenge with a server name."""
        for one in reversed(self.active.values()):
            if one.kind is ChallengeKind.TLS_ALPN_01 and server_name(one.identifier) == name:
                return self.contexts.get(one.token)
        return None
