"""The systems, a room each; no room imports another."""
