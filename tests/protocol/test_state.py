"""The transition table against the spec's diagram, edge by edge."""

from __future__ import annotations

from itertools import product

import pytest

from certctrl.protocol.state import TRANSITIONS, State, Walk, path_between

# Copied from the mermaid diagram of the spec, "Agent States"; not derived from the table under test.
DIAGRAM = {
    ("Initializing", "Polling"): "Token valid",
    ("Initializing", "Refreshing"): "Token expired",
    ("Polling", "Processing"): "Updates received",
    ("Polling", "Polling"): "No updates",
    ("Polling", "Refreshing"): "Token expired",
    ("Polling", "Error"): "Network error",
    ("Processing", "Acknowledging"): "Update processed",
    ("Acknowledging", "Polling"): "Ack sent",
    ("Acknowledging", "Error"): "Ack failed",
    ("Refreshing", "Polling"): "New token obtained",
    ("Refreshing", "Terminated"): "Refresh failed",
    ("Error", "Polling"): "Retryable error",
    ("Error", "Terminated"): "Fatal error",
}
WORDS = ("Initializing", "Polling", "Processing", "Acknowledging", "Refreshing", "Error", "Terminated")


def test_the_states_are_named_as_in_the_spec() -> None:
    assert tuple(state.value for state in State) == WORDS
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize(("old", "new"), list(product(WORDS, WORDS)))
def test_edges_are_those_of_the_diagram(old: str, new: str) -> None:
    assert (State(new) in TRANSITIONS[State(old)]) == ((old, new) in DIAGRAM)


@pytest.mark.parametrize(("old", "new"), list(product(State, State)))
def test_a_walk_moves_along_edges_only(old: State, new: State) -> None:
    walk, seen = Walk(), []
    walk.state = old
    walk.moved = lambda a, b: seen.append((a, b))
    if (old.value, new.value) in DIAGRAM:
        walk.go(new)
        assert walk.state is new
        assert seen == [(old, new)]
    else:
        with pytest.raises(AssertionError, match="no edge"):
            walk.go(new)
        assert walk.state is old
        assert not seen


@pytest.mark.parametrize("through", [State.ERROR, State.REFRESHING])
@pytest.mark.parametrize("start", [state for state in State if state is not State.TERMINATED])
def test_every_state_has_a_path_to_terminated(start: State, through: State) -> None:
    walk, seen = Walk(), []
    walk.state = start
    walk.moved = lambda a, b: seen.append((a.value, b.value))
    walk.end(through)
    assert walk.state is State.TERMINATED
    assert seen[0][0] == start.value
    assert set(seen) <= set(DIAGRAM)


def test_paths() -> None:
    assert path_between(State.POLLING, State.POLLING) == ()
    assert path_between(State.PROCESSING, State.ERROR) == (State.ACKNOWLEDGING, State.ERROR)
    with pytest.raises(ValueError, match="no path"):
        path_between(State.TERMINATED, State.POLLING)
