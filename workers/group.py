"""The ranks of one tensor-parallel replica and the lines between them.

Rank 0 schedules; it tells every other rank over one TCP connection each what to run, and they meet in the collectives
of that run. The connections are authenticated by the pool's secret and carry bytes, never pickles. A rank that waits
here for its next order waits for ever: that its leader died it sees at once, and a leader that hangs is the pool
manager's to notice. Used by workers, ranks and the initializers that need several of them; knows no torch and no Ray.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Final

from workers.errors import DeviceLostError

READY: Final = b"ready"
GO: Final = b"go"


class RankLostError(DeviceLostError):
    """Another rank of the group is gone, so nothing can be run any more."""


class LeaderGroup:
    """Rank 0's end, with a line to each of the others; alone, it has none."""

    rank = 0

    def __init__(self, host: str, followers: Sequence[Connection] = ()) -> None:
        """`host` is the address of this rank's node."""
        self.host = host
        self.num_ranks = 1 + len(followers)
        self._followers = followers

    def broadcast(self, message: bytes) -> None:
        """Send to every other rank. Raises `RankLostError`."""
        with _loss_noticed():
            for follower in self._followers:
                follower.send_bytes(message)

    def barrier(self) -> None:
        """Wait until every rank has come here. Raises `RankLostError`."""
        with _loss_noticed():
            for follower in self._followers:
                _expect(follower, READY)
        self.broadcast(GO)


class FollowerGroup:
    """The end of a rank beyond the first."""

    def __init__(self, rank: int, num_ranks: int, host: str, leader_host: str, leader: Connection) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self.host = host
        self.leader_host = leader_host
        self._leader = leader

    def receive(self) -> bytes:
        """What rank 0 broadcasts next, however long that takes. Raises `RankLostError` when it has gone."""
        with _loss_noticed():
            return self._leader.recv_bytes()

    def barrier(self) -> None:
        with _loss_noticed():
            self._leader.send_bytes(READY)
            _expect(self._leader, GO)


RankGroup = LeaderGroup | FollowerGroup


class GroupListener:
    """Where the other ranks find rank 0."""

    def __init__(self, host: str, secret: str) -> None:
        self._host = host
        self._listener = Listener((host, 0), family="AF_INET", backlog=128, authkey=secret.encode())
        self.address = f"{host}:{self._listener.address[1]}"

    def accept(self, num_ranks: int) -> LeaderGroup:
        """Wait for all the others, then stop listening. Blocks; a rank that never comes ends with the load timeout."""
        followers: dict[int, Connection] = {}
        with self._listener:
            while len(followers) < num_ranks - 1:
                with contextlib.suppress(AuthenticationError, OSError, EOFError):  # strangers may knock
                    connection = self._listener.accept()
                    followers[int.from_bytes(connection.recv_bytes(), "little")] = _without_delay(connection)
        return LeaderGroup(self._host, [followers[rank] for rank in sorted(followers)])


def join_group(address: str, secret: str, rank: int, num_ranks: int, host: str) -> FollowerGroup:
    """Become a rank of the group whose leader listens at `address`. Raises `RankLostError`."""
    leader_host, _, port = address.rpartition(":")
    with _loss_noticed():
        leader = _without_delay(Client((leader_host, int(port)), family="AF_INET", authkey=secret.encode()))
        leader.send_bytes(rank.to_bytes(4, "little"))
    return FollowerGroup(rank, num_ranks, host, leader_host, leader)


@contextlib.contextmanager
def _loss_noticed() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, AuthenticationError) as error:
        raise RankLostError(f"another rank of the group is gone ({type(error).__name__})") from error


def _expect(connection: Connection, message: bytes) -> None:
    received = connection.recv_bytes()
    if received != message:
        raise RankLostError(f"a rank is out of step: {received[:16]!r} instead of {message!r}")


def _without_delay(connection: Connection) -> Connection:
    """Plans are small and go one way only, so Nagle's algorithm would hold each back for a delayed acknowledgement."""
    with socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
