"""The coordination server: who is in the mesh, what may talk to what, and who must hear about a change.

It never touches a kernel. What a host must do leaves here as messages of `controller.wire`.
"""
