"""What a mirror needs of a store of objects, S3 or Google's: list, read a range of one version, know its checksum.

The seam between `mirror` and `ranged_download` above it and the two clients below it, which turn whatever their
libraries raise into a `SourceError` of one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from workers.errors import SourceError

NUM_CONNECTIONS = 8
"""Ranges fetched at the same time, and so connections that a client should be able to hold."""
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
"""Longest silence within an answer."""
MAX_SMALL_BYTES = 1 << 20


class TransientSourceError(SourceError):
    """The request failed in a way that another attempt may not."""


class ObjectChangedError(SourceError):
    """The object is not of the version that was asked for any more."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One version of one object."""

    uri: str
    bucket: str
    key: str
    size_bytes: int
    version: str
    """ETag or generation: differs whenever the content does."""


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a file's content must hash to. `algorithm` is one of `checksums`, `digest` in hexadecimal."""

    algorithm: str
    digest: str
    origin: str
    """Who says so, for people."""


class ObjectStore(Protocol):
    """A client with its credentials. Safe to use from several threads."""

    def list_files(self, bucket: str, prefix: str) -> Iterator[RemoteFile]:
        """All objects whose key begins with `prefix`, among them the empty ones that stand for folders."""

    def read_small(self, bucket: str, key: str) -> bytes | None:
        """The content of a small object, None when there is none of that key."""

    def read_range(self, file: RemoteFile, start: int, stop: int, write: Callable[[bytes], object]) -> None:
        """Hand bytes `start` to `stop` of exactly this version to `write`, piece by piece."""

    def checksum_of(self, file: RemoteFile) -> Checksum | None:
        """What the store itself knows about the content; None when that is nothing that can be checked."""
