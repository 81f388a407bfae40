"""`python -m agentd.gateway`."""

from .main import main

main()
