"""S3, or any server that speaks it: objects through boto3, with credentials from the usual AWS places.

boto3 and not a leaner client, because profiles, single sign-on, web identities and instance roles are what people's
machines are configured with, and it is the only one that reads them all. The only importer of boto3 and botocore; what
they raise becomes one line. Called by `mirror`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Final

from model_registry.s3_sync_args import S3SyncArgs, parse_s3_sync_args
from model_registry.schema import S3AwsCredentials, S3MirrorConfig
from workers.errors import SourceError
from workers.sources.object_store import (
    CONNECT_TIMEOUT_S,
    MAX_SMALL_BYTES,
    NUM_CONNECTIONS,
    READ_TIMEOUT_S,
    Checksum,
    ObjectChangedError,
    RemoteFile,
    TransientSourceError,
)

_READ_BYTES: Final = 1 << 20
_NUM_REQUEST_ATTEMPTS: Final = 3
_MD5_ETAG: Final = re.compile(r'"?([0-9a-f]{32})"?')
_EXPRESS_BUCKET: Final = "--x-s3"
_FULL_CHECKSUMS: Final[Mapping[str, str]] = {
    "ChecksumSHA256": "sha256",
    "ChecksumSHA1": "sha1",
    "ChecksumCRC32": "crc32",
}
"""Those that can be computed here; a store may have others, such as CRC64NVME."""
_CHANGED: Final = frozenset(("PreconditionFailed", "412", "NoSuchKey", "404", "InvalidRange", "416"))
_TRANSIENT: Final = frozenset(("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "InternalError"))
_FIRST_SERVER_ERROR: Final = 500
_DENIED: Final = (
    "access is denied: give the worker's AWS identity s3:ListBucket and s3:GetObject there, "
    "or --no-sign-request in s3_sync_args if the bucket is public"
)
_CREDENTIALS: Final = "the AWS credentials are refused: check those of the worker's environment"
_REGION: Final = "the bucket is in another region: give it as --region in s3_sync_args"
_EXPLAINED: Final[Mapping[str, str]] = {
    "NoSuchBucket": "there is no such bucket: correct bucket_uri, or endpoint_url if it is not at Amazon",
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "403": _DENIED,
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": "the AWS credentials have expired: renew those of the worker's environment",
    "ExpiredTokenException": "the AWS credentials have expired: renew those of the worker's environment",
    "RequestTimeTooSkewed": "the clock of this node differs too much from the store's: set it, best by NTP",
    "RequestExpired": "the clock of this node differs too much from the store's: set it, best by NTP",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "InvalidObjectState": "the object is archived: restore it to a storage class that can be read at once",
}


class S3Store:
    """Objects of S3, read as the registry's `s3_mirror_config` says."""

    def __init__(self, settings: S3MirrorConfig) -> None:
        """Raises `SourceError` when there is no boto3, or the configuration names what does not exist."""
        arguments = parse_s3_sync_args(settings.s3_sync_args)
        self._more = {"RequestPayer": "requester"} if arguments.request_payer else {}
        with _explained(f"read {settings.bucket_uri}"):
            self._client = _client(settings, arguments)

    def list_files(self, bucket: str, prefix: str) -> Iterator[RemoteFile]:
        with _explained(f"list s3://{bucket}/{prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **self._more)
            for page in pages:
                for one in page.get("Contents", ()):
                    key = one["Key"]
                    yield RemoteFile(f"s3://{bucket}/{key}", bucket, key, one["Size"], one["ETag"])

    def read_small(self, bucket: str, key: str) -> bytes | None:
        with _explained(f"read s3://{bucket}/{key}"):
            try:
                answer = self._client.get_object(Bucket=bucket, Key=key, **self._more)
            except self._client.exceptions.NoSuchKey:
                return None
            with closing(answer["Body"]) as body:
                content: bytes = body.read(MAX_SMALL_BYTES)
                return content

    def read_range(self, file: RemoteFile, start: int, stop: int, write: Callable[[bytes], object]) -> None:
        with _explained(f"read {file.uri}", file):
            answer = self._client.get_object(
                Bucket=file.bucket,
                Key=file.key,
                Range=f"bytes={start}-{stop - 1}",
                IfMatch=file.version,
                **self._more,
            )
            with closing(answer["Body"]) as body:
                _check_range(answer, file, start, stop)
                for piece in body.iter_chunks(_READ_BYTES):
                    write(piece)

    def checksum_of(self, file: RemoteFile) -> Checksum | None:
        with _explained(f"read {file.uri}", file):
            head = self._client.head_object(
                Bucket=file.bucket, Key=file.key, ChecksumMode="ENABLED", IfMatch=file.version, **self._more
            )
        if head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
            for name, algorithm in _FULL_CHECKSUMS.items():
                if name in head and "-" not in head[name]:
                    return Checksum(algorithm, base64.b64decode(head[name]).hex(), f"the object's {name}")
        return _md5_of_etag(file, head)


def _md5_of_etag(file: RemoteFile, head: Mapping[str, Any]) -> Checksum | None:
    """The ETag is the content's MD5, unless the object came in parts, is encrypted with a key, or is in S3 Express."""
    etag = _MD5_ETAG.fullmatch(file.version)
    is_encrypted = "SSECustomerAlgorithm" in head or "kms" in head.get("ServerSideEncryption", "")
    if etag is None or is_encrypted or file.bucket.endswith(_EXPRESS_BUCKET):
        return None
    return Checksum("md5", etag[1], "the object's ETag")


def _check_range(answer: Mapping[str, Any], file: RemoteFile, start: int, stop: int) -> None:
    """Some servers answer with the whole object."""
    is_whole = start == 0 and stop == file.size_bytes and answer.get("ContentLength") == stop
    if not is_whole and not str(answer.get("ContentRange", "")).startswith(f"bytes {start}-{stop - 1}/"):
        raise SourceError(f"the server of {file.uri} does not answer range requests as S3 does; use another mirror")


def _client(settings: S3MirrorConfig, arguments: S3SyncArgs) -> Any:
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError as error:
        raise SourceError("s3_mirror_config needs the package boto3: pip install 'aviary[s3]'") from error

    credentials = {} if settings.s3_aws_credentials is None else _ask_for_credentials(settings.s3_aws_credentials)
    session = boto3.Session(profile_name=arguments.profile, region_name=arguments.region, **credentials)
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=NUM_CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": _NUM_REQUEST_ATTEMPTS},
        response_checksum_validation="when_required",  # files are verified whole, not range by range
        **({} if arguments.sign_requests else {"signature_version": UNSIGNED}),
    )
    return session.client(
        "s3",
        endpoint_url=settings.endpoint_url or arguments.endpoint_url,
        verify=(arguments.ca_bundle or None) if arguments.verify_ssl else False,
        config=config,
    )


