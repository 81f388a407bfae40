"""What `tests/run` does once the environment exists: which part runs where, in isolation, and what came of it."""
