"""Which messages are due: a table, and properties of any history."""

from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certctrl.plane.alerts.conditions import Condition, Event
from certctrl.plane.alerts.decision import (
    GroupState,
    MessageKind,
    Rules,
    decide,
    from_json,
    to_json,
)

FIRING, REMINDER, RESOLVED = MessageKind.FIRING, MessageKind.REMINDER, MessageKind.RESOLVED
RULES = Rules(wait_seconds=60, interval_seconds=600, repeat_seconds=86_400)


def condition(key: str, *, is_critical: bool = False, has_end: bool = True) -> Condition:
    return Condition(
        event=Event.DEVICE_SILENT, group="device-silent", key=key, name=f"web-{key}", cause="it is silent",
        what=f"web-{key} is silent", fix="look", since=0.0, is_critical=is_critical, has_end=has_end,
    )  # fmt: skip


def present(*keys: str) -> dict[str, Condition]:
    return {key: condition(key) for key in keys}


@attrs.define
class Channel:
    """A channel whose rounds are decided one after the other; its state passes through JSON, as in the database."""

    state: GroupState | None = None
    sent: list[tuple[float, str, int]] = attrs.field(factory=list)

    def round(self, now: float, here: dict[str, Condition], *, is_quiet: bool = False, rules: Rules = RULES) -> str:
        before = GroupState() if self.state is None else from_json(json.loads(json.dumps(to_json(self.state))))
        decided = decide(before, here, rules, now, is_quiet=is_quiet)
        self.state = decided.state
        if decided.kind is None:
            return ""
        self.sent.append((now, decided.kind.value, len(decided.new)))
        return decided.kind.value

    def kinds(self) -> list[str]:
        return [kind for _, kind, _ in self.sent]


def test_an_outage_of_500_hosts_is_one_message_and_its_end_another() -> None:
    channel = Channel()
    for second in range(0, 300, 5):  # they become silent one after the other, for 250 s
        channel.round(second, present(*map(str, range(min(500, second * 2 + 1)))))
    assert channel.sent == []
    assert channel.round(315, present(*map(str, range(500)))) == FIRING
    assert channel.sent[0][2] == 500
    for second in range(320, 2000, 5):  # they return one after the other
        channel.round(second, present(*map(str, range(max(0, 500 - (second - 320))))))
    assert channel.kinds() == [FIRING, RESOLVED]
    assert channel.state is None


def test_conditions_that_are_added_all_the_time_are_told_after_five_waits() -> None:
    channel = Channel()
    for second in range(0, 310, 10):
        channel.round(second, present(*map(str, range(second + 1))))
    assert channel.sent == [(300, FIRING, 301)]


def test_a_condition_that_ends_within_the_wait_is_not_told() -> None:
    channel = Channel()
    assert [channel.round(0, present("1")), channel.round(30, {}), channel.round(60, {})] == ["", "", ""]
    assert channel.state is None


def test_more_conditions_wait_for_the_interval_and_an_end_does_not() -> None:
    channel = Channel()
    channel.round(0, present("1"))
    assert channel.round(60, present("1")) == FIRING
    assert channel.round(100, present("1", "2")) == ""
    assert channel.round(659, present("1", "2")) == ""
    assert channel.round(660, present("1", "2")) == FIRING
    assert channel.sent[-1][2] == 1, "only the new one counts as new"
    assert channel.round(665, {}) == RESOLVED


def test_a_group_that_flaps_is_told_at_most_twice_within_the_interval() -> None:
    channel = Channel()
    rules = Rules(wait_seconds=0, interval_seconds=600)
    for second in range(0, 6000, 15):
        channel.round(second, present("1") if second % 30 else {}, rules=rules)
    assert len(channel.sent) <= 2 * 11


