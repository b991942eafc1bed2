"""Models out of S3: the real client against moto's server, through a proxy that counts bytes and cuts connections."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto.server import ThreadedMotoServer

from model_registry.schema import ModelConfig
from tests.support.recording_proxy import Answer, Exchange, RecordingProxy, recording_proxy
from workers.errors import SourceError
from workers.sources import fetch_mirror, fetch_model, ranged_download
from workers.sources.object_store import NUM_CONNECTIONS
from workers.sources.traffic import FETCHED

pytestmark = pytest.mark.parallel

KIB = 1 << 10
CHUNK_BYTES = 128 * KIB
SMALL_CHUNK_BYTES = 32 * KIB
WEIGHTS = bytes(range(256)) * 4 * KIB  # 1 MiB, 8 chunks
URI = "s3://models/org/tiny/"
FILES = {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": WEIGHTS}
FETCH_PROGRAM = """
import sys
from pathlib import Path
from model_registry.schema import ModelConfig
from workers.errors import SourceError
from workers.sources import fetch_model, ranged_download

ranged_download.CHUNK_BYTES = int(sys.argv[3])
try:
    model = ModelConfig.model_validate_json(sys.argv[1])
    print(fetch_model(model, Path(sys.argv[2]), lambda line: print(line, flush=True)))
except SourceError as error:
    print(f"refused: {error}")
"""


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    """Port of a running S3 server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with credentials of its own and no other AWS configuration; the Hub is unreachable."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {
        "AWS_ACCESS_KEY_ID": "from-environment",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_CONFIG_FILE": str(tmp_path / "aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "aws-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "hub"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranged_download, "CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(ranged_download, "FIRST_RETRY_S", 0.01)


@pytest.fixture(scope="module")
def resource(moto: int) -> Any:
    """The server, seen past the proxy."""
    keys = {"aws_access_key_id": "admin", "aws_secret_access_key": "secret"}
    return boto3.resource("s3", endpoint_url=f"http://127.0.0.1:{moto}", region_name="us-east-1", **keys)


@pytest.fixture
def bucket(resource: Any) -> Iterator[Any]:
    """An empty bucket."""
    bucket = resource.create_bucket(Bucket="models")
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


@pytest.fixture
def proxy(moto: int, bucket: Any) -> Iterator[RecordingProxy]:
    with recording_proxy(moto) as proxy:
        yield proxy


def put(bucket: Any, files: dict[str, bytes], prefix: str = "org/tiny/", **arguments: Any) -> None:
    for name, content in files.items():
        bucket.put_object(Key=prefix + name, Body=content, **arguments)


def model(proxy: RecordingProxy, *, initializer: dict[str, Any] | None = None, **config: Any) -> ModelConfig:
    mirror = {"bucket_uri": URI, "endpoint_url": proxy.url, **config}
    initialization = {"initializer": initializer or {"type": "SingleDevice"}, "s3_mirror_config": mirror}
    return ModelConfig.model_validate({"model_id": "org/tiny", "initialization": initialization})


def ignore(_line: str) -> None:
    pass


