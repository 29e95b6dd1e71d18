"""Handle the signals that make this host answer challenges of certificate authorities.

Unlike others, these signals carry their content: the plane has no resource for a challenge, which lasts seconds. If a
start is lost, the order fails and is retried; if a stop is lost, the answer expires.
"""

from __future__ import annotations

from typing import cast

from certctrl.agent.challenges import refusal, start_answering, stop_answering
from certctrl.agent.context import Agent
from certctrl.model.challenges import MAX_LIFE, Challenge, ChallengeKind
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.signals import ChallengeStart, ChallengeStop, Signal


async def on_challenge_start(agent: Agent, signal: Signal) -> Outcome:
    """Answer a challenge until it is stopped or expires."""
    signal = cast(ChallengeStart, signal)
    left = signal.expires_ms / 1000 - agent.plane.server_now()
    if left <= 0:
        return Outcome(kind=OutcomeKind.IGNORED, detail="the challenge expired before it arrived")
    policy = agent.policy.acme
    if why := refusal(policy, signal.kind, signal.identifier):
        return Outcome(kind=OutcomeKind.IGNORED, detail=why)
    directory = policy.http01_directory if signal.kind is ChallengeKind.HTTP_01 else None
    if directory is None and agent.challenges.nursery is None:
        return Outcome(kind=OutcomeKind.IGNORED, detail="no daemon runs on this host that could listen")
    challenge = Challenge(
        kind=signal.kind,
        token=signal.token,
        key_authorization=signal.key_authorization,
        identifier=signal.identifier,
        until=agent.wall_now() + min(left, MAX_LIFE),
        directory=directory or "",
    )
    where = await start_answering(agent, challenge)
    return Outcome(kind=OutcomeKind.APPLIED, detail=f"answers at {where}")


async def on_challenge_stop(agent: Agent, signal: Signal) -> Outcome:
    """Withdraw the answer to a challenge."""
    signal = cast(ChallengeStop, signal)
    if await stop_answering(agent, signal.kind, signal.token):
        return Outcome(kind=OutcomeKind.APPLIED, detail="no longer answers")
    return Outcome(kind=OutcomeKind.UNCHANGED, detail="not answered here")
