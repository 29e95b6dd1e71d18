"""A lost cursor is answered by a full comparison before anything is polled, and ever more slowly if it goes on."""

from __future__ import annotations

import itertools

from session_story import NEWS, S, Story

from certctrl.model.signals import ResyncRequired
from certctrl.protocol import events as ev
from certctrl.protocol.steps import Deliver, FlushAcks, Poll, Resync, Wait


def test_an_expired_cursor() -> None:
    story = Story(cursor="c1")
    story.answer(ev.CursorExpired())
    assert story.next() == Resync()
    assert story.session.state is S.PROCESSING
    assert story.session.failures == 0
    story.now += 2
    story.tell(ev.Resynced())
    assert story.session.seen_cursor is story.session.committed_cursor is None
    story.flush()
    assert story.wait() == 3.0, "an interval after the poll that was refused"
    assert story.poll().cursor is None
    assert story.path == [S.INITIALIZING, S.POLLING, S.PROCESSING, S.ACKNOWLEDGING, S.POLLING]


def test_a_resync_on_demand_keeps_its_cursor_or_it_would_come_again_for_ever() -> None:
    story = Story(cursor="c1")
    story.answer(ev.Updates("c2", (ResyncRequired(1), *NEWS), True))
    assert story.deliver() == Deliver("c2", (ResyncRequired(1), *NEWS))
    story.flush()
    assert story.poll().cursor == "c2"


def test_a_failing_resync_is_tried_again_before_anything_is_polled() -> None:
    story = Story(cursor="c1")
    story.answer(ev.CursorExpired())
    for n, pause in enumerate((5.0, 7.5, 12.5), start=1):
        assert story.next() == Resync()
        story.tell(ev.ResyncFailed("503"))
        assert (story.session.state, story.session.failures) == (S.ERROR, n)
        assert story.wait() == pause
    assert story.next() == Resync()
    story.tell(ev.ResyncFailed("503", 60.0))
    assert 60.0 <= story.wait() <= 66.0
    assert story.next() == Resync()
    story.tell(ev.Resynced())
    story.flush()
    assert story.poll().cursor is None
    assert story.session.failures == 0


def test_a_plane_that_loses_every_cursor_is_resynced_ever_more_slowly() -> None:
    story = Story(cursor="c")
    started = []
    while len(started) < 6:
        step = story.next()
        if isinstance(step, Wait):
            story.wait()
        elif isinstance(step, FlushAcks):
            story.tell(ev.AcksSent())
        elif isinstance(step, Resync):
            started.append(story.now)
            story.tell(ev.Resynced())
        elif isinstance(step, Deliver):
            story.tell(ev.Delivered())
        else:
            assert isinstance(step, Poll)
            story.tell(ev.NoUpdates("c") if step.cursor is None else ev.CursorExpired())
    gaps = [round(b - a, 3) for a, b in itertools.pairwise(started)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= 10.0
    assert gaps[-1] >= 80.0


def test_a_cursor_lost_again_much_later_is_resynced_at_once() -> None:
    story = Story(cursor="c1")
    for _ in range(3):
        story.answer(ev.CursorExpired())
        assert story.next() == Resync()
        story.tell(ev.Resynced())
        story.flush()
        story.wait()
        story.news("c2")
        story.wait()
        story.answer(ev.NoUpdates(None))
        story.wait()


def test_a_409_to_no_cursor_is_a_failure() -> None:
    story = Story()
    story.answer(ev.CursorExpired())
    assert (story.session.state, story.session.failures) == (S.ERROR, 1)
    assert story.wait() == 5.0
