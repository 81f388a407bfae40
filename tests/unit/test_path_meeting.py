"""When the tunnel to a new peer is looked at, once, and in what order by the two hosts."""

from agentd.paths.meeting import Meeting

KEYS = {"n2": "key of n2", "n3": "key of n3"}


def met(*, leads: bool = True) -> Meeting:
    """A host whose peer n2 answered at 100 s."""
    meeting = Meeting()
    meeting.keep(KEYS)
    meeting.answered("n2", 100.0, leads=leads)
    return meeting


def looked(meeting: Meeting) -> float:
    """The time at which it looks next, after it has looked."""
    at = meeting.wake_at()
    assert at is not None
    assert meeting.look(at)
    return at


def test_a_peer_that_answered_is_late_within_a_second_and_not_before_it_is_looked_at() -> None:
    meeting = met()
    assert not meeting.look(100.2)
    assert not meeting.is_late("n2")
    assert 100 < looked(meeting) <= 101
    assert meeting.is_late("n2")
    assert not meeting.is_late("n3")


def test_the_two_hosts_of_a_pair_do_not_begin_at_the_same_time() -> None:
    assert looked(met(leads=False)) - looked(met(leads=True)) >= 0.5


def test_a_peer_is_late_once_however_often_it_answers() -> None:
    meeting = met()
    looked(meeting)
    assert meeting.is_late("n2")
    meeting.keep(KEYS)
    meeting.answered("n2", 125.0, leads=True)
    assert meeting.wake_at() is None
    assert not meeting.is_late("n2")


def test_a_peer_stays_late_until_a_map_was_applied_that_was_made_after_it_was() -> None:
    meeting = met()
    looked(meeting)
    meeting.keep(KEYS)
    assert meeting.is_late("n2")


def test_a_peer_that_comes_back_or_has_another_key_is_looked_at_again() -> None:
    for between in ({}, KEYS | {"n2": "another key"}):
        meeting = met()
        looked(meeting)
        meeting.keep(between)
        meeting.keep(KEYS)
        assert not meeting.is_late("n2")
        meeting.answered("n2", 200.0, leads=True)
        assert meeting.wake_at() is not None


def test_who_is_no_peer_is_not_looked_at() -> None:
    meeting = met()
    meeting.keep({})
    assert meeting.wake_at() is None
    meeting.answered("n2", 101.0, leads=True)
    assert meeting.wake_at() is None
