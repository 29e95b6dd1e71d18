"""The spec's state diagram as a table ("Polling State Machine").

Three things the diagram leaves open, settled here:

* Acks are sent "in the next poll". So they are flushed twice: in *Acknowledging*, when a page was just taken
  in, and in *Polling*, right before each request. Trouble with them is an edge to *Error* in both cases.
* A full resync after a 409 is *Processing*: it stands for all the updates missed. One that the plane asks for by
  ``state.resync_required`` is a signal like any other: it keeps its cursor, or it would come again and again.
* A refresh that fails without being refused (5xx, network) stays in *Refreshing* and is tried again; only a
  refused one is the edge to *Terminated*.

A clean stop (SIGTERM) is no transition: the walker just ends, in whatever state it is. A session that must
end from a state without an edge to *Terminated* walks there over the edges that exist.

Rejected: states of our own for the open breaker or for waiting. They are facts about *when* the next step is
due, not about what the session is doing; `Session.breaker_open` and `Wait.why` carry them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum


class State(StrEnum):
    """Where a session is; the values are the spec's words."""

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
    """Return the states after ``start`` on a shortest way to ``goal``; empty when already there.

    Raises ValueError when no way leads there.
    """
    ways: dict[State, tuple[State, ...]] = {start: ()}
    for state in (queue := [start]):
        if state is goal:
            return ways[state]
        for following in sorted(TRANSITIONS[state] - ways.keys()):
            ways[following] = (*ways[state], following)
            queue.append(following)
    raise ValueError(f"no way from {start} to {goal}")


class Walk:
    """Where a session is, moving only along the table."""

    def __init__(self) -> None:
        self.state = State.INITIALIZING
        self.moved: Callable[[State, State], None] = lambda old, new: None
        """Called with each transition."""

    def go(self, *states: State) -> None:
        """Move from state to state; AssertionError where the diagram has no edge."""
        for state in states:
            if state not in TRANSITIONS[self.state]:
                raise AssertionError(f"the diagram has no edge from {self.state} to {state}")
            old, self.state = self.state, state
            self.moved(old, state)

    def end(self, through: State) -> None:
        """Move to Terminated, by way of ``through`` where there is no edge of our own."""
        if State.TERMINATED not in TRANSITIONS[self.state]:
            self.go(*path_between(self.state, through))
        self.go(State.TERMINATED)
