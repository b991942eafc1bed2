"""Which files of a mirror are a model's, how their names and checksums are read, and what a journal is worth."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.errors import SourceError
from workers.sources.checksums import digest_of, parse_sha256sums
from workers.sources.mirror import Place
from workers.sources.model_files import check_names, file_patterns, gguf_parts
from workers.sources.object_store import RemoteFile
from workers.sources.ranged_download import PartialFile

REMOTE = RemoteFile("s3://b/k", "b", "k", 10, '"etag"')


@pytest.mark.parametrize(
    "name", ["../x", "a/../x", "..", "", "/x", "x/", "a//b", "./x", "a\\b", "a\0b", "a\nb", "a\x7fb", "n" * 256]
)
def test_a_name_that_is_no_plain_path_is_refused(name: str) -> None:
    with pytest.raises(SourceError) as raised:
        check_names(["config.json", name], "s3://b/p/")
    assert f"s3://b/p/ holds the key {name!r}" in str(raised.value)


def test_plain_names_pass() -> None:
    check_names(["a.json", "a/b.json", "a/b/c.json", "..a", "a..b", "ü.json", "n" * 255], "s3://b/p/")


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b/c", "a/b"], ["x", "a/b/c/d", "a"]])
def test_a_name_that_is_file_and_folder_is_refused(names: list[str]) -> None:
    with pytest.raises(SourceError, match="file and folder at once"):
        check_names(names, "s3://b/p/")


def test_code_is_among_the_files_only_where_it_is_trusted() -> None:
    assert set(file_patterns(trust_remote_code=True)) - set(file_patterns(trust_remote_code=False)) == {"*.py"}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.gguf", ["a.gguf"]),
        ("a-00002-of-00002.gguf", ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]),
        ("q/a-00001-of-00001.gguf", ["q/a-00001-of-00001.gguf"]),
        ("a-1-of-2.gguf", ["a-1-of-2.gguf"]),
    ],
)
def test_a_split_gguf_is_all_its_parts(name: str, parts: list[str]) -> None:
    assert list(gguf_parts(name)) == parts


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("s3://b/a/c/", Place("b", "a/c/")),
        ("s3://b/a/c", Place("b", "a/c/")),
        ("gs://b/", Place("b", "")),
    ],
)
def test_a_uri_is_a_bucket_and_a_prefix_that_ends_with_a_slash(uri: str, place: Place) -> None:
    assert Place.of(uri) == place


def test_checksums_are_read_as_sha256sum_writes_them() -> None:
    digest = "AB" * 32
    read = parse_sha256sums(f"{digest}  a.json\n{digest} *b c.json\n\n{digest}  ./d/e.json\n".encode(), "u")
    assert {name: checksum.digest for name, checksum in read.items()} == dict.fromkeys(
        ("a.json", "b c.json", "d/e.json"), digest.lower()
    )


@pytest.mark.parametrize("line", ["a.json", f"{'0' * 63}  a.json", f"{'0' * 64}a.json", "\xff"])
def test_a_line_that_is_no_checksum_is_refused_by_its_number(line: str) -> None:
    with pytest.raises(SourceError, match=r"line 2 of s3://b/p/SHA256SUMS is not"):
        parse_sha256sums(f"{'0' * 64}  x\n{line}\n".encode("latin-1"), "s3://b/p/SHA256SUMS")


@pytest.mark.parametrize(("algorithm", "digest"), [("crc32", "cbf43926"), ("crc32c", "e3069283")])
def test_a_digest_is_that_of_the_standard(tmp_path: Path, algorithm: str, digest: str) -> None:
    (tmp_path / "x").write_bytes(b"123456789")
    assert digest_of(tmp_path / "x", algorithm) == digest
    assert digest_of(tmp_path / "x", "md5") == hashlib.md5(b"123456789").hexdigest()


def started(folder: Path) -> tuple[Path, Path]:
    """A file of three chunks of which the first is there."""
    path, journal = folder / "data", folder / "journal"
    with PartialFile(path, journal, REMOTE, 4) as partial:
        assert [(chunk.start, chunk.stop) for chunk in partial.missing] == [(0, 4), (4, 8), (8, 10)]
        partial.write(b"0123", 0)
        partial.finish(0)
    return path, journal


def missing(path: Path, journal: Path, remote: RemoteFile = REMOTE, chunk_bytes: int = 4) -> list[int]:
    with PartialFile(path, journal, remote, chunk_bytes) as partial:
        return [chunk.start for chunk in partial.missing]


def test_a_chunk_that_is_on_the_disk_is_not_missing(tmp_path: Path) -> None:
    path, journal = started(tmp_path)
    assert missing(path, journal) == [4, 8]
    assert path.read_bytes() == b"0123" + bytes(6)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path, _journal: path.unlink(),
        lambda _path, journal: journal.unlink(),
        lambda _path, journal: journal.write_bytes(journal.read_bytes()[:-1]),
        lambda _path, journal: journal.write_bytes(b""),
        lambda _path, journal: journal.write_bytes(b"x" + journal.read_bytes()),
    ],
    ids=["no data", "no journal", "short journal", "empty journal", "other journal"],
)
def test_what_no_journal_vouches_for_starts_over(tmp_path: Path, damage: Callable[[Path, Path], object]) -> None:
    path, journal = started(tmp_path)
    damage(path, journal)
    assert missing(path, journal) == [0, 4, 8]


@pytest.mark.parametrize(
    ("remote", "chunk_bytes"),
    [
        (RemoteFile("s3://b/k", "b", "k", 10, '"other"'), 4),
        (RemoteFile("s3://b/k", "b", "k", 9, '"etag"'), 4),
        (RemoteFile("s3://c/k", "c", "k", 10, '"etag"'), 4),
        (REMOTE, 2),
    ],
)
def test_chunks_of_another_version_or_size_start_over(tmp_path: Path, remote: RemoteFile, chunk_bytes: int) -> None:
    path, journal = started(tmp_path)
    assert missing(path, journal, remote, chunk_bytes)[0] == 0
    assert path.stat().st_size == remote.size_bytes
