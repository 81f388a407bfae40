"""The only privileged code: it reads and writes this host's kernel, and knows nothing of controllers or files.

`wireguard` and `userspace` are the two backends for the tunnel itself; `links` has addresses and routes, `firewall`
the nftables table that `ruleset` compiles, `events` tells when somebody else changed any of it.
"""
