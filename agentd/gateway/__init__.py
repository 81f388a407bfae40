"""The MCP gateway: its own unprivileged process between the tunnel and a host's MCP servers.

It knows callers by their mesh address, reads JSON-RPC, enforces the policy that agentd gives it and records what
happened. It touches no kernel state and imports nothing of agentd but the local API's messages.
"""