def test_what_is_not_over_is_told_again_each_day() -> None:
    channel = Channel()
    for second in range(0, 3 * 86_400, 60):
        channel.round(second, present("1"))
    assert channel.kinds() == [FIRING, REMINDER, REMINDER]
    channel = Channel()
    for second in range(0, 3 * 86_400, 60):
        channel.round(second, present("1"), rules=Rules(repeat_seconds=0))
    assert channel.kinds() == [FIRING]


def test_quiet_hours_hold_back_all_but_critical_conditions() -> None:
    channel = Channel()
    for second in range(0, 600, 60):
        assert channel.round(second, present("1"), is_quiet=True) == ""
    urgent = present("1") | {"2": condition("2", is_critical=True)}
    assert channel.round(600, urgent, is_quiet=True) == ""
    assert channel.round(660, urgent, is_quiet=True) == FIRING
    assert channel.sent[-1][2] == 2, "what is held back is told with it"
    assert channel.round(700, {}, is_quiet=True) == ""
    assert channel.round(800, {}) == RESOLVED, "when they end"


def test_what_opens_and_ends_in_quiet_hours_after_it_was_told_is_resolved_once() -> None:
    channel = Channel()
    channel.round(0, present("1"))
    channel.round(60, present("1"))
    channel.round(100, {}, is_quiet=True)
    channel.round(200, present("2"), is_quiet=True)
    channel.round(300, {}, is_quiet=True)
    assert channel.round(400, {}) == RESOLVED
    assert channel.kinds() == [FIRING, RESOLVED]


def test_an_event_without_an_end_is_told_once_and_never_resolved() -> None:
    channel = Channel()
    event = {"1": condition("1", has_end=False, is_critical=True)}
    for second in range(0, 7 * 86_400, 3600):
        channel.round(second, event)
    for second in range(7 * 86_400, 8 * 86_400, 3600):
        channel.round(second, {})
    assert channel.kinds() == [FIRING]
    assert channel.state is None


def test_a_clock_that_was_ahead_holds_nothing_back() -> None:
    channel = Channel()
    channel.round(1_000_000, present("1"))
    channel.round(1_000_060, present("1"))
    channel.round(100, present("1", "2"))
    assert channel.round(100 + 600, present("1", "2")) == FIRING


HISTORIES = st.lists(
    st.tuples(st.sets(st.sampled_from("abcd")), st.booleans(), st.sampled_from([5, 15, 60, 700])), max_size=60
)


@settings(max_examples=200)
@given(HISTORIES, st.sampled_from([RULES, Rules(wait_seconds=0, interval_seconds=0, repeat_seconds=0)]))
def test_in_any_history_messages_alternate_and_nothing_stays_untold(
    history: list[tuple[set[str], bool, int]], rules: Rules
) -> None:
    channel, now, is_open = Channel(), 0.0, False
    for keys, is_quiet, step in history:
        now += step
        kind = channel.round(now, present(*sorted(keys)), is_quiet=is_quiet, rules=rules)
        assert kind != RESOLVED or (is_open and not keys)
        assert kind != REMINDER or is_open
        assert not (kind and is_quiet), "none of them is critical"
        is_open = {FIRING: True, RESOLVED: False}.get(MessageKind(kind), is_open) if kind else is_open
        assert channel.round(now, present(*sorted(keys)), is_quiet=is_quiet, rules=rules) == "", (
            "a repetition adds none"
        )
    last = present("a", "z")
    for _ in range(100):  # what lasts is told, whatever was before
        now += 15
        channel.round(now, last, rules=rules)
    assert channel.state is not None
    assert channel.state.is_open
    assert all(member.is_told for member in channel.state.members.values())
    now += 15
    channel.round(now, {}, rules=rules)
    assert channel.kinds()[-1] == RESOLVED
    channel.round(now + 601, {}, rules=rules)
    assert channel.state is None


@pytest.mark.parametrize("later", [{"unknown": 1}, {}])
def test_a_state_of_a_later_release_is_read(later: dict[str, int]) -> None:
    state = GroupState(is_open=True, sent_at=5.0, names=("a",), total=1)
    assert from_json(to_json(state) | later) == state
