"""The real Ray of the tests that need one."""

from tests.support.live_cluster import cluster, gateway, pool

__all__ = ["cluster", "gateway", "pool"]
