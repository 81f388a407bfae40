"""The admin's side: a typed REST client and the `wardmesh` command.

Knows the wire contract and nothing else of the controller.
"""