def _ask_for_credentials(settings: S3AwsCredentials) -> dict[str, str]:
    """Arguments of a session, from the service that the registry names. Neither answer nor token is ever shown."""
    url, variable = settings.create_aws_credentials_url, settings.auth_token_env_variable
    request = urllib.request.Request(url, method="POST")  # noqa: S310  the schema allows http and https only
    if variable is not None:
        token = os.environ.get(variable)
        if not token:
            raise SourceError(f"s3_aws_credentials: the environment variable {variable} is not set for the workers")
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=READ_TIMEOUT_S) as answer:  # noqa: S310  as above
            given = json.loads(answer.read(MAX_SMALL_BYTES))
        return {
            "aws_access_key_id": given["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": given["AWS_SECRET_ACCESS_KEY"],
            "aws_session_token": given.get("AWS_SESSION_TOKEN"),
        }
    except OSError as error:
        raise SourceError(f"s3_aws_credentials: {url} gives no credentials ({error}); check it and its token") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(
            f"s3_aws_credentials: {url} does not answer with JSON that holds AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY; correct create_aws_credentials_url"
        ) from None


@contextmanager
def _explained(act: str, file: RemoteFile | None = None) -> Iterator[None]:
    """What boto3 raises inside becomes a `SourceError`; with `file`, its version is what the request insists on."""
    try:
        from botocore import exceptions
    except ImportError:
        yield  # there is no client to fail; making one says what is missing
        return
    try:
        yield
    except exceptions.ClientError as error:
        raise _explain_answer(act, error, file) from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        raise SourceError(
            f"cannot {act}: the worker has no AWS credentials; give it some in the usual places (environment, "
            "~/.aws, instance role), or --no-sign-request in s3_sync_args if the bucket is public"
        ) from error
    except (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError) as error:
        raise TransientSourceError(
            f"cannot {act}: {_first_line(error)}; check the network, the proxy and endpoint_url"
        ) from error
    except exceptions.BotoCoreError as error:
        raise SourceError(f"cannot {act}: {_first_line(error)}; check the worker's AWS configuration") from error


def _explain_answer(act: str, error: Any, file: RemoteFile | None) -> SourceError:
    """What an error that the server answered with means."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if file is not None and code in _CHANGED:
        return ObjectChangedError(f"{file.uri} changed while it was read; load the model again")
    if code in _EXPLAINED:
        return SourceError(f"cannot {act}: {_EXPLAINED[code]}")
    reason = f"cannot {act}: the server answers {status} {code}, {_first_line(error)}"
    if code in _TRANSIENT or status >= _FIRST_SERVER_ERROR:
        return TransientSourceError(f"{reason}; load the model again later")
    return SourceError(f"{reason}; check s3_mirror_config")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
