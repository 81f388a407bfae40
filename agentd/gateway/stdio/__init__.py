"""MCP servers that speak on standard input and output: spawned, supervised, and presented as an upstream.

One process serves many callers (or each caller has its own); ids, progress tokens and sessions are kept apart here, so
that no caller hears or cancels what is another's.
"""

from .upstream import StdioPool

__all__ = ["StdioPool"]
