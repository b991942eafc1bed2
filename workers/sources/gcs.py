"""Google Cloud Storage: objects through Google's own client, with credentials from the usual Google places.

A worker that has none reads anonymously, which public buckets allow. The only importer of google.cloud.storage; what it
and the HTTP libraries below it raise becomes one line. Called by `mirror`.
"""

from __future__ import annotations

import base64
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from workers.errors import SourceError
from workers.sources.object_store import (
    CONNECT_TIMEOUT_S,
    MAX_SMALL_BYTES,
    READ_TIMEOUT_S,
    Checksum,
    ObjectChangedError,
    RemoteFile,
    TransientSourceError,
)

_TIMEOUT_S: Final = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
_RETRY_TIMEOUT_S: Final = 20.0
"""How long a listing is tried again; ranges have attempts of their own."""
_CREDENTIALS_VARIABLE: Final = "GOOGLE_APPLICATION_CREDENTIALS"
_NO_CREDENTIALS: Final = (
    f"the worker has no Google credentials, so the bucket must be public; set {_CREDENTIALS_VARIABLE}"
)
_NO_ACCESS: Final = "give the worker's Google identity the role Storage Object Viewer there"


class _Sink:
    """As much of a writable file as the client's download needs."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.write = write


class GcsStore:
    """Objects of Google Cloud Storage."""

    def __init__(self) -> None:
        """Raises `SourceError` when there is no client library, or the credentials that are named cannot be read."""
        self._client, self._is_anonymous = _connect()
        self._checksums: dict[RemoteFile, Checksum] = {}

    def list_files(self, bucket: str, prefix: str) -> Iterator[RemoteFile]:
        from google.cloud.storage.retry import DEFAULT_RETRY

        retry = DEFAULT_RETRY.with_timeout(_RETRY_TIMEOUT_S)
        with self._explained(f"list gs://{bucket}/{prefix}"):
            for blob in self._client.list_blobs(bucket, prefix=prefix or None, timeout=_TIMEOUT_S, retry=retry):
                file = RemoteFile(f"gs://{bucket}/{blob.name}", bucket, blob.name, blob.size, str(blob.generation))
                if blob.crc32c:
                    digest = base64.b64decode(blob.crc32c).hex()
                    self._checksums[file] = Checksum("crc32c", digest, "the object's CRC32C")
                yield file

    def read_small(self, bucket: str, key: str) -> bytes | None:
        from google.cloud.exceptions import NotFound

        content = bytearray()

        def write(piece: bytes) -> None:
            content.extend(piece[: MAX_SMALL_BYTES - len(content)])

        with self._explained(f"read gs://{bucket}/{key}"):
            try:
                self._download(bucket, key, write)
            except NotFound as error:
                if "bucket does not exist" in str(error):
                    raise
                return None
        return bytes(content)

    def read_range(self, file: RemoteFile, start: int, stop: int, write: Callable[[bytes], object]) -> None:
        with self._explained(f"read {file.uri}", file):
            self._download(
                file.bucket, file.key, write, start=start, end=stop - 1, if_generation_match=int(file.version)
            )

    def checksum_of(self, file: RemoteFile) -> Checksum | None:
        return self._checksums.get(file)

    def _download(self, bucket: str, key: str, write: Callable[[bytes], object], **arguments: int) -> None:
        from google.api_core.exceptions import GoogleAPICallError

        blob = self._client.bucket(bucket).blob(key)
        try:
            blob.download_to_file(
                _Sink(write), raw_download=True, checksum=None, retry=None, timeout=_TIMEOUT_S, **arguments
            )
        except GoogleAPICallError as error:
            if error.response is not None:
                error.response.close()  # the client leaves its connection open
            raise

    @contextmanager
    def _explained(self, act: str, file: RemoteFile | None = None) -> Iterator[None]:
        """What the libraries raise inside becomes a `SourceError`; with `file`, its version was insisted on."""
        import requests
        import urllib3
        from google.api_core.exceptions import GoogleAPICallError, RetryError
        from google.auth.exceptions import GoogleAuthError, InvalidOperation

        try:
            yield
        except GoogleAPICallError as error:
            raise self._explain_answer(act, error, file) from error
        except RetryError as error:
            if isinstance(error.cause, GoogleAPICallError):
                raise self._explain_answer(act, error.cause, file) from error
            raise _unreachable(act, error.cause) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError) as error:
            raise _unreachable(act, error) from error
        except InvalidOperation as error:
            # The server wants to know who asks, and there is nobody: anonymous credentials cannot be renewed.
            traceback.clear_frames(error.__traceback__)  # they hold the answer, and with it a connection
            raise SourceError(f"cannot {act}: access is denied: {_NO_CREDENTIALS}") from error
        except GoogleAuthError as error:
            raise SourceError(
                f"cannot {act}: {_first_line(error)}; renew the worker's Google credentials and check its clock"
            ) from error
        except ValueError as error:
            raise SourceError(f"cannot {act}: {_first_line(error)}; correct gcs_mirror_config") from error

    def _explain_answer(self, act: str, error: Any, file: RemoteFile | None) -> SourceError:
        """What an error that the server answered with means."""
        from google.api_core import exceptions

        match error:
            case exceptions.PreconditionFailed() | exceptions.NotFound() if file is not None:
                return ObjectChangedError(f"{file.uri} changed while it was read; load the model again")
            case exceptions.NotFound():
                return SourceError(f"cannot {act}: there is no such bucket: correct bucket_uri")
            case exceptions.Unauthorized() | exceptions.Forbidden():
                advice = _NO_CREDENTIALS if self._is_anonymous else _NO_ACCESS
                return SourceError(f"cannot {act}: access is denied: {advice}")
            case exceptions.ServerError() | exceptions.TooManyRequests():
                return TransientSourceError(
                    f"cannot {act}: the server answers {error.code}; load the model again later"
                )
            case _:
                return SourceError(f"cannot {act}: {_first_line(error)}; check gcs_mirror_config")


def _connect() -> tuple[Any, bool]:
    """A client, and whether it is anonymous."""
    try:
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import storage
    except ImportError as error:
        raise SourceError(
            "gcs_mirror_config needs the package google-cloud-storage: pip install 'aviary[gcs]'"
        ) from error
    try:
        return storage.Client(project=None), False
    except GoogleAuthError as error:
        if os.environ.get(_CREDENTIALS_VARIABLE):
            raise SourceError(f"{_CREDENTIALS_VARIABLE}: {_first_line(error)}; correct or unset it") from error
        return storage.Client.create_anonymous_client(), True


def _unreachable(act: str, error: BaseException | None) -> TransientSourceError:
    return TransientSourceError(f"cannot {act}: {_first_line(error)}; check the network and the proxy")


def _first_line(error: BaseException | None) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
