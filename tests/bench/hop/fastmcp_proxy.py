"""`python fastmcp_proxy.py URL PORT`: fastmcp's own proxy, as its documentation starts it. Runs in its environment."""

import sys

from fastmcp.server import create_proxy

if __name__ == "__main__":
    create_proxy(sys.argv[1]).run(
        transport="http", host="127.0.0.1", port=int(sys.argv[2]), path="/mcp", show_banner=False, log_level="error"
    )
