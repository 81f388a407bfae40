"""Mesh addresses under one name: what packet rules and MCP grants refer to, and what changes by element."""

from .base import Address, Message

__all__ = ["AddressSet"]


class AddressSet(Message):
    """Mesh addresses under one name: `tag:agents`, `node:db1`, or `svc:github` for the addresses of a service."""

    name: str
    addresses: frozenset[Address]
