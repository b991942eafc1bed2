"""Which replica gets the next request: the one that has the fewest, found without looking at all of them.

The rule is the gateway's (`ModelLane.assign`); a thousand replicas and a million requests want it in constant time.
Replicas stand in one pile for each number of requests.
"""

from __future__ import annotations

from aviary.simulation.replica import SimulatedReplica


class LeastLoaded:
    """Replicas that take requests, at most `limit` each."""

    def __init__(self, limit: int) -> None:
        self._piles: list[dict[SimulatedReplica, None]] = [{} for _ in range(limit + 1)]
        self._limit = limit
        self._least = limit
        """No pile below it has a replica."""
        self.room = 0
        """Requests that may be sent now, all replicas together."""

    def add(self, replica: SimulatedReplica) -> None:
        num_requests = len(replica.in_flight)
        self._piles[num_requests][replica] = None
        self._least = min(self._least, num_requests)
        self.room += self._limit - num_requests

    def remove(self, replica: SimulatedReplica) -> None:
        num_requests = len(replica.in_flight)
        del self._piles[num_requests][replica]
        self.room -= self._limit - num_requests

    def take(self) -> SimulatedReplica:
        """The one to send a request to, which the caller then does. There must be room."""
        while not self._piles[self._least]:
            self._least += 1
        replica = next(iter(self._piles[self._least]))
        self._move(replica, self._least, self._least + 1)
        return replica

    def note_ended(self, replica: SimulatedReplica, num_ended: int) -> None:
        """So many of its requests have ended just now."""
        num_requests = len(replica.in_flight)
        self._move(replica, num_requests + num_ended, num_requests)
        self._least = min(self._least, num_requests)

    def idlest(self) -> SimulatedReplica:
        """The one that has least to finish. There must be one."""
        return next(next(iter(pile)) for pile in self._piles if pile)

    def _move(self, replica: SimulatedReplica, before: int, after: int) -> None:
        del self._piles[before][replica]
        self._piles[after][replica] = None
        self.room += before - after
