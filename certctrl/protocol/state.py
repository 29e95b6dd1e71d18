"""The spec's state diagram as a table ("Polling State Machine").

The diagram leaves three questions open. They are settled as follows:

* Acks are sent "in the next poll". So they are sent in two places: in *Acknowledging*, right after a page was
  saved, and in *Polling*, right before each request. In both, a failure is an edge to *Error*.
* A full resync after a 409 is *Processing*: it replaces all missed updates. A resync that the plane requests by
  ``state.resync_required`` is an ordinary signal and keeps its cursor; otherwise it would come again and again.
* A refresh that fails without a refusal (5xx, network) stays in *Refreshing* and is retried; only a refusal is the
  edge to *Terminated*.

A clean stop (SIGTERM) is not a transition: the session ends in its current state. A session that must end in a
state without an edge to *Terminated* moves there over existing edges.

Rejected: additional states for the open breaker and for waiting. They describe *when* the next step is due, not
what the session does; see `Session.breaker_open` and `Wait.why`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum


class State(StrEnum):
    """States of a session, named as in the spec."""

    INITIALIZING = "Initializing"
    POLLING = "Polling"
    PROCESSING = "Processing"
    ACKNOWLEDGING = "Acknowledging"
    REFRESHING = "Refreshing"
    ERROR = "Error"
    TERMINATED = "Terminated"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.INITIALIZING: frozenset({State.POLLING, State.REFRESHING}),
    State.POLLING: frozenset({State.PROCESSING, State.POLLING, State.REFRESHING, State.ERROR}),
    State.PROCESSING: frozenset({State.ACKNOWLEDGING}),
    State.ACKNOWLEDGING: frozenset({State.POLLING, State.ERROR}),
    State.REFRESHING: frozenset({State.POLLING, State.TERMINATED}),
    State.ERROR: frozenset({State.POLLING, State.TERMINATED}),
    State.TERMINATED: frozenset(),
}


def path_between(start: State, goal: State) -> tuple[State, ...]:
    """Return the states after ``start`` on a shortest path to ``goal``; empty if they are equal.

    Raises ValueError if there is no path.
    """
    ways: dict[State, tuple[State, ...]] = {start: ()}
    for state in (queue := [start]):
        if state is goal:
            return ways[state]
        for following in sorted(TRANSITIONS[state] - ways.keys()):
            ways[following] = (*ways[state], following)
            queue.append(following)
    raise ValueError(f"no path from {start} to {goal}")


class Walk:
    """The current state, which changes only along the table."""

    def __init__(self) -> None:
        self.state = State.INITIALIZING
        self.moved: Callable[[State, State], None] = lambda old, new: None
        """Called on each transition."""

    def go(self, *states: State) -> None:
        """Move through states; raises AssertionError if the diagram has no such edge."""
        for state in states:
            if state not in TRANSITIONS[self.state]:
                raise AssertionError(f"the diagram has no edge from {self.state} to {state}")
            old, self.state = self.state, state
            self.moved(old, state)

    def end(self, through: State) -> None:
        """Move to Terminated, through ``through`` if there is no direct edge."""
        if State.TERMINATED not in TRANSITIONS[self.state]:
            self.go(*path_between(self.state, through))
        self.go(State.TERMINATED)
