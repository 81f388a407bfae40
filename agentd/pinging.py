"""`agentd ping`: asks the daemon to ask a peer, again and again, and prints what it said."""

import time
from statistics import fmean
from typing import Annotated, Final

import typer
from pydantic import Field

from controller.wire.base import Message, NodeName

from .config import Config
from .own_daemon import ask_daemon
from .path_messages import PingRequest, Pong

__all__ = ["ping"]

_PATIENCE: Final = 2.0  # seconds for an answer
_PATHS: Final = {"lan": "directly, on the same network", "direct": "directly", "relay": "by way of relay"}


class _Summary(Message):
    """What `agentd ping --json` prints. `loss` is the part without an answer, from 0 to 1."""

    name: NodeName
    sent: int
    received: int
    loss: float
    rtt_min: Annotated[float | None, Field(description="seconds")]
    rtt_mean: float | None
    rtt_max: float | None
    pongs: tuple[Pong, ...]


def ping(config: Config, peer: str, *, count: int, interval: float, json: bool) -> bool:
    """True when at least one question was answered. Raises AgentError, typer.BadParameter.

    An interruption ends it with the totals so far, and is raised again.
    """
    try:
        request = PingRequest(peer=peer, timeout=_PATIENCE)
    except ValueError:
        raise typer.BadParameter(f"{peer[:40]!r} is nobody's name: give one of 1 to 300 characters") from None
    pongs: list[Pong] = []
    try:
        for number in range(count):
            started = time.monotonic()
            pongs.append(ask_daemon(config, request, Pong))
            if not json:
                typer.echo(_line(pongs[-1]))
            if number < count - 1:
                # The interval that was asked for, whatever the answer took; this process has nothing else to do.
                time.sleep(max(0.0, started + interval - time.monotonic()))
    except KeyboardInterrupt:
        if pongs:
            _conclude(_summarised(pongs), json=json)
        raise
    summary = _summarised(pongs)
    _conclude(summary, json=json)
    return summary.received > 0


def _conclude(summary: _Summary, *, json: bool) -> None:
    typer.echo(summary.model_dump_json(indent=2) if json else _totals(summary))


def _summarised(pongs: list[Pong]) -> _Summary:
    times = [pong.rtt for pong in pongs if pong.rtt is not None]
    return _Summary(
        name=pongs[-1].name,
        sent=len(pongs),
        received=len(times),
        loss=round(1 - len(times) / len(pongs), 4),
        rtt_min=min(times, default=None),
        rtt_mean=fmean(times) if times else None,
        rtt_max=max(times, default=None),
        pongs=tuple(pongs),
    )


def _line(pong: Pong) -> str:
    if pong.endpoint is None:
        return f"{pong.name}: no endpoint is known that it could be reached at: look at `agentd paths`"
    if pong.rtt is None:
        return f"{pong.name}: no answer from {pong.endpoint} within {_PATIENCE:.0f} s{_tunnel(pong)}"
    way = f"{_PATHS[pong.path]} {pong.relay or ''}".rstrip()
    return f"{pong.name} answers {way} from {pong.endpoint} in {pong.rtt * 1000:.1f} ms"


def _tunnel(pong: Pong) -> str:
    if pong.handshake_age is None:
        return "; WireGuard has shaken hands with it never"
    return f"; WireGuard's last handshake was {pong.handshake_age:.0f} s ago"


def _totals(summary: _Summary) -> str:
    counted = f"{summary.sent} asked, {summary.received} answered, {summary.loss:.0%} lost"
    if summary.rtt_min is None or summary.rtt_mean is None or summary.rtt_max is None:
        return counted
    times = "/".join(f"{each * 1000:.1f}" for each in (summary.rtt_min, summary.rtt_mean, summary.rtt_max))
    return f"{counted}; min/mean/max {times} ms"
