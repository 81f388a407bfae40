"""The life of the connection to the controller, as a pure state machine: the table below is the code.

Each phase ends with one event; `step` says which phase follows and how long to wait first. No I/O, no clock, no
randomness: the caller brings them.
"""

from dataclasses import dataclass
from enum import StrEnum, auto
from typing import Final

__all__ = ["Event", "Phase", "Session", "step"]


class Phase(StrEnum):
    """What the connection is doing."""

    WAITING = auto()  # for the pause to end
    RENEWING = auto()  # asking for the next certificate, over REST
    CONNECTING = auto()  # TCP, TLS, WebSocket
    GREETING = auto()  # Hello is sent; the first map has not come
    STREAMING = auto()  # the map is kept current
    PARKED = auto()  # this node was removed: nothing to do until a person acts


class Event(StrEnum):
    """Why a phase ended."""

    PAUSE_OVER = auto()
    RENEWAL_DUE = auto()
    RENEWED = auto()
    RENEWAL_FAILED = auto()
    OPENED = auto()
    CERTIFICATE_REFUSED = auto()  # TLS: the controller takes our certificate for expired
    MAP = auto()  # a snapshot, or a delta that folds
    GAP = auto()  # a delta that does not continue our map
    LOST = auto()  # no connection, or it broke
    SHUTDOWN = auto()  # Bye: the controller stops and will be back
    REFUSED = auto()  # Bye: the controller found fault with what we sent
    REPLACED = auto()  # Bye: another agentd connected as this node
    DISABLED = auto()  # Bye: an admin may enable the node again
    REMOVED = auto()  # Bye: the node is gone for good


_CLOSING: Final = {
    Event.LOST: Phase.WAITING,
    Event.GAP: Phase.WAITING,
    Event.SHUTDOWN: Phase.WAITING,
    Event.REFUSED: Phase.WAITING,
    Event.REPLACED: Phase.WAITING,
    Event.DISABLED: Phase.WAITING,
    Event.REMOVED: Phase.PARKED,
}

_TABLE: Final[dict[Phase, dict[Event, Phase]]] = {
    Phase.WAITING: {Event.PAUSE_OVER: Phase.CONNECTING, Event.RENEWAL_DUE: Phase.RENEWING},
    # A renewal that fails early is no reason to stay away: the old certificate may still be good.
    Phase.RENEWING: {
        Event.RENEWED: Phase.CONNECTING,
        Event.RENEWAL_FAILED: Phase.CONNECTING,
        Event.REMOVED: Phase.PARKED,
    },
    Phase.CONNECTING: {
        Event.OPENED: Phase.GREETING,
        Event.CERTIFICATE_REFUSED: Phase.WAITING,
        **_CLOSING,
    },
    Phase.GREETING: {Event.MAP: Phase.STREAMING, Event.CERTIFICATE_REFUSED: Phase.WAITING, **_CLOSING},
    Phase.STREAMING: _CLOSING,
    Phase.PARKED: {},
}

# Seconds. The first pause is short, so that a restarted controller has its hosts back at once; half of each is random,
# so that they do not come back in one instant.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Session:
    """Where the connection stands.

    `resume`: the next Hello may name the revision that this host holds. `pause`: seconds that WAITING lasts.
    `renew`: a renewal is due, whatever this host's clock says about the certificate. `choices`: how many controllers
    there are to go on to; pauses grow only when all were tried. `least`: seconds that the controller asked to wait.
    """

    phase: Phase = Phase.WAITING
    failures: int = 0
    pause: float = 0.0
    resume: bool = True
    renew: bool = False
    choices: int = 1
    least: float = 0.0


def step(session: Session, event: Event, chance: float) -> Session:
    """The session after `event`; `chance` is a random number in [0, 1). Raises ValueError for an impossible event."""
    phase = _TABLE[session.phase].get(event)
    if phase is None:
        raise ValueError(f"{event} cannot happen while {session.phase}")
    failures = _failures(session, event)
    return Session(
        phase=phase,
        failures=failures,
        pause=_pause(event, (failures - 1) // session.choices, session.least, chance)
        if phase is Phase.WAITING
        else 0.0,
        resume=_resume(session, event),
        renew=event is Event.CERTIFICATE_REFUSED,
        choices=session.choices,
    )


def _failures(session: Session, event: Event) -> int:
    if event is Event.MAP:
        return 0
    lost = event in {Event.LOST, Event.CERTIFICATE_REFUSED, Event.GAP, Event.REFUSED, Event.DISABLED}
    return session.failures + 1 if lost else session.failures


def _resume(session: Session, event: Event) -> bool:
    if event is Event.MAP:
        return True
    # After a gap our revision is worth nothing; a disabled node has emptied its map by itself.
    return session.resume and event not in {Event.GAP, Event.DISABLED, Event.REMOVED}


def _pause(event: Event, rounds: int, least: float, chance: float) -> float:
    if event is Event.REPLACED:
        # Two hosts with one node would take the stream from each other for ever; a person has to end it.
        longest = _LONGEST_PAUSE
    else:
        longest = min(_FIRST_PAUSE * 2 ** min(max(rounds, 0), 16), _LONGEST_PAUSE)
    # A controller that names a time gives each of its hosts another one: up to a second more keeps them in that order.
    return min(least, _LONGEST_PAUSE) + chance if least else longest * (0.5 + chance / 2)
