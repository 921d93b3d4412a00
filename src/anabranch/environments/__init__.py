"""Worlds that answer a model while it writes: tools, and environments of several turns."""
