"""Strict HTTP/1.1 on asyncio protocols, for uvloop and httptools (llhttp): the server's side and the client's.

Knows RFC 9110 and 9112, limits, time and back-pressure; nothing of MCP, callers or policy.
"""
