"""Checksums of files: those a mirror publishes in SHA256SUMS, and those that object stores keep.

Called when a file is completely fetched. Knows nothing of where the file came from.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from workers.errors import SourceError
from workers.sources.cache import READ_BYTES
from workers.sources.object_store import Checksum

SHA256SUMS: Final = "SHA256SUMS"
_LINE: Final = re.compile(r"(?P<digest>[0-9a-fA-F]{64}) [ *](?:\./)?(?P<name>.+)")


class _Digest(Protocol):
    def update(self, data: bytes, /) -> object: ...
    def hexdigest(self) -> str: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def _crc32c() -> _Digest:
    import google_crc32c

    class Crc32c:
        def __init__(self) -> None:
            self._checksum = google_crc32c.Checksum()

        def update(self, data: bytes, /) -> None:
            self._checksum.update(data)

        def hexdigest(self) -> str:
            digest: bytes = self._checksum.digest()
            return digest.hex()

    return Crc32c()


def _new_digest(algorithm: str) -> _Digest:
    if algorithm == "crc32":
        return _Crc32()
    if algorithm == "crc32c":
        return _crc32c()
    return hashlib.new(algorithm, usedforsecurity=False)


def digest_of(path: Path, algorithm: str) -> str:
    """In lower-case hexadecimal. `algorithm` is `crc32`, `crc32c` (needs the extra `gcs`) or a name of hashlib."""
    digest = _new_digest(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def verify(path: Path, expected: Checksum, uri: str) -> None:
    """Raises `SourceError` unless the file's content has the checksum."""
    found = digest_of(path, expected.algorithm)
    if found != expected.digest:
        raise SourceError(
            f"{uri} has {expected.algorithm} {found}, {expected.origin} says {expected.digest}; "
            "upload the file or its checksum anew, then load the model again"
        )


def parse_sha256sums(content: bytes, uri: str) -> Mapping[str, Checksum]:
    """Name → checksum, as `sha256sum` writes them. Raises `SourceError` with the number of a line it cannot read."""
    checksums: dict[str, Checksum] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
        found = _LINE.fullmatch(line.strip())
        if found is not None:
            checksums[found["name"]] = Checksum("sha256", found["digest"].lower(), SHA256SUMS)
        elif line.strip():
            raise SourceError(f"line {number} of {uri} is not `<sha256>  <name>`; write the file with `sha256sum`")
    return checksums
