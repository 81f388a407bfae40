"""The host daemon: turns what the controller says into kernel state, and keeps it that way."""
