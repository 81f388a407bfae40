"""The second half of the story: the same MCP server behind the gateway, with rules for its tools, and the records."""

import json
from typing import Any, Final

from tests.lab import eventually
from tests.lab.mesh import Agent

from .screen import Screen
from .world import BIN, REPOSITORY, SERVING, World

__all__ = ["URL", "listening_on", "start_server", "tools_have_rules"]

UPSTREAM_PORT: Final = 3000
URL: Final = "http://parcels.mesh.internal/mcp"
POLICY: Final = """\
services:
  parcels:
    on: [tag:tools]
    mcp: {upstream: "http://127.0.0.1:3000/mcp"}
grants:
  - from: [tag:agents]
    to: [svc:parcels]
    mcp:
      tools: [pack, ship]
      args: {ship: {to: {one_of: [Lyon, Turin]}}}
    note: agents pack, and ship to the two cities that are ours
tests:
  - from: tag:agents
    to: svc:parcels
    accept: {tools: [pack, {ship: {parcel: books, to: Turin}}]}
    deny: {tools: [discard, {ship: {parcel: books, to: Atlantis}}]}
"""
# What assistant tries, and what policy says of it. The arguments as a person types them.
ALLOWED: Final = ("ship", "parcel=books", "to=Turin")
WRONG_TOOL: Final = ("discard", "parcel=books")
WRONG_ARGUMENT: Final = ("ship", "parcel=books", "to=Atlantis")


def tools_have_rules(screen: Screen, world: World) -> None:
    service_is_declared(screen, world)
    tool_is_allowed(screen, world)
    tool_is_denied(screen, world)
    argument_is_denied(screen, world)
    calls_are_on_record(screen, world)


def service_is_declared(screen: Screen, world: World) -> None:
    with screen.step(
        "A service with rules for its tools: the gateway on warehouse serves it, under an address of its own"
    ):
        warehouse = world.agents[SERVING]
        start_server(warehouse, "127.0.0.1", UPSTREAM_PORT)
        screen.command("wardmesh policy apply policy.yaml")
        screen.block(POLICY)
        world.controller.put_policy(POLICY)
        world.wait_until_in_force()
        service = eventually(lambda: serving(world), timeout=60, interval=0.2, what="the gateway on warehouse")
        screen.command("wardmesh service list")
        screen.fact("name", f"{service['fqdn']}: {' '.join(service['addresses'])}, held by {service['holder']}")
        (process,) = warehouse.status()["gateway"]["processes"]
        facts = dict(line.split(":\t", 1) for line in lines_of(warehouse, f"/proc/{process}/status") if ":\t" in line)
        assert int(facts["CapEff"], 16) == 0, f"the gateway has capabilities: {facts['CapEff']}"
        screen.fact("gateway", f"process {process}, user id {facts['Uid'].split()[0]}, no capabilities")
        screen.fact("the server", f"listens on 127.0.0.1:{UPSTREAM_PORT} only, and knows nothing of the mesh")


def serving(world: World) -> dict[str, Any]:
    """The service, once its holder can answer."""
    found: dict[str, Any] = world.ask("service", "show", "parcels")
    assert found["healthy"], found["error"]
    return found


def tool_is_allowed(screen: Screen, world: World) -> None:
    with screen.step("assistant calls an allowed tool, by the service's name"):
        answer = attempted(screen, world, ALLOWED)
        assert answer.get("text") == "shipped to Turin: books", f"the call came to {answer}"
        # The server has three; what a caller may not use it does not see.
        assert sorted(answer["tools"]) == ["pack", "ship"], f"the list has {answer['tools']}"
        screen.fact("sees", f"{', '.join(answer['tools'])}, and not discard")
        screen.fact("answered", f"{answer['text']!r}  ({answer['call_ms']:.1f} ms)", "green")


def tool_is_denied(screen: Screen, world: World) -> None:
    with screen.step("A tool that no grant names is denied, and the model is told what would be needed"):
        refused(screen, attempted(screen, world, WRONG_TOOL), "discard")


def argument_is_denied(screen: Screen, world: World) -> None:
    with screen.step("So is an argument that the grant does not allow"):
        refused(screen, attempted(screen, world, WRONG_ARGUMENT), "to")
        arguments = json.dumps(dict(argument.split("=") for argument in WRONG_ARGUMENT[1:]))
        question = ("--from", "assistant", "--to", "svc:parcels", "--tool", WRONG_ARGUMENT[0], "--args", arguments)
        screen.command(f"wardmesh policy explain {' '.join(question[:-1])} '{arguments}'")
        screen.block(world.controller.wardmesh("policy", "explain", *question, check=False))


def attempted(screen: Screen, world: World, call: tuple[str, ...]) -> dict[str, Any]:
    tool, *arguments = call
    screen.fact("called", f"{tool}({', '.join(arguments)})")
    return world.call("assistant", URL, tool, *arguments)


def refused(screen: Screen, answer: dict[str, Any], word: str) -> None:
    assert "refused" in answer, f"the call was not denied: {answer}"
    assert word in answer["refused"], f"the error does not say what was wrong: {answer['refused']}"
    screen.fact("denied", f"{answer['refused']}  (error {answer['code']})", "green")


def calls_are_on_record(screen: Screen, world: World) -> None:
    with screen.step("The audit trail, at the controller: who called what, and what was decided"):
        expected = {("ship", None), ("discard", 40300), ("ship", 40301)}
        eventually(
            lambda: expected <= decisions(world), timeout=30, interval=0.2, what="the records of the three calls"
        )
        words = ("audit", "calls", "--service", "parcels")
        screen.command(f"wardmesh {' '.join(words)}")
        screen.block(world.controller.wardmesh(*words))


def decisions(world: World) -> set[tuple[str, int | None]]:
    """Tool and error code (None: allowed) of each call of a tool that is on record."""
    records = [entry["record"] for entry in world.ask("audit", "calls", "--service", "parcels", "--all")]
    calls = [record for record in records if record.get("decision") and record["call"]["method"] == "tools/call"]
    return {(record["call"]["name"], record["decision"].get("deny")) for record in calls}


def start_server(agent: Agent, address: str, port: int) -> None:
    """The MCP server on one address of the host, listening when this returns."""
    agent.host.start(BIN / "python", "-m", "deploy.showcase.mcp_server", address, str(port), cwd=REPOSITORY)
    eventually(lambda: listening_on(agent, port), timeout=60, what="the MCP server")
    assert listening_on(agent, port) == [f"{address}:{port}"]


def listening_on(agent: Agent, port: int) -> list[str]:
    """The local addresses of the listening TCP sockets with this port, as the kernel lists them."""
    lines = agent.host.run("ss", "-Hltn", f"sport = :{port}").stdout.splitlines()
    return [line.split()[3] for line in lines]


def lines_of(agent: Agent, file: str) -> list[str]:
    return agent.host.run("cat", file).stdout.splitlines()
