"""Answers: this host's current answers to challenges; ``challenges.py`` decides about them."""

from __future__ import annotations

import ssl

import attrs
import trio
from trio_util import AsyncBool

from certctrl import lean
from certctrl.model.challenges import Challenge, ChallengeKind, server_name


@lean.define(eq=False)
class Answers:
    """The current answers, and the listeners that give them."""

    active: dict[tuple[ChallengeKind, str], Challenge] = attrs.field(factory=dict)
    contexts: dict[str, ssl.SSLContext] = attrs.field(factory=dict)
    """TLS contexts of tls-alpn-01 challenges, by token."""
    listeners: dict[ChallengeKind, trio.CancelScope] = attrs.field(factory=dict)
    addresses: dict[ChallengeKind, str] = attrs.field(factory=dict)
    """The address of each listener, as written in the policy."""
    unpublished: set[tuple[ChallengeKind, str]] = attrs.field(factory=set)
    """Answers of an earlier run that are not published again yet."""
    changed: AsyncBool = attrs.field(factory=AsyncBool)
    """Whether a challenge or the policy changed; `manage_forever` resets it."""
    nursery: trio.Nursery | None = None
    """Runs the listeners; None: there is no daemon."""
    lock: trio.Lock = attrs.field(factory=trio.Lock)
    is_loaded: bool = False

    def over_http(self, token: str) -> str | None:
        """Return the listener's answer for a token; None if it has none."""
        found = self.active.get((ChallengeKind.HTTP_01, token))
        return found.key_authorization if found is not None and not found.directory else None

    def over_tls(self, name: str) -> ssl.SSLContext | None:
        """Return the context of the newest challenge with a server name."""
        for one in reversed(self.active.values()):
            if one.kind is ChallengeKind.TLS_ALPN_01 and server_name(one.identifier) == name:
                return self.contexts.get(one.token)
        return None
