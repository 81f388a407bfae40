"""How packets find a peer: which endpoints this host offers, and in which order it tries those of a peer. Pure."""
