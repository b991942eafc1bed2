"""Models out of Google Cloud Storage: the real client against an emulator, through a proxy that counts and cuts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from gcp_storage_emulator.server import create_server
from google.cloud import storage

from model_registry.schema import ModelConfig
from tests.support.recording_proxy import Answer, Exchange, RecordingProxy, recording_proxy
from workers.errors import SourceError
from workers.sources import fetch_mirror, fetch_model, gcs, ranged_download
from workers.sources.object_store import NUM_CONNECTIONS

pytestmark = pytest.mark.parallel

KIB = 1 << 10
CHUNK_BYTES = 32 * KIB
WEIGHTS = bytes(range(256)) * 4 * KIB  # 1 MiB, 32 chunks
URI = "gs://models/org/tiny/"
FILES = {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": WEIGHTS}


@pytest.fixture(scope="module")
def emulator() -> Iterator[Any]:
    server = create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def proxy(emulator: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RecordingProxy]:
    """What the machine's configuration leads to; the Hub is unreachable."""
    monkeypatch.setattr(ranged_download, "CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(ranged_download, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(gcs, "_RETRY_TIMEOUT_S", 0.5)
    for name in [name for name in os.environ if name.startswith("GOOGLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with recording_proxy(emulator._api._httpd.server_port) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        yield proxy
        emulator.wipe()


@pytest.fixture
def bucket(emulator: Any, proxy: RecordingProxy) -> Any:
    """An empty bucket, seen past the proxy."""
    address = {"api_endpoint": f"http://127.0.0.1:{proxy.upstream_port}"}
    client = storage.Client.create_anonymous_client()
    client._connection.API_BASE_URL = address["api_endpoint"]
    return client.create_bucket("models", project="tests")


def put(bucket: Any, files: dict[str, bytes], prefix: str = "org/tiny/") -> None:
    for name, content in files.items():
        bucket.blob(prefix + name).upload_from_string(content)


def model(*, initializer: dict[str, Any] | None = None, **config: Any) -> ModelConfig:
    mirror = {"bucket_uri": URI, **config}
    initialization = {"initializer": initializer or {"type": "SingleDevice"}, "gcs_mirror_config": mirror}
    return ModelConfig.model_validate({"model_id": "org/tiny", "initialization": initialization})


def ignore(_line: str) -> None:
    pass


def names_in(folder: Path) -> list[str]:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in files if name != "aviary-mirror.json"]


def is_of_weights(exchange: Exchange) -> bool:
    return exchange.method == "GET" and exchange.path.startswith("/download/") and "range" in exchange.headers


def test_a_model_is_fetched_whole_in_ranges_of_one_generation(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    put(bucket, {**FILES, "pytorch_model.bin": b"pickle", "modeling.py": b"raise"})
    folder = fetch_model(model(), tmp_path, ignore)
    assert {name: (folder / name).read_bytes() for name in names_in(folder)} == FILES
    ranges = [one for one in proxy.exchanges if is_of_weights(one) and one.path.endswith("model.safetensors")]
    assert len(ranges) == len(WEIGHTS) // CHUNK_BYTES
    generation = str(bucket.get_blob("org/tiny/model.safetensors").generation)
    assert {parse_qs(one.query)["ifGenerationMatch"][0] for one in ranges} == {generation}
    assert fetch_model(model(), tmp_path, ignore) == folder
    assert proxy.bytes_of("model.safetensors") == len(WEIGHTS)


def test_a_download_interrupted_at_half_goes_on_where_it_was(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    put(bucket, FILES)
    proxy.allowance = len(WEIGHTS) // 2
    with pytest.raises(SourceError, match=r"cannot read gs://models/org/tiny/model\.safetensors: .*check the network"):
        fetch_model(model(), tmp_path, ignore)
    proxy.allowance = None
    proxy.exchanges.clear()
    folder = fetch_model(model(), tmp_path, ignore)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    fetched_again = proxy.bytes_of("model.safetensors")
    assert len(WEIGHTS) // 2 <= fetched_again <= len(WEIGHTS) // 2 + NUM_CONNECTIONS * CHUNK_BYTES


def test_an_object_that_changes_under_the_download_starts_over(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    put(bucket, FILES)
    changed = bytes(len(WEIGHTS))

    def overwrite(exchange: Exchange) -> Answer | None:
        if not (is_of_weights(exchange) and exchange.headers["range"].startswith(f"bytes={8 * CHUNK_BYTES}-")):
            return None
        proxy.instead = lambda _exchange: None
        put(bucket, {"model.safetensors": changed})
        return Answer(412)  # the emulator itself ignores ifGenerationMatch

    proxy.instead = overwrite
    folder = fetch_model(model(), tmp_path, ignore)
    assert (folder / "model.safetensors").read_bytes() == changed


def test_content_that_was_damaged_on_the_way_is_refused(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, FILES)

    def damage(exchange: Exchange) -> Answer | None:
        wanted = exchange.headers.get("range", "")
        if wanted != f"bytes={CHUNK_BYTES}-{2 * CHUNK_BYTES - 1}":
            return None
        return Answer(206, bytes(CHUNK_BYTES), {"Content-Range": f"bytes {wanted[6:]}/{len(WEIGHTS)}"})

    proxy.instead = damage
    with pytest.raises(SourceError, match=r"model\.safetensors has crc32c [0-9a-f]{8}, the object's CRC32C says"):
        fetch_model(model(), tmp_path, ignore)


def test_the_hash_file_names_the_snapshot_and_a_checksum_file_is_believed(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    put(bucket, {**FILES, "hash": b"9c1e2f"})
    folder = fetch_model(model(), tmp_path, ignore)
    assert folder.name.endswith("-9c1e2f")
    put(bucket, {"hash": b"a0b1c2", "SHA256SUMS": f"{'0' * 64}  config.json\n".encode()})
    with pytest.raises(SourceError, match=r"config\.json has sha256 [0-9a-f]{64}, SHA256SUMS says 0{64}"):
        fetch_model(model(), tmp_path, ignore)


def test_extra_files_and_a_single_gguf(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, {**FILES, "tiny.gguf": b"GGUF", "other.gguf": b"GGUF"})
    put(bucket, {"chat.jinja": b"{{ messages }}"}, prefix="shared/")
    extra = [{"bucket_uri": "gs://models/shared/chat.jinja", "destination_path": "chat_template.jinja"}]
    folder = fetch_model(model(extra_files=extra), tmp_path, ignore)
    assert (folder / "chat_template.jinja").read_bytes() == b"{{ messages }}"
    llama = {"type": "LlamaCpp", "model_filename": "tiny.gguf"}
    assert names_in(fetch_mirror(model(initializer=llama), tmp_path, ignore)) == ["tiny.gguf"]


def test_keys_that_leave_the_folder_are_refused_by_name(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, {**FILES, "a..\\b.json": b"escaped"})
    with pytest.raises(SourceError, match=r"holds the key 'a\.\.\\\\b\.json', which is not a plain path"):
        fetch_model(model(), tmp_path, ignore)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "access is denied: the worker has no Google credentials, so the bucket must be public"),
        (403, "access is denied: give the worker's Google identity the role Storage Object Viewer"),
        (500, "the server answers 500"),
        (400, "check gcs_mirror_config"),
    ],
)
def test_a_mirror_that_fails_says_so_and_the_hub_is_not_asked(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path, status: int, message: str
) -> None:
    proxy.instead = lambda _exchange: Answer(status, b"{}")
    with pytest.raises(SourceError) as raised:
        fetch_model(model(), tmp_path, ignore)
    assert str(raised.value).startswith("cannot read gs://models/org/tiny/hash: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "hub").exists()


def test_a_bucket_that_does_not_exist_and_an_empty_prefix_are_said(bucket: Any, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gs://models/org/tiny/ holds no objects; correct bucket_uri"):
        fetch_model(model(), tmp_path, ignore)
    with pytest.raises(SourceError, match=r"cannot list gs://nobodys/x/: there is no such bucket"):
        fetch_model(model(bucket_uri="gs://nobodys/x/"), tmp_path, ignore)


def test_no_network_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"cannot read gs://models/org/tiny/hash: .*check the network"):
        fetch_model(model(), tmp_path, ignore)


def test_credentials_that_are_named_but_absent_are_not_replaced_by_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(SourceError, match=r"GOOGLE_APPLICATION_CREDENTIALS: .*key\.json.*; correct or unset it"):
        fetch_model(model(), tmp_path, ignore)


def test_a_worker_without_credentials_reads_public_buckets(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, FILES)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("API_ENDPOINT_OVERRIDE", proxy.url)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "none"))
    assert names_in(fetch_model(model(), tmp_path, ignore)) == sorted(FILES)
    proxy.instead = lambda _exchange: Answer(403, b"{}")
    with pytest.raises(SourceError, match="the worker has no Google credentials, so the bucket must be public"):
        fetch_model(model(), tmp_path, ignore)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    monkeypatch.delattr("google.cloud.storage")
    with pytest.raises(SourceError, match=r"needs the package google-cloud-storage: pip install 'aviary\[gcs\]'"):
        fetch_model(model(), tmp_path, ignore)
