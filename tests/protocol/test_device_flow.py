"""Device grants: the pace of polls, the end by decision or expiry, and the pages that operators are sent to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.protocol.device_flow import (
    DeviceFlow,
    Done,
    Expired,
    GrantDenied,
    GrantEvent,
    GrantExpired,
    GrantFailed,
    GrantPending,
    GrantReady,
    GrantSlowDown,
    GrantStarted,
    GrantUnusable,
    PollGrant,
    Refused,
    uri_problem,
)

READY = GrantReady(user_id=14, registration_code="c")


def started(interval: float = 5, expires_in: float = 60) -> GrantStarted:
    return GrantStarted(
        device_code="d",
        user_code="U",
        verification_uri="https://plane.example/device",
        interval=interval,
        expires_in=expires_in,
    )


def test_a_grant_from_start_to_approval() -> None:
    flow = DeviceFlow(started(), 100.0)
    assert flow.next_step(100.0) == PollGrant(105.0)
    flow.receive(GrantPending(), 105.0)
    assert flow.next_step(105.0) == PollGrant(110.0)
    flow.receive(READY, 110.0)
    assert flow.next_step(110.0) == flow.next_step(9999.0) == Done(READY)


def test_slow_down_adds_five_seconds_permanently() -> None:
    flow = DeviceFlow(started(), 0.0)
    flow.receive(GrantSlowDown(), 5.0)
    assert flow.next_step(5.0) == PollGrant(15.0)
    flow.receive(GrantPending(), 15.0)
    assert flow.next_step(15.0) == PollGrant(25.0)
    flow.receive(GrantSlowDown(), 25.0)
    assert flow.next_step(25.0) == PollGrant(40.0)


@pytest.mark.parametrize(
    ("event", "end"), [(GrantDenied(), Refused()), (GrantExpired(), Expired()), (READY, Done(READY))]
)
def test_a_decision_is_final(event: GrantEvent, end: object) -> None:
    flow = DeviceFlow(started(), 0.0)
    flow.receive(event, 5.0)
    for later in (GrantPending(), READY, GrantDenied(), GrantFailed("x")):
        flow.receive(later, 6.0)
        assert flow.next_step(6.0) == end


def test_no_poll_after_the_code_expired() -> None:
    flow = DeviceFlow(started(expires_in=12), 0.0)
    flow.receive(GrantPending(), 5.0)
    assert flow.next_step(5.0) == PollGrant(10.0)
    flow.receive(GrantFailed("no route to host"), 10.0)
    assert flow.next_step(10.0) == Expired("no route to host"), "the next poll, at 15 s, would be too late"
    assert DeviceFlow(started(expires_in=0), 0.0).next_step(0.0) == Expired()
    late = DeviceFlow(started(), 0.0)
    assert late.next_step(60.0) == Expired(), "the code expired while the machine slept"


def test_failures_back_off_until_a_success() -> None:
    flow = DeviceFlow(started(expires_in=10_000), 0.0)
    pauses = []
    now = 0.0
    for _ in range(7):
        flow.receive(GrantFailed("down"), now)
        step = flow.next_step(now)
        assert isinstance(step, PollGrant)
        pauses.append(step.at - now)
        now = step.at
    assert pauses == [5, 10, 20, 40, 60, 60, 60]
    flow.receive(GrantPending(), now)
    assert flow.next_step(now) == PollGrant(now + 5)
    flow.receive(GrantFailed("busy", 120.0), now)
    assert flow.next_step(now) == PollGrant(now + 120)
    flow.receive(GrantPending(), now)
    flow.receive(GrantFailed("down"), now)
    assert flow.next_step(now) == PollGrant(now + 5), "a success forgets all failures"


@given(
    st.floats(0, 1e6),
    st.floats(0, 1e5),
    st.lists(
        st.tuples(
            st.sampled_from([GrantPending(), GrantSlowDown(), GrantFailed("x"), GrantFailed("x", 9.0)]),
            st.floats(0, 30),
        ),
        max_size=30,
    ),
)
def test_polls_keep_the_interval_and_stop_at_the_end(
    interval: float, expires_in: float, history: list[tuple[GrantEvent, float]]
) -> None:
    now = 1000.0
    flow = DeviceFlow(started(interval, expires_in), now)
    asked = now
    for event, late in history:
        step = flow.next_step(now)
        if not isinstance(step, PollGrant):
            assert isinstance(step, Expired)
            assert step == flow.next_step(now + 1e9)
            return
        assert step.at - asked >= min(max(interval, 1.0), 300.0) - 1e-6
        assert step.at < 1000.0 + expires_in
        now = asked = step.at + late
        flow.receive(event, now)


@pytest.mark.parametrize(
    ("uri", "server", "fine"),
    [
        ("https://plane.example/device", "https://plane.example", True),
        ("https://plane.example:8443/device", "https://plane.example", True),
        ("https://login.plane.example/d", "https://plane.example", False),
        ("https://plane.example/d", "https://api.plane.example", False),
        ("https://login.plane.example/d", "https://api.plane.example", False),
        ("https://PLANE.example/d", "https://plane.EXAMPLE", True),
        ("http://127.0.0.1:8080/device", "http://127.0.0.1:8080", True),
        ("http://127.0.0.1:8080/device", "https://127.0.0.1:8443", False),
        ("http://plane.example/device", "https://plane.example", False),
        ("https://evil.example/device", "https://plane.example", False),
        ("https://plane.example.evil.net/", "https://plane.example", False),
        ("https://notplane.example/", "https://plane.example", False),
        ("https://plane.example@evil.net/", "https://plane.example", False),
        ("https://user:pass@plane.example/", "https://plane.example", False),
        ("https://example/", "https://plane.example", False),
        ("https://10.0.0.2/", "https://10.0.0.1", False),
        ("https://[::1]/d", "https://[::1]:8443", True),
        ("https://[::1/d", "https://plane.example", False),
        ("https://plane.example:99999/d", "https://plane.example", False),
        ("javascript:alert(1)", "https://plane.example", False),
        ("", "https://plane.example", False),
        ("https:///device", "https://plane.example", False),
        ("https://xxxx/device", "https://plane.example", False),
    ],
)
def test_verification_uris(uri: str, server: str, fine: bool) -> None:
    assert (uri_problem(uri, server) is None) is fine


@pytest.mark.parametrize(
    ("uri", "server", "why"),
    [
        ("https://[::1/d", "https://plane.example", "not a URL"),
        ("https://plane.example/d", "https://[plane", "not a URL"),
        ("https://plane.example:99999/d", "https://plane.example", "not a URL"),
        ("https://plane.example/d", "https://plane.example:x", "not a URL"),
        ("ftp://plane.example/d", "ftp://plane.example", "not https"),
        ("http://other.example/d", "http://plane.example", "not https"),
        ("https://me@plane.example/", "https://plane.example", "credentials"),
        ("https://:secret@plane.example/", "https://plane.example", "credentials"),
        ("https:///d", "https://plane.example", "another host than plane.example"),
        ("https://evil.example/d", "https://Plane.example", "another host than plane.example"),
        ("https://evil.example/d", "", "another host than the control plane"),
        ("https:///d", "", "another host than the control plane"),
    ],
)
def test_a_refused_page_says_why(uri: str, server: str, why: str) -> None:
    assert why in (uri_problem(uri, server) or "")


def test_an_unusable_approval_ends_the_flow_with_its_reason() -> None:
    flow = DeviceFlow(started(), 0.0)
    flow.receive(GrantUnusable("no code"), 5.0)
    assert flow.next_step(5.0) == Refused("no code")


def test_an_expiry_names_the_last_trouble_only() -> None:
    flow = DeviceFlow(started(), 0.0)
    flow.receive(GrantFailed("no route"), 5.0)
    flow.receive(GrantPending(), 10.0)
    flow.receive(GrantExpired(), 15.0)
    assert flow.next_step(15.0) == Expired("")
    troubled = DeviceFlow(started(), 0.0)
    troubled.receive(GrantFailed("no route"), 5.0)
    troubled.receive(GrantExpired(), 15.0)
    assert troubled.next_step(15.0) == Expired("no route")


@pytest.mark.parametrize(("asked", "used"), [(0.5, 1.0), (1.5, 1.5), (299.0, 299.0), (301.0, 300.0)])
def test_the_interval_has_bounds(asked: float, used: float) -> None:
    flow = DeviceFlow(started(interval=asked, expires_in=10_000), 0.0)
    assert flow.next_step(0.0) == PollGrant(used)
    flow.receive(GrantFailed("down"), 0.0)
    assert flow.next_step(0.0) == PollGrant(used)
    flow.receive(GrantFailed("down"), 0.0)
    assert flow.next_step(0.0) == PollGrant(min(2 * used, max(60.0, used)))
    flow.receive(GrantSlowDown(), 0.0)
    assert flow.next_step(0.0) == PollGrant(min(used + 5, 300.0))


def test_a_negative_lifetime_is_none() -> None:
    assert DeviceFlow(started(expires_in=-100), 50.0).expires_at == 50.0
    assert DeviceFlow(started(expires_in=0.5), 50.0).expires_at == 50.5


def test_an_approval_page_may_be_on_the_host_that_is_configured() -> None:
    for uri, fine in (
        ("https://login.example/d", True),
        ("https://plane.example/d", True),
        ("https://LOGIN.example:8443/d", True),
        ("http://login.example/d", False),
        ("https://a.login.example/d", False),
        ("https://user@login.example/d", False),
    ):
        assert (uri_problem(uri, "https://plane.example", "Login.example") is None) is fine
    assert uri_problem("https:///device", "https://plane.example", "xxxx")


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_refused_unless_it_is_a_url(uri: str, server: str) -> None:
    assert uri_problem(uri, server)
    assert uri_problem(f"https://plane.example/{uri.strip()}", "https://plane.example") in (None, "it is not a URL")


HOSTS = ("plane.example", "login.example", "evil.example", "plane.example.evil.example")


@given(
    scheme=st.sampled_from(["https", "HTTPS", "http", "ftp", "javascript"]),
    user=st.sampled_from(["", "", "", "user@", "user:pass@", "plane.example@", ":@"]),
    host=st.sampled_from([*HOSTS, "Plane.Example", ""]),
    port=st.sampled_from(["", ":443", ":8443", ":99999", ":x"]),
    server=st.sampled_from(["https", "http"]),
    approval=st.sampled_from(["", "login.example"]),
)
def test_any_url_is_accepted_or_refused_by_its_parts(
    scheme: str, user: str, host: str, port: str, server: str, approval: str
) -> None:
    problem = uri_problem(f"{scheme}://{user}{host}{port}/device", f"{server}://plane.example", approval)
    ours = host.lower() == "plane.example"
    safe = scheme.lower() == "https" or (scheme == server == "http" and ours)
    right = safe and not user and (ours or (host == approval != "")) and port not in (":99999", ":x")
    assert (problem is None) is right, problem
