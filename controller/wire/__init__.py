"""The contract between controller, agentd and the command line: every message, and what it means.

Frozen values and pure functions only. Imports nothing else of the project, so that both sides can trust it.
"""
