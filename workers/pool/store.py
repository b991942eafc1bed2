"""Where the pool's state is kept: the key-value store of the cluster's head, which lives as long as the cluster.

Its functions block the calling thread while the head is away: the manager, its only user, calls them on threads.
"""

from __future__ import annotations

from typing import Final

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from workers.pool.state import PoolState, decode_state, encode_state

_KEY: Final = b"pool-state"
_NAMESPACE: Final = b"aviary"


def load_state() -> PoolState | None:
    """What was saved last; None in a cluster that never had a pool."""
    data = _internal_kv_get(_KEY, namespace=_NAMESPACE)
    return None if data is None else decode_state(data)


def save_state(state: PoolState) -> None:
    _internal_kv_put(_KEY, encode_state(state), overwrite=True, namespace=_NAMESPACE)


def delete_state() -> None:
    _internal_kv_del(_KEY, namespace=_NAMESPACE)
