"""The verbs of `wardmesh`, a file per group. Each asks the REST client and prints; none knows HTTP."""
