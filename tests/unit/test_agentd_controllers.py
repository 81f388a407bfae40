"""Which controller a host talks to: it stays with one that works, and tries all before it begins again."""

from agentd.controllers import Controllers
from agentd.session import Event, Session, step

A, B, C = (f"https://{name}.example.com:8443" for name in "abc")


def test_a_host_that_was_told_of_no_others_has_the_one_that_it_joined_at() -> None:
    controllers = Controllers("n1", A)
    controllers.failed()
    assert (controllers.known, controllers.current) == ((A,), A)


def test_all_are_tried_before_the_first_again() -> None:
    controllers = Controllers("n1", A, [C, B, A])
    tried = []
    for _ in range(6):
        tried.append(controllers.current)
        controllers.failed()
    assert tried[0] == A
    assert set(tried[:3]) == {A, B, C}
    assert tried[3:] == tried[:3]


def test_the_one_in_use_is_kept_when_the_others_change() -> None:
    controllers = Controllers("n1", A, [B, C])
    controllers.failed()
    used = controllers.current
    controllers.learn([A])
    assert controllers.current == used
    controllers.failed()
    assert controllers.current == A


def test_the_one_that_the_host_joined_at_is_never_forgotten() -> None:
    controllers = Controllers("n1", f"{A}/", [B])
    controllers.learn([C])
    assert controllers.known == (A, C)


def test_hosts_of_one_controller_spread_over_the_others() -> None:
    second = set()
    for number in range(20):
        controllers = Controllers(f"n{number}", A, [B, C])
        controllers.failed()
        second.add(controllers.current)
    assert second == {B, C}


def test_pauses_grow_when_every_controller_was_tried() -> None:
    session, pauses = Session(choices=3), []
    for _ in range(9):
        session = step(step(session, Event.PAUSE_OVER, 0.999), Event.LOST, 0.999)
        pauses.append(round(session.pause))
    assert pauses == [1, 1, 1, 2, 2, 2, 4, 4, 4]
