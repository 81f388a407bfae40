"""What `deploy/demo` shows: three hosts on one machine, real daemons, a real MCP call. See deploy/README.md."""
