"""What the kernels of the mesh have counted by grant: asked of the hosts that are online, and added up. No SQL here."""

from collections import Counter, defaultdict

from controller.asking import Questions
from controller.mesh.hub import Hub
from controller.problems import Kind, Refused
from controller.records import NodeRecord
from controller.wire.rest import DeniedCount, GrantCount, PolicyCounters

__all__ = ["counters"]


async def counters(hub: Hub, questions: Questions, node: str | None = None) -> PolicyCounters:
    """Of all hosts that are online, or of one, by name or id. Raises Refused: NOT_FOUND for one that does not exist."""
    hosts = {host.id: host.name for host in _hosts(hub, node)}
    answers = await questions.ask(dict.fromkeys(hosts, ()), counters=True)
    told = {hosts[node_id]: answer for node_id, answer in answers.items() if answer.error is None}
    accepted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, answer in told.items():
        for grant, packets in answer.accepted.items():
            accepted[grant][name] += packets
    found = [
        GrantCount(grant=grant, accepted=by_host.total(), hosts=dict(by_host.most_common()))
        for grant, by_host in accepted.items()
    ]
    return PolicyCounters(
        grants=tuple(sorted(found, key=lambda count: (-count.accepted, count.grant))),
        denied=tuple(DeniedCount(node=name, denied=told[name].denied) for name in sorted(told) if told[name].denied),
        asked=len(hosts),
        silent=tuple(sorted(set(hosts.values()) - set(told))),
    )


def _hosts(hub: Hub, node: str | None) -> list[NodeRecord]:
    if node is None:
        return hub.online()
    record = hub.find(node)
    if record is None:
        raise Refused(Kind.NOT_FOUND, f"no node is named {node!r} or has that id: `GET /nodes` lists them")
    return [record] if hub.presence(record.id).online else []
