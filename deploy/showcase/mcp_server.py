"""An MCP server as anybody would write one with the official SDK. It knows nothing of the mesh but its own address."""

import argparse

from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings

server = MCPServer("warehouse", log_level="WARNING")


@server.tool()
def pack(parcel: str) -> str:
    """Pack a parcel and say what is in it."""
    return f"packed: {parcel}"


@server.tool()
def ship(parcel: str, to: str) -> str:
    """Send a parcel to a city."""
    return f"shipped to {to}: {parcel}"


@server.tool()
def discard(parcel: str) -> str:
    """Throw a parcel away."""
    return f"gone for ever: {parcel}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="the only address to listen on")
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    # The SDK refuses Host headers that it does not expect (DNS rebinding); ours is the mesh address.
    expected = TransportSecuritySettings(allowed_hosts=[f"{options.address}:{options.port}"])
    server.run("streamable-http", host=options.address, port=options.port, transport_security=expected)


if __name__ == "__main__":
    main()
