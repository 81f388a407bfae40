"""An hour of a mesh in which something happens every second, made as fast as it can be: who comes, goes, is changed.

Knows nothing of measuring. What it does follows from a number, so that every run does the same.
"""

from collections.abc import Callable, Sequence
from typing import Final

import httpx

from controller.wire.enrol import JoinString
from tests.bench.agents.streams import Streams
from tests.control.hosts import Host, wireguard_key

__all__ = ["HOUR", "Churn", "move"]

HOUR: Final = 3600  # events
_GRANT: Final = {"from": ["tag:g0"], "to": ["tag:g0"], "ip": ["tcp:22"], "ttl": 60, "reason": "churn"}
_FOR_A_GROUP: Final = "  - {from: ['tag:g0'], to: ['tag:g0'], ip: ['tcp:444']}\n"
_FOR_ALL: Final = "  - {from: ['*'], to: ['node:beacon'], ip: ['tcp:54']}\n"


def move(api: httpx.Client, name: str, number: int) -> int:
    """Give a static peer another endpoint; the revision that this made."""
    path = f"/nodes/id-{name}"
    body = {"endpoints": [f"192.0.2.{number % 250 + 1}:{1000 + number % 60_000}"]}
    return int(_done(api.patch(path, json=body, headers={"if-match": "*"})).json()["revision"])


class Churn:
    """What happens, by number. `names`: of agents that may be disconnected, with the process of each."""

    def __init__(self, api: httpx.Client, groups: Sequence[Streams], names: Sequence[tuple[int, str]]) -> None:
        self._api, self._groups, self._names = api, groups, names
        self._policy: str = _done(api.get("/policy")).json()["text"]
        self._grants: list[str] = []

    def event(self, number: int) -> None:
        """Of a minute's 60 events, 28 are a host that comes back and 24 a peer that moves."""
        in_hour, in_minute = number % HOUR, number % 60
        if in_hour in (0, HOUR // 2):
            self._put_policy(_FOR_ALL if in_hour else "")
        elif in_minute in _MINUTE:
            _MINUTE[in_minute](self, number)
        elif in_minute % 2:
            self._come_back(number)
        else:
            move(self._api, "mover-0", number)

    def _put_policy(self, more: str) -> None:
        _done(self._api.put("/policy", json={"text": self._policy + more}, headers={"if-match": "*"}))

    def _change_policy(self, number: int) -> None:
        self._put_policy(_FOR_A_GROUP if number // 60 % 2 else "")

    def _come_back(self, number: int) -> None:
        process, name = self._names[number % len(self._names)]
        self._groups[process].ask("disconnect", [name])
        self._groups[process].ask("connect", [name])

    def _join_and_leave(self, number: int) -> None:
        join = _done(self._api.post("/enrolment-keys", json={"tags": ["tag:g0"]})).json()["join"]
        guest = Host(f"guest-{number}")
        enrolled = _done(self._api.post("/enrol", json=guest.request(JoinString.decode(join).key))).json()
        _done(self._api.delete(f"/nodes/{enrolled['node_id']}"))

    def _add_and_remove_peer(self, number: int) -> None:
        body = {"name": f"peer-{number}", "public_key": wireguard_key(), "tags": ["tag:g0"]}
        peer = _done(self._api.post("/static-peers", json=body)).json()
        _done(self._api.delete(f"/nodes/{peer['id']}"))

    def _grant(self, _: int) -> None:
        self._grants.append(_done(self._api.post("/grants", json=_GRANT)).json()["id"])

    def _end_grant(self, _: int) -> None:
        """End one before its time; every other one ends by itself."""
        if self._grants:
            _done(self._api.delete(f"/grants/{self._grants.pop()}"))


_MINUTE: Final[dict[int, Callable[[Churn, int], None]]] = {
    1: Churn._change_policy,
    10: Churn._join_and_leave,
    20: Churn._grant,
    25: Churn._add_and_remove_peer,
    30: Churn._end_grant,
    40: Churn._join_and_leave,
    50: Churn._grant,
    55: Churn._add_and_remove_peer,
}


def _done(answer: httpx.Response) -> httpx.Response:
    return answer.raise_for_status()
