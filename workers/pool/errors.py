"""How the pool says no. Apart from its other files so that the command line can catch it without importing Ray."""

from __future__ import annotations


class PoolError(Exception):
    """What was asked of the pool cannot be done; one line per reason."""
