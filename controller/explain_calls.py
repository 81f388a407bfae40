"""Why a call of a tool is allowed or not: asked of the same function as the gateways' tables are tested against.

The answer comes from the mesh in memory; no SQL here, and nothing of packets.
"""

from datetime import datetime

from controller.explain import explained
from controller.mesh.hub import Hub
from controller.problems import Kind, Refused
from controller.wire.calls import judge, needed, taking_out
from controller.wire.services import CallExplanation, CallQuestion

__all__ = ["explain_call"]


def explain_call(hub: Hub, question: CallQuestion, now: datetime) -> CallExplanation:
    """May the node call this tool of the service, with these arguments?

    Symbolic links on the serving host are not known here: a path that leads out through one is refused there only.
    Raises Refused: NOT_FOUND for a node or service that does not exist, INVALID for a service without tools.
    """
    node = hub.find(question.source)
    if node is None:
        raise Refused(Kind.NOT_FOUND, f"no node is named {question.source!r} or has that id: `GET /nodes` lists them")
    name = question.service.removeprefix("svc:")
    policy = hub.gateway_policy(name)
    if policy is None:
        raise Refused(
            Kind.NOT_FOUND, f"the policy in force has no service {name!r} with tools: `GET /services` lists them"
        )
    if policy.services[name].kind != "mcp":
        raise Refused(Kind.INVALID, f"{name!r} is of kind http and has no tools: ask about its port")
    params = {"name": question.tool, "arguments": question.arguments}
    # A node that is not active is in no set, so nothing is granted to it.
    verdict = judge(policy, node.addresses[0], name, "tools/call", params, now=now.timestamp())
    revision, document = hub.policy()
    refusal = verdict.refusal
    out = taking_out(policy, node.addresses[0], name, question.tool, now.timestamp()) if refusal is not None else ()
    return CallExplanation(
        source=node.name,
        service=name,
        tool=question.tool,
        allowed=verdict.allowed,
        grants=tuple(explained(hub, grant) for grant in document.grants if grant.id in verdict.grants),
        taken_out_by=tuple(explained(hub, grant) for grant in document.grants if grant.id in out),
        reason=refusal.message if refusal is not None else None,
        needed=needed(name, refusal) if refusal is not None else "",
        policy_revision=revision,
    )
