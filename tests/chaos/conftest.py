"""The real Ray that faults are injected into."""

from tests.support.live_cluster import cluster, gateway, pool

__all__ = ["cluster", "gateway", "pool"]
