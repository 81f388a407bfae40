"""status: the mesh in ten lines. ca: what clients of its services trust."""

from controller.client.output import detail, lasting, note, plain, print_json
from controller.client.session import connect

from .help import examples, group
from .options import JsonFlag

__all__ = ["app"]


app = group("The mesh as a whole.", "wardmesh status")


@app.command(epilog=examples("wardmesh status", "wardmesh status --json"))
def status(json: JsonFlag = False) -> None:
    """Show the mesh as the controller sees it."""
    with connect() as controller:
        found = controller.status()
    if json:
        print_json(found)
        return
    lag = f", the longest for {lasting(found.lag)}" if found.lag is not None else ""
    behind = f", {found.behind} behind the newest revision{lag}" if found.behind else ""
    detail(
        (
            ("mesh", f"{found.mesh.name} ({found.mesh.id}), domain {found.mesh.domain}"),
            ("controller", f"{controller.url}, version {plain(found.version)}"),
            ("prefixes", f"{found.mesh.prefix4} {found.mesh.prefix6}"),
            ("addresses", f"{found.addresses_used} of {found.addresses_total} in use"),
            ("revision", str(found.revision)),
            ("policy", f"revision {found.policy_revision}" if found.policy_revision else "none: nothing is allowed"),
            ("nodes", f"{found.nodes}, {found.online} online{behind}"),
        )
    )
    if found.pending:
        note(f"{found.pending} waiting for approval: `wardmesh node list --state pending`")


@app.command(epilog=examples("wardmesh ca > mesh-ca.pem", "curl --cacert mesh-ca.pem https://…"))
def ca() -> None:
    """Print the mesh's CA certificate (PEM), for clients that call services over https."""
    with connect() as controller:
        print(controller.status().mesh.ca, end="")
