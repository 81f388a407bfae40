"""The life of the connection: which event may follow which phase, and how long a host stays away."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.session import Event, Phase, Session, step

BROKEN = [Event.LOST, Event.GAP, Event.REFUSED]


def after(*events: Event, start: Session | None = None, chance: float = 0.999) -> Session:
    session = start or Session()
    for event in events:
        session = step(session, event, chance)
    return session


STREAMING = after(Event.PAUSE_OVER, Event.OPENED, Event.MAP)


def test_the_good_way() -> None:
    phases = [after(*[Event.PAUSE_OVER, Event.OPENED, Event.MAP][:n]).phase for n in range(4)]
    assert phases == [Phase.WAITING, Phase.CONNECTING, Phase.GREETING, Phase.STREAMING]


def test_the_first_attempt_is_at_once() -> None:
    assert Session().pause == 0


def test_a_lost_stream_is_tried_again_within_a_second() -> None:
    assert 0 < after(Event.LOST, start=STREAMING).pause <= 1


def test_pauses_double_to_a_minute_and_no_further() -> None:
    session, pauses = STREAMING, []
    for _ in range(12):
        session = after(Event.LOST, start=session)
        pauses.append(round(session.pause))
        session = after(Event.PAUSE_OVER, start=session)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]


def test_half_of_a_pause_is_chance() -> None:
    assert after(Event.LOST, start=STREAMING, chance=0).pause == 0.5


def test_a_map_ends_the_row_of_failures() -> None:
    session = after(
        Event.LOST, Event.PAUSE_OVER, Event.LOST, Event.PAUSE_OVER, Event.OPENED, Event.MAP, start=STREAMING
    )
    assert after(Event.LOST, start=session).pause < 1


def test_a_controller_that_answers_but_never_with_a_map_is_asked_less_and_less() -> None:
    session = STREAMING
    for _ in range(8):
        session = after(Event.GAP, Event.PAUSE_OVER, Event.OPENED, start=session)
    assert after(Event.GAP, start=session).pause > 50


def test_a_controller_that_restarts_is_tried_at_once_however_often() -> None:
    session = STREAMING
    for _ in range(5):
        session = after(Event.SHUTDOWN, start=session)
        assert session.pause <= 1
        session = after(Event.PAUSE_OVER, Event.OPENED, Event.MAP, start=session)


def test_after_a_gap_the_host_asks_for_a_snapshot_until_it_has_a_map() -> None:
    session = after(Event.GAP, Event.PAUSE_OVER, Event.OPENED, start=STREAMING)
    assert not session.resume
    assert not after(Event.LOST, start=session).resume
    assert after(Event.MAP, start=session).resume


def test_a_lost_connection_is_resumed() -> None:
    assert after(Event.LOST, start=STREAMING).resume


def test_two_hosts_with_one_node_do_not_take_the_stream_from_each_other_all_the_time() -> None:
    session = after(Event.REPLACED, start=STREAMING)
    assert session.phase is Phase.WAITING
    assert session.pause >= 30


def test_a_disabled_node_asks_soon_and_then_less_and_less() -> None:
    session, pauses = STREAMING, []
    for _ in range(7):
        session = after(Event.DISABLED, start=session)
        pauses.append(round(session.pause))
        session = after(Event.PAUSE_OVER, Event.OPENED, start=session)
    assert pauses == [1, 2, 4, 8, 16, 32, 60]


def test_a_removed_node_never_comes_back() -> None:
    session = after(Event.REMOVED, start=STREAMING)
    assert session.phase is Phase.PARKED
    for event in Event:
        with pytest.raises(ValueError, match="cannot happen while parked"):
            step(session, event, 0)


def test_a_refused_certificate_is_renewed_whatever_the_clock_says() -> None:
    session = after(Event.PAUSE_OVER, Event.CERTIFICATE_REFUSED)
    assert session.renew
    assert after(Event.RENEWAL_DUE, Event.RENEWED, start=session) == Session(phase=Phase.CONNECTING, failures=1)


def test_a_failed_renewal_still_tries_the_old_certificate() -> None:
    assert after(Event.RENEWAL_DUE, Event.RENEWAL_FAILED).phase is Phase.CONNECTING


def test_a_node_that_learns_of_its_removal_when_it_renews_is_parked() -> None:
    assert after(Event.RENEWAL_DUE, Event.REMOVED).phase is Phase.PARKED


@given(st.lists(st.tuples(st.sampled_from(Event), st.floats(0, 0.999)), max_size=60))
def test_no_history_leads_to_a_pause_outside_the_bounds(history: list[tuple[Event, float]]) -> None:
    session = Session()
    for event, chance in history:
        try:
            session = step(session, event, chance)
        except ValueError:
            continue
        assert 0 <= session.pause <= 60
        assert session.pause == 0 or session.phase is Phase.WAITING


@pytest.mark.parametrize(("asked", "earliest", "latest"), [(7.0, 7, 8), (1.0, 1, 2), (86_400.0, 60, 61)])
def test_a_host_comes_back_at_the_time_that_the_controller_named_or_a_little_later(
    asked: float, earliest: float, latest: float
) -> None:
    refused = replace(after(Event.LOST, Event.PAUSE_OVER, start=STREAMING), least=asked)
    assert after(Event.LOST, start=refused, chance=0).pause == earliest
    assert earliest < after(Event.LOST, start=refused).pause < latest


def test_what_the_controller_named_once_does_not_hold_for_later() -> None:
    refused = replace(after(Event.LOST, Event.PAUSE_OVER, start=STREAMING), least=40.0)
    assert after(Event.LOST, Event.PAUSE_OVER, Event.LOST, start=refused).pause < 10