def start_fetch(model: ModelConfig, cache: Path, chunk_bytes: int = CHUNK_BYTES) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH_PROGRAM, model.model_dump_json(exclude_unset=True), str(cache)]
    return subprocess.Popen([*command, str(chunk_bytes)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def names_in(folder: Path) -> list[str]:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in files if name != "aviary-mirror.json"]


def test_a_model_is_fetched_whole_with_progress_and_counted(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, FILES)
    lines: list[str] = []
    before = FETCHED.num_bytes
    folder = fetch_model(model(proxy), tmp_path, lines.append)
    assert {name: (folder / name).read_bytes() for name in names_in(folder)} == FILES
    assert folder.parent == tmp_path / "mirrors"
    assert folder.name.startswith("org--tiny-")
    assert lines[0] == f"fetching weights: {URI}"
    assert any(line.startswith("fetching weights: 1 of 1 MB, ") and line.endswith(" MB/s") for line in lines)
    assert lines[-1] == "verifying weights: 3 files"
    assert FETCHED.num_bytes - before == sum(map(len, FILES.values()))


def test_pickles_code_and_other_formats_are_left_behind(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    others = {"pytorch_model.bin": b"pickle", "model.gguf": b"GGUF", "README.md": b"#", "modeling.py": b"raise"}
    put(bucket, {**FILES, **others})
    assert names_in(fetch_model(model(proxy), tmp_path, ignore)) == sorted(FILES)
    assert not any(proxy.bytes_of(name) for name in others)
    trusting = {"type": "SingleDevice", "from_pretrained_kwargs": {"trust_remote_code": True}}
    assert "modeling.py" in names_in(fetch_model(model(proxy, initializer=trusting), tmp_path, ignore))


def test_a_large_file_is_fetched_in_ranges_of_one_version(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, FILES)
    fetch_model(model(proxy), tmp_path, ignore)
    requests = [one for one in proxy.exchanges if one.method == "GET" and one.path.endswith("model.safetensors")]
    ranges = {one.headers["range"] for one in requests}
    assert ranges == {f"bytes={start}-{start + CHUNK_BYTES - 1}" for start in range(0, len(WEIGHTS), CHUNK_BYTES)}
    assert {one.headers["if-match"] for one in requests} == {f'"{hashlib.md5(WEIGHTS).hexdigest()}"'}


def test_what_is_here_already_is_not_fetched_again(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, FILES)
    folder = fetch_model(model(proxy), tmp_path, ignore)
    first = proxy.bytes_of("model.safetensors")
    assert fetch_model(model(proxy), tmp_path, ignore) == folder
    assert proxy.bytes_of("model.safetensors") == first == len(WEIGHTS)
    (folder / "model.safetensors").unlink()
    assert fetch_model(model(proxy), tmp_path, ignore) == folder
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_connection_that_breaks_now_and_then_costs_nothing_twice(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, FILES)
    monkeypatch.setattr(ranged_download, "CHUNK_BYTES", len(WEIGHTS))
    proxy.allowance = len(WEIGHTS) // 2

    def refill(exchange: Exchange) -> None:
        if proxy.spent.is_set():
            proxy.allowance = None

    proxy.instead = refill
    folder = fetch_model(model(proxy), tmp_path, ignore)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert proxy.bytes_of("model.safetensors") == len(WEIGHTS)


def test_a_download_interrupted_at_half_goes_on_where_it_was(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, FILES)
    monkeypatch.setattr(ranged_download, "CHUNK_BYTES", SMALL_CHUNK_BYTES)
    proxy.allowance = len(WEIGHTS) // 2
    with pytest.raises(SourceError, match=r"cannot read s3://models/org/tiny/model\.safetensors: .*check the network"):
        fetch_model(model(proxy), tmp_path, ignore)
    assert [path.suffix for path in (tmp_path / "mirrors").iterdir()] == [".partial"]
    proxy.allowance = None
    proxy.exchanges.clear()
    lines: list[str] = []
    folder = fetch_model(model(proxy), tmp_path, lines.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    fetched_again = proxy.bytes_of("model.safetensors")
    assert len(WEIGHTS) // 2 <= fetched_again <= len(WEIGHTS) // 2 + NUM_CONNECTIONS * SMALL_CHUNK_BYTES
    assert any(line.endswith("bytes are here already") for line in lines)
    assert not list((tmp_path / "mirrors").glob("*.partial"))


def test_after_sigkill_the_next_process_goes_on_where_the_first_was(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    put(bucket, FILES)
    proxy.allowance = len(WEIGHTS) * 3 // 4
    process = start_fetch(model(proxy), tmp_path, chunk_bytes=SMALL_CHUNK_BYTES)
    assert proxy.spent.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    proxy.allowance = None
    proxy.exchanges.clear()
    output, errors = start_fetch(model(proxy), tmp_path, chunk_bytes=SMALL_CHUNK_BYTES).communicate(timeout=60)
    assert (Path(output.splitlines()[-1]) / "model.safetensors").read_bytes() == WEIGHTS, errors
    assert 0 < proxy.bytes_of("model.safetensors") <= len(WEIGHTS) // 2


def test_an_object_that_changed_since_starts_over_and_the_others_do_not(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    put(bucket, {**FILES, "second.safetensors": WEIGHTS[::-1]})
    proxy.allowance = len(WEIGHTS) * 3 // 2
    with pytest.raises(SourceError):
        fetch_model(model(proxy), tmp_path, ignore)
    proxy.allowance = None
    proxy.exchanges.clear()
    changed = bytes(len(WEIGHTS))
    put(bucket, {"model.safetensors": changed})
    folder = fetch_model(model(proxy), tmp_path, ignore)
    assert (folder / "model.safetensors").read_bytes() == changed
    assert (folder / "second.safetensors").read_bytes() == WEIGHTS[::-1]
    assert proxy.bytes_of("model.safetensors") == len(changed)
    assert proxy.bytes_of("second.safetensors") < len(WEIGHTS)


def test_an_object_that_changes_under_the_download_starts_over(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    put(bucket, FILES)
    changed = bytes(len(WEIGHTS))

    def overwrite(exchange: Exchange) -> None:
        if exchange.headers.get("range", "").startswith(f"bytes={4 * CHUNK_BYTES}-"):
            proxy.instead = lambda _exchange: None
            put(bucket, {"model.safetensors": changed})

    proxy.instead = overwrite
    folder = fetch_model(model(proxy), tmp_path, ignore)
    assert (folder / "model.safetensors").read_bytes() == changed


def test_two_processes_at_once_fetch_once(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, FILES)
    processes = [start_fetch(model(proxy), tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0].splitlines()[-1] == outputs[1][0].splitlines()[-1]
    assert proxy.bytes_of("model.safetensors") == len(WEIGHTS)


def test_a_model_from_the_mirror_answers_like_the_one_it_was_made_of(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, {path.name: path.read_bytes() for path in tiny_llama.iterdir()})
    monkeypatch.setenv("AVIARY_CACHE_DIR", str(tmp_path))
    mirror = {"s3_mirror_config": {"bucket_uri": URI, "endpoint_url": proxy.url}}
    assert greedy_text(mirror) == greedy_text({"hf_model_id": str(tiny_llama)}) != ""
    assert proxy.bytes_of("model.safetensors") == (tiny_llama / "model.safetensors").stat().st_size


def greedy_text(source: dict[str, Any]) -> str:
    """What SingleDevice's engine says to a fixed prompt, with the weights of that source."""
    from model_registry.contract import GenerationRequest, SamplingParams, TextPrompt, TextSegment
    from model_registry.schema import RegistryEntry
    from workers.initializers import build_engine, initializer_for

    initialization = {"initializer": {"type": "SingleDevice", "dtype": "float32"}, **source}
    entry = RegistryEntry.model_validate(
        {
            "model_config": {"model_id": "org/tiny", "initialization": initialization},
            "scaling_config": {"num_gpus_per_worker": 0},
        }
    )
    engine = build_engine(entry, initializer_for(entry).load(entry, ignore))
    prompt = TextPrompt((TextSegment("the quick brown", trusted=True),))
    sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    engine.submit(engine.prepare(GenerationRequest(request_id="1", prompt=prompt, sampling=sampling)))
    text = ""
    while engine.has_work:
        text += "".join(output.text for output in engine.step())
    return text


# What is in the mirror


def sha256sums(files: dict[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()


def test_files_with_the_checksums_that_the_mirror_publishes_are_taken(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    put(bucket, {**FILES, "SHA256SUMS": sha256sums({**FILES, "README.md": b""})})
    assert names_in(fetch_model(model(proxy), tmp_path, ignore)) == sorted(FILES)


def test_a_file_with_another_checksum_is_refused_and_fetched_again_once_it_is_right(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    put(bucket, {**FILES, "model.safetensors": b"damaged", "SHA256SUMS": sha256sums(FILES)})
    with pytest.raises(SourceError, match=r"model\.safetensors has sha256 [0-9a-f]{64}, SHA256SUMS says"):
        fetch_model(model(proxy), tmp_path, ignore)
    assert not [path for path in (tmp_path / "mirrors").iterdir() if path.suffix != ".partial"]
    put(bucket, {"model.safetensors": WEIGHTS})
    fetch_model(model(proxy), tmp_path, ignore)


def damage(exchange: Exchange) -> Answer | None:
    """One chunk of the weights is not what the server has."""
    wanted = exchange.headers.get("range", "")
    if exchange.method == "GET" and wanted == f"bytes={CHUNK_BYTES}-{2 * CHUNK_BYTES - 1}":
        content_range = f"bytes {CHUNK_BYTES}-{2 * CHUNK_BYTES - 1}/{len(WEIGHTS)}"
        return Answer(206, bytes(CHUNK_BYTES), {"Content-Range": content_range})
    return None


@pytest.mark.parametrize(
    ("arguments", "origin"),
    [
        ({}, "ChecksumCRC32"),
        ({"ChecksumAlgorithm": "SHA256"}, "ChecksumSHA256"),
        ({"ChecksumAlgorithm": "SHA1"}, "ChecksumSHA1"),
        (None, "ETag"),
    ],
)
def test_content_that_was_damaged_on_the_way_is_refused_by_what_the_store_knows(
    bucket: Any,
    proxy: RecordingProxy,
    tmp_path: Path,
    moto: int,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, str] | None,
    origin: str,
) -> None:
    if arguments is None:
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        plain = boto3.resource("s3", endpoint_url=f"http://127.0.0.1:{moto}", region_name="us-east-1")
        put(plain.Bucket("models"), FILES)
    else:
        put(bucket, FILES, **arguments)
    proxy.instead = damage
    with pytest.raises(SourceError, match=rf"model\.safetensors has \w+ [0-9a-f]+, the object's {origin} says"):
        fetch_model(model(proxy), tmp_path, ignore)
    proxy.instead = lambda _exchange: None
    assert (fetch_model(model(proxy), tmp_path, ignore) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_file_that_was_uploaded_in_parts_is_taken_without_a_checksum_of_its_whole(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    put(bucket, FILES)
    large = bytes(range(256)) * 24 * KIB
    upload = bucket.Object("org/tiny/model.safetensors").initiate_multipart_upload()
    parts = [
        {"PartNumber": number, "ETag": upload.Part(number).upload(Body=part)["ETag"]}
        for number, part in ((1, large[: 5 << 20]), (2, large[5 << 20 :]))
    ]
    upload.complete(MultipartUpload={"Parts": parts})
    folder = fetch_model(model(proxy), tmp_path, ignore)
    assert (folder / "model.safetensors").read_bytes() == large


def test_a_checksum_file_that_cannot_be_read_or_names_what_is_not_there_is_refused(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    put(bucket, {**FILES, "SHA256SUMS": b"not a checksum"})
    with pytest.raises(SourceError, match=r"line 1 of s3://models/org/tiny/SHA256SUMS is not"):
        fetch_model(model(proxy), tmp_path, ignore)
    put(bucket, {"SHA256SUMS": sha256sums({"part2.safetensors": b""})})
    with pytest.raises(SourceError, match=r"lacks part2\.safetensors, which its SHA256SUMS names"):
        fetch_model(model(proxy), tmp_path, ignore)


@pytest.mark.parametrize(
    "key", ["../../x", "a/../../x.json", "/x.json", "a//b.json", "a\\b.json", "./x.json", "a\tb.json", "n" * 300]
)
def test_keys_that_are_no_paths_below_the_folder_are_refused_by_name(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path, key: str
) -> None:
    put(bucket, FILES)
    put(bucket, {key: b"escaped"})
    with pytest.raises(SourceError) as raised:
        fetch_model(model(proxy), tmp_path / "cache", ignore)
    assert f"holds the key {key!r}, which is not a plain path" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert proxy.bytes_of("model.safetensors") == 0


def test_names_that_would_be_file_and_folder_are_refused(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, {**FILES, "a.json": b"1", "a.json/b.json": b"2"})
    with pytest.raises(SourceError, match=r"holds both 'a\.json' and 'a\.json/b\.json'"):
        fetch_model(model(proxy), tmp_path, ignore)


def test_empty_objects_that_stand_for_folders_are_no_files(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, {**FILES, "": b"", "sub/": b"", "sub/more.json": b"{}"})
    assert names_in(fetch_model(model(proxy), tmp_path, ignore)) == sorted([*FILES, "sub/more.json"])


def test_a_prefix_without_its_slash_is_the_folder_all_the_same(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    put(bucket, FILES)
    put(bucket, {"stray.json": b"{}"}, prefix="org/tiny-but-other/")
    folder = fetch_model(model(proxy, bucket_uri=URI.rstrip("/")), tmp_path, ignore)
    assert names_in(folder) == sorted(FILES)


# The keys of the registry


def test_the_hash_file_names_the_snapshot(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, {**FILES, "hash": b"9c1e2f\n"})
    folder = fetch_model(model(proxy), tmp_path, ignore)
    assert folder.name.endswith("-9c1e2f")
    put(bucket, {"model.safetensors": WEIGHTS[::-1]})
    assert fetch_model(model(proxy), tmp_path, ignore) == folder
    assert proxy.bytes_of("model.safetensors") == len(WEIGHTS)
    put(bucket, {"hash": b"a0b1c2"})
    changed = fetch_model(model(proxy), tmp_path, ignore)
    assert changed.name.endswith("-a0b1c2")
    assert (changed / "model.safetensors").read_bytes() == WEIGHTS[::-1]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS, "running workers may still read it"


def test_a_hash_file_that_is_no_name_is_refused(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, {**FILES, "hash": b"../../x"})
    with pytest.raises(SourceError, match=r"the file hash of s3://models/org/tiny/ must hold one word .*'\.\./\.\./x'"):
        fetch_model(model(proxy), tmp_path, ignore)


def test_excludes_and_includes_are_those_of_aws_the_last_one_decides(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    put(bucket, {**FILES, "onnx/model.safetensors": b"no", "onnx/keep.json": b"{}", "../../x": b"no"})
    arguments = ["--exclude", "onnx/*", "--include=*keep*", "--exclude", "..*", "--only-show-errors"]
    folder = fetch_model(model(proxy, s3_sync_args=arguments), tmp_path, ignore)
    assert names_in(folder) == sorted([*FILES, "onnx/keep.json"])


def test_extra_files_go_where_they_are_told(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, FILES)
    put(bucket, {"chat.jinja": b"{{ messages }}", "lora/a.json": b"1", "lora/deep/b.json": b"2"}, prefix="shared/")
    put(bucket, {"lora/skip.bin": b"pickle"}, prefix="shared/")
    extra = [
        {"bucket_uri": "s3://models/shared/chat.jinja", "destination_path": "chat_template.jinja"},
        {"bucket_uri": "s3://models/shared/lora/", "destination_path": "adapter"},
    ]
    folder = fetch_model(model(proxy, extra_files=extra), tmp_path, ignore)
    assert (folder / "chat_template.jinja").read_bytes() == b"{{ messages }}"
    assert names_in(folder) == sorted([*FILES, "chat_template.jinja", "adapter/a.json", "adapter/deep/b.json"])


def test_an_extra_file_that_is_not_there_is_refused(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, FILES)
    extra = [{"bucket_uri": "s3://models/shared/none.json", "destination_path": "x.json"}]
    with pytest.raises(SourceError, match=r"extra_files: s3://models/shared/none\.json holds no file to fetch"):
        fetch_model(model(proxy, extra_files=extra), tmp_path, ignore)


def test_for_llama_cpp_only_its_file_is_fetched(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, {**FILES, "tiny.Q4.gguf": b"GGUF4", "tiny.Q8.gguf": b"GGUF8"})
    llama = {"type": "LlamaCpp", "model_filename": "tiny.Q4.gguf"}
    assert names_in(fetch_mirror(model(proxy, initializer=llama), tmp_path, ignore)) == ["tiny.Q4.gguf"]
    absent = {"type": "LlamaCpp", "model_filename": "tiny.Q5.gguf"}
    with pytest.raises(SourceError, match=r"holds no 'tiny\.Q5\.gguf'; correct initializer\.model_filename"):
        fetch_mirror(model(proxy, initializer=absent), tmp_path, ignore)


def test_all_parts_of_a_split_gguf_are_fetched(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    parts = {f"big-{number:05d}-of-00002.gguf": bytes([number]) for number in (1, 2)}
    put(bucket, parts)
    llama = {"type": "LlamaCpp", "model_filename": "big-00001-of-00002.gguf"}
    assert names_in(fetch_mirror(model(proxy, initializer=llama), tmp_path, ignore)) == sorted(parts)


# Access


def signed_by(proxy: RecordingProxy) -> set[str]:
    """Access keys of all requests; empty text for unsigned ones."""
    headers = [one.headers.get("authorization", "") for one in proxy.exchanges]
    return {header.partition("Credential=")[2].partition("/")[0] for header in headers}


def test_requests_are_signed_with_the_machines_credentials_unless_told_not_to(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    put(bucket, FILES)
    fetch_model(model(proxy), tmp_path / "signed", ignore)
    assert signed_by(proxy) == {"from-environment"}
    proxy.exchanges.clear()
    bucket.Acl().put(ACL="public-read")
    for name in FILES:
        bucket.Object(f"org/tiny/{name}").Acl().put(ACL="public-read")
    fetch_model(model(proxy, s3_sync_args=["--no-sign-request"]), tmp_path / "unsigned", ignore)
    assert signed_by(proxy) == {""}


def test_a_profile_gives_credentials_and_region(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, FILES)
    (tmp_path / "aws-credentials").write_text("[mine]\naws_access_key_id=from-profile\naws_secret_access_key=x\n")
    (tmp_path / "aws-config").write_text("[profile mine]\nregion=eu-north-1\n")
    fetch_model(model(proxy, s3_sync_args=["--profile", "mine"]), tmp_path, ignore)
    assert signed_by(proxy) == {"from-profile"}
    assert all("/eu-north-1/s3/" in one.headers["authorization"] for one in proxy.exchanges)


def test_region_and_payer_are_those_of_the_arguments(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, FILES)
    arguments = ["--region", "ap-south-1", "--request-payer", "requester"]
    fetch_model(model(proxy, s3_sync_args=arguments), tmp_path, ignore)
    assert all("/ap-south-1/s3/" in one.headers["authorization"] for one in proxy.exchanges)
    assert {one.headers.get("x-amz-request-payer") for one in proxy.exchanges} == {"requester"}


def test_the_endpoint_may_come_from_the_arguments_or_the_environment(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, FILES)
    by_argument = model(proxy, endpoint_url=None, s3_sync_args=[f"--endpoint-url={proxy.url}"])
    fetch_model(by_argument, tmp_path / "argument", ignore)
    assert proxy.bytes_of("model.safetensors") == len(WEIGHTS)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    fetch_model(model(proxy, endpoint_url=None), tmp_path / "environment", ignore)
    assert proxy.bytes_of("model.safetensors") == 2 * len(WEIGHTS)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody trusts, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path / "server.pem"
    path.write_bytes(certificate.public_bytes(pem) + plain)
    return path


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_the_servers_certificate_is_checked_against_the_bundle_unless_told_not_to(
    bucket: Any, moto: int, tmp_path: Path, certificate: Path
) -> None:
    put(bucket, FILES)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with recording_proxy(moto, context) as proxy:
        with pytest.raises(SourceError, match="certificate"):
            fetch_model(model(proxy), tmp_path / "checked", ignore)
        trusting = model(proxy, s3_sync_args=["--ca-bundle", str(certificate)])
        assert names_in(fetch_model(trusting, tmp_path / "bundle", ignore)) == sorted(FILES)
        careless = model(proxy, s3_sync_args=["--no-verify-ssl"])
        assert names_in(fetch_model(careless, tmp_path / "unchecked", ignore)) == sorted(FILES)


CREDENTIALS = {"AWS_ACCESS_KEY_ID": "temporary", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "session"}


def give_credentials(exchange: Exchange) -> Answer | None:
    if exchange.path != "/credentials":
        return None
    is_known = exchange.method == "POST" and exchange.headers.get("authorization") == "Bearer open-sesame"
    return Answer(200, json.dumps(CREDENTIALS).encode()) if is_known else Answer(401)


def test_temporary_credentials_are_asked_for_with_the_token(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, FILES)
    proxy.instead = give_credentials
    credentials = {
        "create_aws_credentials_url": f"{proxy.url}/credentials",
        "auth_token_env_variable": "MIRROR_TOKEN",
    }
    asking = model(proxy, s3_aws_credentials=credentials)
    with pytest.raises(SourceError, match="the environment variable MIRROR_TOKEN is not set"):
        fetch_model(asking, tmp_path, ignore)
    monkeypatch.setenv("MIRROR_TOKEN", "wrong")
    with pytest.raises(SourceError, match=r"gives no credentials .*401"):
        fetch_model(asking, tmp_path, ignore)
    monkeypatch.setenv("MIRROR_TOKEN", "open-sesame")
    proxy.exchanges.clear()
    fetch_model(asking, tmp_path, ignore)
    requests = [one for one in proxy.exchanges if one.path != "/credentials"]
    assert all("Credential=temporary/" in one.headers["authorization"] for one in requests)
    assert {one.headers["x-amz-security-token"] for one in requests} == {"session"}


def test_credentials_that_are_none_are_refused_without_being_shown(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    proxy.instead = lambda exchange: Answer(200, b'{"secret": "hidden"}') if exchange.method == "POST" else None
    credentials = {"create_aws_credentials_url": f"{proxy.url}/credentials"}
    with pytest.raises(SourceError, match="does not answer with JSON that holds AWS_ACCESS_KEY_ID") as raised:
        fetch_model(model(proxy, s3_aws_credentials=credentials), tmp_path, ignore)
    assert "hidden" not in str(raised.value)


# A mirror that fails says so, and nobody else is asked


def error(status: int, code: str) -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (error(403, "AccessDenied"), "access is denied: give the worker's AWS identity s3:ListBucket"),
        (error(404, "NoSuchBucket"), "there is no such bucket: correct bucket_uri"),
        (error(403, "RequestTimeTooSkewed"), "the clock of this node differs too much"),
        (error(403, "InvalidAccessKeyId"), "the AWS credentials are refused"),
        (error(403, "SignatureDoesNotMatch"), "the AWS credentials are refused"),
        (error(400, "ExpiredToken"), "the AWS credentials have expired"),
        (error(400, "IllegalLocationConstraintException"), "the bucket is in another region"),
        (error(500, "InternalError"), "the server answers 500 InternalError"),
        (error(418, "Teapot"), "the server answers 418 Teapot"),
    ],
)
def test_a_mirror_that_fails_says_so_and_the_hub_is_not_asked(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path, answer: Answer, message: str
) -> None:
    put(bucket, FILES)
    proxy.instead = lambda exchange: answer if exchange.method == "GET" else None
    with pytest.raises(SourceError) as raised:
        fetch_model(model(proxy), tmp_path, ignore)
    assert message in str(raised.value)
    assert str(raised.value).startswith("cannot read s3://models/org/tiny/")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "hub").exists()


def test_a_failure_in_the_middle_is_the_mirrors_too(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    put(bucket, FILES)
    proxy.instead = lambda exchange: error(403, "AccessDenied") if "range" in exchange.headers else None
    with pytest.raises(SourceError, match=r"cannot read s3://models/org/tiny/.*: access is denied"):
        fetch_model(model(proxy), tmp_path, ignore)


def test_an_empty_prefix_is_said(bucket: Any, proxy: RecordingProxy, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"s3://models/org/tiny/ holds no objects; correct bucket_uri"):
        fetch_model(model(proxy), tmp_path, ignore)


def test_a_mirror_without_weights_is_said_before_anything_is_fetched(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path
) -> None:
    put(bucket, {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(SourceError, match="has no safetensors weights, and pickled weights are refused"):
        fetch_model(model(proxy), tmp_path, ignore)
    assert proxy.bytes_of("config.json") == 0


def test_a_worker_without_credentials_is_told_where_they_go(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(SourceError, match=r"the worker has no AWS credentials; .*--no-sign-request"):
        fetch_model(model(proxy), tmp_path, ignore)
    with pytest.raises(SourceError, match=r"cannot read .*nobody.*; check the worker's AWS configuration"):
        fetch_model(model(proxy, s3_sync_args=["--profile", "nobody"]), tmp_path, ignore)


def test_no_network_is_said(tmp_path: Path, proxy: RecordingProxy) -> None:
    unreachable = model(proxy, endpoint_url="http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"cannot read s3://models/org/tiny/hash: .*check the network"):
        fetch_model(unreachable, tmp_path, ignore)


def test_a_missing_package_is_named(proxy: RecordingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(SourceError, match=r"s3_mirror_config needs the package boto3: pip install 'aviary\[s3\]'"):
        fetch_model(model(proxy), tmp_path, ignore)


def test_a_disk_that_is_too_small_is_said_before(
    bucket: Any, proxy: RecordingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, FILES)
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(SourceError, match=r"fetching weights needs 1 MB in .*, 0 MB are free"):
        fetch_model(model(proxy), tmp_path, ignore)
    assert proxy.bytes_of("model.safetensors") == 0
